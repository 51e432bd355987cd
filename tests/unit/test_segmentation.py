"""VA, MVA and MIoU of section 3.3.1, by hand."""

import numpy as np
import pytest

from tomoline.errors import InputError
from tomoline.evaluation.segmentation import confusion_matrix, segmentation_scores

TRUE = np.array([[[0, 0, 0, 1], [1, 1, 2, 2]]])
PREDICTED = np.array([[[0, 0, 1, 1], [1, 2, 2, 2]]])


def test_confusion_counts_voxels_rows_true() -> None:
    counts = confusion_matrix(PREDICTED, TRUE, 3)
    assert counts.tolist() == [[2, 1, 0], [0, 2, 1], [0, 0, 2]]


def test_measures_by_hand() -> None:
    score = segmentation_scores(PREDICTED, TRUE, 3)
    assert score.va == pytest.approx(6 / 8)
    assert score.mva == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert score.miou == pytest.approx((2 / 3 + 2 / 4 + 2 / 3) / 3)


def test_a_perfect_map_scores_one() -> None:
    score = segmentation_scores(TRUE, TRUE, 3)
    assert (score.va, score.mva, score.miou) == (1, 1, 1)


def test_a_class_in_neither_map_is_left_out_of_the_means() -> None:
    assert segmentation_scores(TRUE, TRUE, 5).miou == 1
    assert np.isnan(segmentation_scores(TRUE, TRUE, 5).class_iou[4])


def test_a_class_only_predicted_costs_iou() -> None:
    score = segmentation_scores(np.array([0, 1]), np.array([0, 0]), 2)
    assert score.mva == 0.5
    assert score.miou == pytest.approx((1 / 2 + 0) / 2)


def test_unsigned_labels_do_not_overflow() -> None:
    big = np.full((2, 2, 2), 12, np.uint8)
    assert confusion_matrix(big, big, 40)[12, 12] == 8


@pytest.mark.parametrize("labels", [np.array([0, 3]), np.array([0, -1]), np.array([0, 0, 0])])
def test_bad_labels_are_refused(labels: np.ndarray) -> None:
    with pytest.raises(InputError):
        confusion_matrix(labels, np.array([0, 1]), 3)
