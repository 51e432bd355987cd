"""How far density stands out of a tomogram's own noise."""

import numpy as np
import pytest

from tomoline.ops.contrast import contrasts

SHAPE = (60, 90, 100)
PLACES = np.array([[20.0, 30.0, 40.0], [40.0, 60.0, 70.0], [2.0, 88.0, 5.0]])


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, SHAPE).astype(np.float32)


def with_spots(volume: np.ndarray, depth: float) -> np.ndarray:
    """Dark Gaussian spots of 2 voxels at the places."""
    grid = np.moveaxis(np.indices(SHAPE), 0, -1)
    for place in PLACES:
        volume = volume - depth * np.exp(-((grid - place) ** 2).sum(-1) / 8)
    return volume.astype(np.float32)


def test_noise_alone_has_about_one_everywhere():
    rng = np.random.default_rng(3)
    found = contrasts(noise(), rng.uniform(0, 1, (300, 3)) * (np.array(SHAPE) - 1))
    assert 1.5 < np.median(found) < 2.5 and found.max() < 6


def test_a_spot_has_its_depth_over_the_noise():
    # Of a spot of variance v a Gaussian of variance s leaves (v / (v + s))^1.5; of white noise of
    # SD 1 the difference of two of variances s and t leaves the variance below.
    v, s, t = 4.0, 1.5**2, 4.0**2
    depth = (v / (v + s)) ** 1.5 - (v / (v + t)) ** 1.5
    variance = sum(f * (2 * np.pi * w) ** -1.5 for f, w in ((1, 2 * s), (1, 2 * t), (-2, s + t)))
    expected = 3 * depth / np.sqrt(variance)
    found = contrasts(with_spots(noise(), 3.0), PLACES)
    assert found[:2] == pytest.approx(expected, rel=0.15)
    assert found[2] > 0.5 * expected  # partly outside


def test_scale_offset_and_a_centre_two_voxels_off_change_little():
    volume = with_spots(noise(), 3.0)
    one = contrasts(volume, PLACES[:2])
    np.testing.assert_allclose(contrasts(5 * volume, PLACES[:2]), one, rtol=1e-4)
    np.testing.assert_allclose(contrasts(volume + 3, PLACES[:2]), one, rtol=1e-3)
    np.testing.assert_allclose(contrasts(volume, PLACES[:2] + 1.6), one, rtol=0.15)
    bright = contrasts(-volume, PLACES[:2])
    assert bright.max() < 1  # the brightest place is not the darkest one


def test_noisier_tomograms_have_less_contrast():
    clear = contrasts(with_spots(noise(), 3.0), PLACES[:2])
    noisy = contrasts(with_spots(3 * noise(), 3.0), PLACES[:2])
    assert clear.min() > 2 * noisy.max()


def test_crowding_changes_the_noise_little():
    rng = np.random.default_rng(5)
    alone = contrasts(with_spots(noise(), 3.0), PLACES[:2])
    crowd = noise()
    for z, y, x in (rng.uniform(0.05, 0.95, (60, 3)) * SHAPE).astype(int):
        if np.linalg.norm(PLACES[:2] - (z, y, x), axis=1).min() < 12:
            continue
        crowd[max(z - 2, 0) : z + 3, max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] -= 3
    np.testing.assert_allclose(contrasts(with_spots(crowd, 3.0), PLACES[:2]), alone, rtol=0.35)


def test_without_candidates_or_without_noise():
    assert contrasts(noise(), np.empty((0, 3))).shape == (0,)
    np.testing.assert_array_equal(contrasts(np.zeros(SHAPE, np.float32), PLACES), 0)
