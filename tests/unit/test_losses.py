"""Weighted focal loss, equation 6."""

import math

import pytest
import torch
import torch.nn.functional as F

from tomoline.training.losses import radius_weights, weighted_focal_loss


def test_without_focus_and_weights_it_is_cross_entropy():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 5, 3, 4, 5), torch.randint(0, 5, (2, 3, 4, 5))
    expected = F.cross_entropy(logits, target)
    torch.testing.assert_close(weighted_focal_loss(logits, target, gamma=0.0), expected)


def test_one_voxel_by_hand():
    logits = torch.log(torch.tensor([0.2, 0.5, 0.3]))[None, :, None]
    loss = weighted_focal_loss(
        logits, torch.tensor([[1]]), alpha=torch.tensor([1.0, 3.0, 1.0]), gamma=2.0
    )
    assert float(loss) == pytest.approx(3 * 0.25 * -math.log(0.5), rel=1e-5)


def test_sum_is_over_voxels_not_over_weights():
    logits = torch.zeros(1, 2, 4)
    weighted = weighted_focal_loss(logits, torch.tensor([[0, 0, 0, 1]]), torch.tensor([1.0, 5.0]))
    assert float(weighted) == pytest.approx((3 + 5) / 4 * 0.25 * math.log(2), rel=1e-5)


def test_weights_fall_with_the_effective_radius():
    weights = radius_weights([2.0, 4.0], background=0.3)
    assert weights.tolist() == pytest.approx([0.3, 1.5, 0.75])
    assert radius_weights([2.0, 4.0], 0.3, power=2.0).tolist() == pytest.approx([0.3, 2.25, 0.5625])
