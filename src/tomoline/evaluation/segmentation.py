"""Voxel accuracy, mean voxel accuracy, mean IoU (Hao et al., VP-Detector, section 3.3.1), Dice.

`p_ij` is the number of voxels of class i predicted to belong to class j, M the number of classes:
VA = sum_i p_ii / sum_i sum_j p_ij; MVA = 1/M sum_i p_ii / sum_j p_ij;
MIoU = 1/M sum_i p_ii / (sum_j p_ij + sum_j p_ji - p_ii).
Li et al. (PyConvU-Net, 2021, eq. 1 to 4) print the same MIoU, and of each class
Dice = 2 TP / (2 TP + FP + FN).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tomoline.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SegmentationScores:
    """`confusion` (M, M), rows true; the three measures, and each class's own share of them.

    A class that is in neither map says nothing and is left out of the means; one that is only
    predicted counts 0 in the mean IoU and is left out of the mean voxel accuracy, which would
    divide by zero. NaN stands for "left out".
    """

    confusion: NDArray[np.int64]
    va: float
    mva: float
    miou: float
    class_accuracy: NDArray[np.float64]
    class_iou: NDArray[np.float64]
    class_dice: NDArray[np.float64]


def confusion_matrix(
    predicted: NDArray[np.integer], true: NDArray[np.integer], n_classes: int
) -> NDArray[np.int64]:
    """Count voxels (M, M), rows true, columns predicted; slice by slice, to spare memory.

    Both maps have one shape of any dimension and labels 0..M-1. InputError where they do not.
    """
    if predicted.shape != true.shape:
        raise InputError(
            "segmentation",
            expected=f"a label map of the truth's shape {true.shape}",
            found=f"shape {predicted.shape}",
            remedy="compare maps of the same tomogram",
        )
    counts = np.zeros(n_classes**2, dtype=np.int64)
    for own, other in zip(np.atleast_2d(true), np.atleast_2d(predicted), strict=True):
        for name, labels in (("true", own), ("predicted", other)):
            if labels.size and (labels.min() < 0 or labels.max() >= n_classes):
                raise InputError(
                    "segmentation",
                    expected=f"{name} labels from 0 to {n_classes - 1}",
                    found=f"{labels.min()} to {labels.max()}",
                    remedy="use the model's own list of classes",
                )
        joint = own.astype(np.int64) * n_classes + other
        counts += np.bincount(joint.ravel(), minlength=n_classes**2)
    return counts.reshape(n_classes, n_classes)


def segmentation_scores(
    predicted: NDArray[np.integer], true: NDArray[np.integer], n_classes: int
) -> SegmentationScores:
    """Score a label map against the true one."""
    return scores_of_confusion(confusion_matrix(predicted, true, n_classes))


def scores_of_confusion(confusion: NDArray[np.int64]) -> SegmentationScores:
    """Score counts (M, M), rows true, which may be sums over several maps."""
    right = np.diag(confusion).astype(float)
    of_true, of_predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    accuracy = _divide(right, of_true)
    iou = _divide(right, of_true + of_predicted - right)
    total = int(confusion.sum())
    return SegmentationScores(
        confusion=confusion,
        va=float(right.sum() / total) if total else float("nan"),
        mva=_mean(accuracy),
        miou=_mean(iou),
        class_accuracy=accuracy,
        class_iou=iou,
        class_dice=_divide(2 * right, of_true + of_predicted),
    )


def _divide(
    above: NDArray[np.float64], below: NDArray[np.float64] | NDArray[np.int64]
) -> NDArray[np.float64]:
    out = np.full(len(above), np.nan)
    np.divide(above, below, out=out, where=np.asarray(below) > 0)
    return out


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
