"""How far a network sees is measured to both sides of a cut."""

from dataclasses import dataclass

import numpy as np
import pytest

from tomoline.stages.calibrate import measured_halo


@dataclass(frozen=True)
class Shifted:
    """Looks `step` voxels away along an axis, at nothing beyond the volume."""

    axis: int
    step: int
    flips: int = 4

    def probabilities(self, volumes):
        assert self.flips == 1
        seen = np.zeros_like(volumes)
        far, near = [slice(None)] * 4, [slice(None)] * 4
        length = volumes.shape[self.axis + 1]
        k = abs(self.step)
        far[self.axis + 1], near[self.axis + 1] = slice(k, length), slice(0, length - k)
        if self.step < 0:
            far, near = near, far
        seen[tuple(near)] = volumes[tuple(far)]
        p = 1 / (1 + np.exp(-seen))
        return np.stack([1 - p, p], 1)


VOLUME = 1 + np.random.default_rng(0).random((24, 25, 26)).astype(np.float32)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("step", [1, 5, -5, -9])
def test_both_sides_of_every_cut_count(axis, step):
    assert measured_halo(Shifted(axis, step), VOLUME) == abs(step)


def test_a_network_that_sees_no_neighbour_needs_one_voxel_at_most():
    assert measured_halo(Shifted(0, 0), VOLUME) == 1


def test_a_volume_too_small_to_tell():
    assert measured_halo(Shifted(1, 12), VOLUME) is None
    assert measured_halo(Shifted(1, 11), VOLUME) == 11
