"""Weighted focal loss (VP-Detector, eq. 6), and the Tversky loss that U-Nets are trained with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

UNKNOWN = 255  # a target's voxels of which nobody knows what they are: they teach nothing


def weighted_focal_loss(
    logits: Tensor, target: Tensor, alpha: Tensor | None = None, gamma: float = 2.0
) -> Tensor:
    """`-(1/N) sum_i sum_c alpha_c (1 - p_ic)^gamma g_ic log p_ic`, N the number of voxels.

    Parameters
    ----------
    logits:
        `(B, C, ...)`; computed in float32.
    target:
        `(B, ...)` class of each voxel, UNKNOWN where nothing is to be learnt (N counts the others).
    alpha:
        `(C,)` class weights; None is 1. With gamma = 0 the loss is cross-entropy.
    """
    known = target != UNKNOWN
    target = torch.where(known, target, torch.zeros_like(target))
    log_p = F.log_softmax(logits.float(), 1)
    log_pt = log_p.gather(1, target[:, None].long())[:, 0]
    loss = -log_pt
    if gamma:
        loss = loss * (1 - log_pt.exp()).clamp_min(0) ** gamma
    if alpha is not None:
        loss = loss * alpha.to(loss.device)[target.long()]
    if bool(known.all()):
        return loss.mean()
    return (loss * known).sum() / known.sum().clamp_min(1)


def tversky_loss(
    logits: Tensor, target: Tensor, *, false_positives: float = 0.5, false_negatives: float = 0.5
) -> Tensor:
    """`1 - mean_c TP_c / (TP_c + a FP_c + b FN_c)`, with soft counts over the batch.

    Salehi et al. (2017, eq. 3), summed over all classes, the background among them, as DeepFinder
    does (its sum of C classes is C times this); with a = b = 0.5 it is the soft Dice overlap. A
    class that is neither there nor predicted counts as nearly right, so that it gives no gradient.

    Parameters
    ----------
    logits:
        `(B, C, ...)`; computed in float32.
    target:
        `(B, ...)` class of each voxel.
    """
    p = F.softmax(logits.float(), 1).transpose(0, 1).flatten(1)
    wanted = F.one_hot(target.long(), p.shape[0]).movedim(-1, 0).flatten(1).to(p.dtype)
    hit = (p * wanted).sum(1)
    false_positive, false_negative = p.sum(1) - hit, wanted.sum(1) - hit
    below = hit + false_positives * false_positive + false_negatives * false_negative
    return 1 - ((hit + 1) / (below + 1)).mean()


def radius_weights(radii: list[float], background: float, power: float = 1.0) -> Tensor:
    """Class weights from effective radii: `(mean(R) / R_c)^power`, background first."""
    r = torch.tensor(radii, dtype=torch.float32)
    return torch.cat([torch.tensor([background]), (r.mean() / r) ** power])
