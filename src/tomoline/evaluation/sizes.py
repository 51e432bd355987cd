"""The size groups of SHREC's structures, by which figures of classes are averaged.

Gao et al. 2020, table 1. The densities at hand have other entries of the two largest complexes:
4cr2 for the proteasome 4b4t, 4v94 for the chaperonin 4d8q.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

SIZE_GROUPS = {
    "tiny": ("1s3x", "3qm1", "3gl1"),
    "small": ("3d2f", "1u6g", "2cg9", "3h84"),
    "medium": ("1qvr", "1bxn", "3cf3"),
    "large": ("4b4t", "4cr2", "4d8q", "4v94"),
}


def group_of(name: str) -> str:
    """The size group of a structure; empty for one that SHREC has not."""
    return next((g for g, names in SIZE_GROUPS.items() if name.casefold() in names), "")


def group_means(figures: Mapping[str, float | None]) -> dict[str, float]:
    """Mean figure of the classes of each group, the smallest first; groups without any are left
    out, as are classes without a figure."""
    found: dict[str, float] = {}
    for group in SIZE_GROUPS:
        own = [v for name, v in figures.items() if v is not None and group_of(name) == group]
        if own:
            found[group] = float(np.mean(own))
    return found
