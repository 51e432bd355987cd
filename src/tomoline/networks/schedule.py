"""Dilations of an MSDNet's layers, and how far they look. Nothing here loads torch."""

from __future__ import annotations

from typing import Literal

from tomoline.errors import InputError

KERNEL = 3
Dilation = Literal["per_channel", "per_layer"]


def dilations(depth: int, width: int, max_dilation: int, mode: Dilation) -> list[list[int]]:
    """Dilation of each layer's channels.

    `per_channel`: `((i * width + j) mod max) + 1` (eq. 1 and figure 2 of the paper);
    `per_layer`: `(i mod max) + 1`.
    """
    if mode == "per_layer":
        return [[i % max_dilation + 1] * width for i in range(depth)]
    return [[(i * width + j) % max_dilation + 1 for j in range(width)] for i in range(depth)]


def check_hybrid_dilation(schedule: list[int], kernel: int = KERNEL) -> None:
    """Refuse a dilation schedule that leaves holes (hybrid dilated convolution rule).

    `M_i = max(M_{i+1} - 2 s_i, M_{i+1} - 2 (M_{i+1} - s_i), s_i)`, `M_n = s_n`, need
    `M_2 <= kernel` (Wang et al. 2018, section 3.2).

    Raises
    ------
    InputError
        Naming the schedule and the value that breaks the rule.
    """
    if len(schedule) < 2:
        gap = schedule[0]
    else:
        gap = schedule[-1]
        for step in reversed(schedule[1:-1]):
            gap = max(gap - 2 * step, gap - 2 * (gap - step), step)
    if gap > kernel or min(schedule) < 1:
        raise InputError(
            "dilations", expected=f"a schedule with M_2 <= {kernel} (hybrid dilation rule)",
            found=f"{schedule} with M_2 = {gap}",
            remedy="begin with dilation 1 and let it grow in steps of one, such as 1, 2, 3",
        )  # fmt: skip


def receptive_field(schedule: list[list[int]]) -> int:
    """`1 + 2 sum_i max_j s_ij`: the widest path takes each layer's largest dilation."""
    return 1 + 2 * sum(max(layer) for layer in schedule)
