"""Rescaling: planted Gaussians come out where they were, to a hundredth of a voxel."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tomoline.ops import rescale as module
from tomoline.ops.rescale import plan_axis, rescale


def gaussian(shape: tuple[int, ...], centre: tuple[float, ...], sd: float) -> np.ndarray:
    """A Gaussian of height 1, analytically, on the given grid."""
    axes = [np.arange(n) - c for n, c in zip(shape, centre, strict=True)]
    grid = np.meshgrid(*axes, indexing="ij")
    return np.exp(-sum(np.square(g) for g in grid) / (2 * sd**2)).astype(np.float32)


def centre_of(volume: np.ndarray) -> np.ndarray:
    """First moments of the part above a thousandth of the peak (ripple below does not count)."""
    mass = np.where(volume > 1e-3 * volume.max(), volume, 0).astype(float)
    return np.array(
        [
            (mass.sum(axis=tuple({0, 1, 2} - {axis})) * np.arange(n)).sum() / mass.sum()
            for axis, n in enumerate(volume.shape)
        ]
    )


SHAPES = [(32, 40, 48), (33, 41, 47), (24, 49, 36)]
SCALES = [0.5, 0.731, 0.9, 1.05, 1.2866, 1.5, 2.0, 10 / 4.42]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", SCALES)
def test_a_planted_gaussian_keeps_place_height_and_width(
    shape: tuple[int, int, int], scale: float
) -> None:
    sd = 1.6 * max(1.0, scale)
    centre = tuple(n / 2 + shift for n, shift in zip(shape, (0.37, -1.61, 0.84), strict=True))
    out, scales = rescale(gaussian(shape, centre, sd), scale)
    assert out.dtype == np.float32
    back = centre_of(out) * np.array(scales)
    np.testing.assert_allclose(back, centre, atol=0.01)
    prepared_centre = tuple(c / s for c, s in zip(centre, scales, strict=True))
    analytic = gaussian(out.shape, prepared_centre, sd / scale)
    np.testing.assert_allclose(out, analytic, atol=0.01)


@pytest.mark.parametrize("scale", [0.7, 1.31, 2.0])
def test_near_a_face_too(scale: float) -> None:
    shape, sd = (40, 41, 42), 1.8 * max(1.0, scale)
    centre = (4.3, 36.2, 21.0)
    out, scales = rescale(gaussian(shape, centre, sd), scale)
    analytic = gaussian(
        out.shape, tuple(c / s for c, s in zip(centre, scales, strict=True)), sd / scale
    )
    np.testing.assert_allclose(out, analytic, atol=0.03)


def test_one_face_does_not_leak_into_the_other() -> None:
    bright_end = np.zeros((48, 8, 8), np.float32)
    bright_end[40:] = 100
    out, _ = rescale(bright_end, 1.25)
    assert np.abs(out[:8]).max() < 2  # the ripple of the step itself, not the wrapped step
    np.testing.assert_allclose(out[-3:], 100, atol=6)


@pytest.mark.parametrize("scale", SCALES)
def test_a_constant_stays(scale: float) -> None:
    out, _ = rescale(np.full((9, 14, 21), -1234.5), scale)
    np.testing.assert_allclose(out, -1234.5, rtol=1e-6)


@pytest.mark.parametrize("shape", [(16, 20, 24), (15, 21, 25)])
def test_up_and_down_again_gives_the_volume_back(shape: tuple[int, int, int]) -> None:
    volume = gaussian(shape, (7.3, 11.2, 9.9), 2.0) + gaussian(shape, (9.1, 6, 15), 2.5)
    up, scales = rescale(volume, 0.5)
    assert scales == (0.5, 0.5, 0.5)
    np.testing.assert_allclose(up[::2, ::2, ::2], volume, atol=2e-3)
    down, _ = rescale(up, 2.0)
    np.testing.assert_allclose(down, volume, atol=0.02)


def test_scale_1_is_a_copy() -> None:
    volume = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    out, scales = rescale(volume, 1)
    np.testing.assert_array_equal(out, volume)
    assert scales == (1, 1, 1)
    assert out.dtype == np.float32


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = np.random.default_rng(0).normal(size=(20, 21, 22)).astype(np.float32)
    whole, _ = rescale(volume, 1.3)
    monkeypatch.setattr(module, "_BLOCK_VOXELS", 1)
    np.testing.assert_allclose(rescale(volume, 1.3)[0], whole, atol=1e-6)


def test_memory_order_and_byte_order_change_nothing() -> None:
    volume = np.random.default_rng(0).normal(size=(12, 13, 14)).astype(np.float32)
    expected = rescale(volume, 1.4)[0].tobytes()
    assert rescale(np.asfortranarray(volume), 1.4)[0].tobytes() == expected
    assert rescale(volume.astype(">f4"), 1.4)[0].tobytes() == expected


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 1100), scale=st.floats(0.2, 8))
@example(length=1, scale=3.0078125)
@example(length=1, scale=0.9982)
@example(length=1, scale=1.9981750912765615)
def test_the_plan_meets_the_scale_and_fills_the_volume(length: int, scale: float) -> None:
    plan = plan_axis(length, scale)
    assert plan.period >= length + module.MIN_RIM
    assert plan.scale == pytest.approx(scale, rel=4e-3)
    if scale < 4:
        assert plan.scale == pytest.approx(scale, rel=5e-4)
    last = (plan.new_length - 1) * plan.scale
    assert last <= length - 0.5
    assert last + plan.scale > length - 0.5 - 1e-5 * plan.scale
    assert plan.new_length <= plan.new_period


@pytest.mark.parametrize(
    ("length", "scale", "new"), [(256, 2, 128), (257, 2, 129), (100, 0.5, 199)]
)
def test_plain_ratios_are_met_exactly(length: int, scale: float, new: int) -> None:
    plan = plan_axis(length, scale)
    assert plan.scale == scale
    assert plan.new_length == new


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="three axes"):
        rescale(np.zeros((3, 3)), 2)
    with pytest.raises(ValueError, match="positive"):
        plan_axis(10, 0)
