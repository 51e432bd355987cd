"""Boxes hold what lies round the rounded centre, and the rest of the centre is kept."""

import numpy as np
import pytest

from tomoline.ops.patches import box_starts, centred_in, cut_patches, volume_mean


@pytest.mark.parametrize("box", [8, 9])
def test_the_voxel_of_the_centre_is_the_middle_of_the_box(box):
    volume = np.random.default_rng(0).random((20, 30, 40)).astype(np.float32)
    centres = np.array([[10.0, 11.0, 12.0], [9.7, 15.2, 20.49]])
    patches = list(cut_patches(volume, centres, box_vox=box, fill=0))
    for patch, centre in zip(patches, centres, strict=True):
        assert patch.values.shape == (box,) * 3
        assert patch.values[(box // 2,) * 3] == volume[tuple(np.rint(centre).astype(int))]
        np.testing.assert_allclose(patch.centre_zyx - box // 2, centre - np.rint(centre))


def test_halves_round_up_everywhere():
    starts = box_starts(np.array([[0.5, 1.5, 2.5], [-0.5, 2.4999, 3.0]]), 4)
    np.testing.assert_array_equal(starts, [[-1, 0, 1], [-2, 0, 1]])


def test_outside_the_volume_is_the_fill():
    volume = np.ones((6, 6, 6), np.float32)
    (corner, beyond) = cut_patches(volume, np.array([[0, 0, 0], [50, 3, 3]]), box_vox=4, fill=7)
    assert (corner.values[2:, 2:, 2:] == 1).all()
    assert corner.values.sum() == 8 + 7 * (64 - 8)
    assert (beyond.values == 7).all()


def test_boxes_are_read_from_a_memory_map_and_mean_is_exact(tmp_path):
    values = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
    mapped = np.memmap(tmp_path / "v", np.int16, "w+", shape=values.shape)
    mapped[:] = values
    assert volume_mean(mapped) == (values.size - 1) / 2
    (patch,) = cut_patches(mapped, np.array([[2, 3, 3]]), box_vox=2, fill=0)
    np.testing.assert_array_equal(patch.values, values[1:3, 2:4, 2:4])
    assert list(cut_patches(mapped, np.empty((0, 3)), box_vox=2, fill=0)) == []


@pytest.mark.parametrize("edge", [3, 4, 7, 8])
@pytest.mark.parametrize("box", [3, 6, 9, 10])
def test_a_cube_keeps_its_middle_when_it_is_cut_or_filled_up(edge, box):
    cube = np.arange(1, edge**3 + 1, dtype=np.float32).reshape((edge,) * 3)
    made = centred_in(cube, box)
    assert made[(box // 2,) * 3] == cube[(edge // 2,) * 3] and made.dtype == cube.dtype
    assert np.count_nonzero(made) == min(edge, box) ** 3
