"""Opening is scipy's, in slabs as in one piece."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tomoline.ops import morphology
from tomoline.ops.morphology import ball, binary_opening, components, open_mask


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000), radius=st.integers(0, 4),
    shape=st.tuples(*[st.integers(1, 16)] * 3),
)  # fmt: skip
def test_opening_equals_scipy(seed, radius, shape):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 1)
    mask = noise > np.quantile(noise, 0.3)
    wanted = ndimage.binary_opening(mask, ball(radius))
    np.testing.assert_array_equal(binary_opening(mask, radius), wanted)


@pytest.mark.parametrize("radius", [0, 1, 2, 3])
@pytest.mark.parametrize("depth", [1, 5, 40])
def test_slabs_show_no_seams(monkeypatch, radius, depth):
    noise = ndimage.gaussian_filter(np.random.default_rng(radius).random((depth, 20, 30)), 1)
    mask = (noise > np.quantile(noise, 0.3)).astype(np.int8)
    wanted = ndimage.binary_opening(mask, ball(radius)) if radius else mask.copy()
    monkeypatch.setattr(morphology, "_SLAB_VOXELS", 7 * 20 * 30)
    open_mask(mask, radius)
    np.testing.assert_array_equal(mask, wanted)


def test_opening_takes_specks_and_leaves_balls():
    mask = np.zeros((20, 20, 20), bool)
    mask[3:10, 3:10, 3:10] = ball(3)
    alone = mask.copy()
    mask[15, 15, 15:18] = True
    np.testing.assert_array_equal(binary_opening(mask, 2), binary_opening(alone, 2))
    assert binary_opening(mask, 3).sum() == ball(3).sum()
    assert binary_opening(np.ones((9, 9), bool), 2).any()  # two dimensions as well


def test_corners_join_components():
    mask = np.zeros((4, 4, 4), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[3, 3, 3] = True
    found = components(mask)
    assert found.max() == 2
    assert found[0, 0, 0] == found[1, 1, 1] != found[3, 3, 3]
