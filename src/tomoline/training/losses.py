"""Weighted focal loss (VP-Detector, eq. 6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def weighted_focal_loss(
    logits: Tensor, target: Tensor, alpha: Tensor | None = None, gamma: float = 2.0
) -> Tensor:
    """`-(1/N) sum_i sum_c alpha_c (1 - p_ic)^gamma g_ic log p_ic`, N the number of voxels.

    Parameters
    ----------
    logits:
        `(B, C, ...)`; computed in float32.
    target:
        `(B, ...)` class of each voxel.
    alpha:
        `(C,)` class weights; None is 1. With gamma = 0 the loss is cross-entropy.
    """
    log_p = F.log_softmax(logits.float(), 1)
    log_pt = log_p.gather(1, target[:, None].long())[:, 0]
    loss = -log_pt
    if gamma:
        loss = loss * (1 - log_pt.exp()).clamp_min(0) ** gamma
    if alpha is not None:
        loss = loss * alpha.to(loss.device)[target.long()]
    return loss.mean()


def radius_weights(radii: list[float], background: float, power: float = 1.0) -> Tensor:
    """Class weights from effective radii: `(mean(R) / R_c)^power`, background first."""
    r = torch.tensor(radii, dtype=torch.float32)
    return torch.cat([torch.tensor([background]), (r.mean() / r) ** power])
