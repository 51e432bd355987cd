"""Class activation maps: where in a subtomogram the evidence for a class lies.

    CAM_c(z, y, x) = sum_k w_k^c f_k(z, y, x)

(Zhou et al. 2016; Gao et al. 2020, eq. 1): `f_k` are the last maps, whose means over space are
classified, `w_k^c` their weights for the class, up-sampled to the subtomogram's size. The weights
are taken as the gradient of the class's logit with respect to the means. For a network that has one
linear layer behind the means (DenseNet) that is the layer's weight itself; for others (DSM-Net) it
is what the layer would be near this subtomogram (Grad-CAM, Selvaraju et al. 2017).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from tomoline.networks.blocks import autocast_like


@runtime_checkable
class Averaging(Protocol):
    """A network that classifies the means of its last maps."""

    def maps(self, x: Tensor) -> Tensor:
        """The last maps `(B, K, z, y, x)` of subtomograms `(B, 1, Z, Y, X)`."""

    @property
    def map_grid(self) -> tuple[float, float]:
        """Voxels from one place of the last maps to the next, and the voxel that the first place
        lies about."""

    def of_means(self, means: Tensor) -> Tensor:
        """Logits `(B, C)` of the maps' means `(B, K)`."""


def class_activation(network: Averaging, x: Tensor, label: Tensor) -> Tensor:
    """Maps `(B, Z, Y, X)`, float32, of the classes `label (B,)` of subtomograms `(B, 1, Z, Y, X)`.

    The mean of a map before it is up-sampled is what its maps add to the class's logit.
    """
    with torch.no_grad(), autocast_like(x):
        maps = network.maps(x).float()
    with torch.enable_grad():
        means = maps.mean((2, 3, 4)).requires_grad_()
        logits = network.of_means(means)
        chosen = logits.gather(1, label[:, None].to(logits.device)).sum()
        (weights,) = torch.autograd.grad(chosen, means)
    small = torch.einsum("bk,bkzyx->bzyx", weights, maps)
    step, first = network.map_grid
    z, y, v = (
        _between(count, edge, step=step, first=first).to(small)
        for count, edge in zip(small.shape[1:], x.shape[2:], strict=True)
    )
    return torch.einsum("bijk,zi,yj,xk->bzyx", small, z, y, v)


def _between(places: int, edge: int, *, step: float, first: float) -> Tensor:
    """Weights `(edge, places)` of linear interpolation; beyond the outer places theirs holds.

    The places lie where the layers' strides put them, not in the middles of equal parts: with
    those a map of DSM-Net would be three voxels off its particle.
    """
    at = ((torch.arange(edge) - first) / step).clamp(0, places - 1)
    distance = (at[:, None] - torch.arange(places)).abs()
    return (1 - distance).clamp(min=0)
