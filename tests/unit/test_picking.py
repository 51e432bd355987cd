"""The difference-of-Gaussians picker finds blobs where they were put."""

import numpy as np
import pytest

from tomoline.ops import picking
from tomoline.ops.picking import dog_picks, dog_picks_at_scales, dog_response, peaks

CENTRES = np.array([(12, 12, 12), (12, 30, 14.5), (30, 12.3, 30), (28, 30, 12)], float)


def blobs(sign: float = -1.0) -> np.ndarray:
    grid = np.stack(np.mgrid[:42, :42, :42], axis=-1)
    volume = np.zeros((42, 42, 42), np.float32)
    for weight, centre in zip((4, 3.5, 3, 2.5), CENTRES, strict=True):
        volume += weight * np.exp(-((grid - centre) ** 2).sum(-1) / (2 * 3**2))
    return sign * volume


def test_centres_are_found_below_a_voxel_best_first() -> None:
    picks = dog_picks(blobs(), 3.0, number=4)
    np.testing.assert_allclose(picks.zyx_vox, CENTRES, atol=0.15)
    assert (np.diff(picks.score) < 0).all()


def test_bright_particles_by_contrast() -> None:
    picks = dog_picks(blobs(+1.0), 3.0, number=4, contrast="bright")
    np.testing.assert_allclose(picks.zyx_vox, CENTRES, atol=0.15)


def test_a_threshold_instead_of_a_number() -> None:
    score = dog_picks(blobs(), 3.0, number=4).score
    picks = dog_picks(blobs(), 3.0, threshold=float(score[1:3].mean()))
    assert len(picks.zyx_vox) == 2


def test_picks_keep_their_distance_and_the_best_wins() -> None:
    response = np.zeros((5, 5, 30), np.float32)
    response[2, 2, [5, 9, 13, 25]] = [1, 3, 2, 1]
    zyx, value = peaks(response, distance_vox=6, threshold=0)
    assert zyx[:, 2].tolist() == [9, 25]
    assert value.tolist() == [3, 1]
    zyx, _ = peaks(response, distance_vox=4, threshold=0)
    assert zyx[:, 2].tolist() == [9, 13, 5, 25]


def test_a_flat_volume_answers_with_nothing_above_zero() -> None:
    assert np.abs(dog_response(np.ones((20, 20, 20), np.float32), 3.0)).max() < 1e-5
    zyx, _ = peaks(np.zeros((9, 9, 9), np.float32), distance_vox=2, threshold=0.0)
    assert len(zyx) == 0


@pytest.mark.parametrize("number", [0, 3])
def test_one_set_of_picks_a_scale(number: int) -> None:
    sets = dog_picks_at_scales(blobs(), number=number)
    assert len({picks.scale_vox for picks in sets}) == 3
    assert all(len(picks.zyx_vox) == number for picks in sets)


def test_slabs_find_what_the_whole_volume_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(3).normal(0, 1, (230, 40, 44)).astype(np.float32)
    volume = noise + 4 * np.pad(blobs()[:, :40], ((90, 98), (0, 0), (0, 2)))
    whole = dog_picks_at_scales(volume, number=40)
    monkeypatch.setattr(picking, "SLAB_VOX", 1)  # slabs of four margins
    slabs = dog_picks_at_scales(volume, number=40)
    direct = [dog_picks(volume, picks.scale_vox, number=40) for picks in whole]
    for a, b, c in zip(whole, slabs, direct, strict=True):
        for other in (b, c):
            np.testing.assert_allclose(other.score, a.score, rtol=2e-3)
            # Equal to the blurs' last digits, so the order of like scores may differ.
            distance = np.linalg.norm(a.zyx_vox[:, None] - other.zyx_vox, axis=-1).min(1)
            assert (distance < 0.05).mean() > 0.9
