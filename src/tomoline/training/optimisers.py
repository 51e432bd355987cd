"""Muon: momentum whose steps are made orthogonal, for a network's kernels; Adam for the rest.

Every direction of a kernel, seen as a matrix (maps, inputs x 27), moves by the same amount, so that
weak features are learnt as fast as strong ones. After K. Jordan et al., "Muon: an optimizer for
hidden layers in neural networks" (2024); step size matched to Adam's by the factor
`0.2 sqrt(max(rows, columns))` of Liu et al. 2025 (arXiv 2502.16982, eq. 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalised(matrix: Tensor) -> Tensor:
    """The nearest matrix `(rows, columns)` whose singular values are about 1 (0.7 to 1.2)."""
    a, b, c = NEWTON_SCHULZ
    x = matrix.float()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.T if tall else x
    return result


class Muon(torch.optim.Optimizer):
    """Muon for parameters of three and more axes, Adam for the others; one learning rate."""

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    move = _matrix_step if parameter.ndim >= 3 else _adam_step
                    move(parameter, group, self.state[parameter])


def _matrix_step(parameter: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
    gradient = parameter.grad
    assert gradient is not None
    if not state:
        state["momentum"] = torch.zeros_like(parameter)
    state["momentum"].lerp_(gradient, 1 - group["momentum"])
    ahead = gradient.lerp(state["momentum"], group["momentum"])
    matrix = orthogonalised(ahead.reshape(len(ahead), -1))
    size = 0.2 * math.sqrt(max(matrix.shape))
    parameter.add_(matrix.reshape(parameter.shape).to(parameter.dtype), alpha=-group["lr"] * size)


def _adam_step(parameter: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
    gradient = parameter.grad
    assert gradient is not None
    if not state:
        state["step"] = 0
        state["mean"] = torch.zeros_like(parameter)
        state["square"] = torch.zeros_like(parameter)
    state["step"] += 1
    first, second = group["betas"]
    state["mean"].lerp_(gradient, 1 - first)
    state["square"].lerp_(gradient.square(), 1 - second)
    mean = state["mean"] / (1 - first ** state["step"])
    square = state["square"] / (1 - second ** state["step"])
    parameter.addcdiv_(mean, square.sqrt() + 1e-8, value=-group["lr"])
