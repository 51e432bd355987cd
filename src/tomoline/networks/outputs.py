"""What networks make of whole subtomograms: of one task, or of several at once."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

VOXEL_AXES = 5  # of logits that name voxels


class Outputs(NamedTuple):
    """Results for subtomograms `(B, 1, Z, Y, X)`; None for a task that the network has not.

    `classes`: logits `(B, classes)`; `segmentation`: logits `(B, 2, Z, Y, X)`, 1 for the particle
    itself; `recovery`: its density alone `(B, 1, Z, Y, X)`, 1 a protein's.
    """

    classes: Tensor | None = None
    segmentation: Tensor | None = None
    recovery: Tensor | None = None


@runtime_checkable
class Multitask(Protocol):
    """A network of several tasks."""

    def outputs(self, x: Tensor) -> Outputs:
        """Results of all its tasks for `(B, 1, Z, Y, X)`."""


def outputs_of(network: object, x: Tensor) -> Outputs:
    """Results of any network: of several tasks, or one that names wholes, or their voxels."""
    if isinstance(network, Multitask):
        return network.outputs(x)
    found: Tensor = network(x)  # type: ignore[operator]
    if found.ndim == VOXEL_AXES:
        return Outputs(segmentation=found)
    return Outputs(classes=found)
