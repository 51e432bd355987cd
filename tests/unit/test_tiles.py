"""Windows partition the volume, and a tiled result cannot be told from an untiled one."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tomoline.contracts import TilePlan
from tomoline.errors import InputError
from tomoline.ops.morphology import ball
from tomoline.ops.tiles import box, choose_windows, cost, merge_windows, plan_tiles

SHAPES = st.tuples(*[st.integers(1, 33)] * 3)


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, halo=st.integers(0, 9), extra=st.integers(2, 30))
def test_keep_boxes_partition_any_volume(shape, halo, extra):
    size = 2 * halo + extra
    plan = plan_tiles(shape, size_vox=size, halo_vox=halo)
    visits = np.zeros(shape, int)
    for tile in plan.tiles:
        visits[box(tile.keep_start, tile.keep_stop)] += 1
        for axis in range(3):
            start, stop = tile.keep_start[axis], tile.keep_stop[axis]
            assert stop - start > 0
            assert tile.read_start[axis] == max(0, start - halo) or shape[axis] <= size
            assert tile.read_stop[axis] == min(shape[axis], stop + halo) or shape[axis] <= size
            assert tile.read_stop[axis] - tile.read_start[axis] <= size
    assert (visits == 1).all()
    assert [t.index for t in plan.tiles] == list(range(len(plan.tiles)))


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 400), halo=st.integers(0, 9), extra=st.integers(1, 60))
def test_windows_are_few_and_of_equal_size(n, halo, extra):
    size = 2 * halo + extra
    plan = plan_tiles((n, 1, 1), size_vox=size, halo_vox=halo)
    edges = [t.read_stop[0] - t.read_start[0] for t in plan.tiles]
    count = len(edges)
    fewest = next(k for k in range(1, 500) if k * size - 2 * halo * (k - 1) >= n)
    assert count == fewest
    # Outer windows whose keep box is thinner than the halo let their neighbour read to the border.
    assert max(edges) - min(edges) <= 1 or min(t.keep_stop[0] - t.keep_start[0]
                                               for t in plan.tiles) < halo  # fmt: skip


def test_a_volume_smaller_than_a_window_is_one_window_without_halo():
    plan = plan_tiles((5, 31, 17), size_vox=64, halo_vox=40)
    (tile,) = plan.tiles
    assert tile.read_start == tile.keep_start == (0, 0, 0)
    assert tile.read_stop == tile.keep_stop == (5, 31, 17)


def test_plan_survives_its_file_and_shards_share_it(tmp_path):
    plan = plan_tiles((20, 50, 41), size_vox=24, halo_vox=4)
    plan.save(tmp_path / "plan.json")
    again = TilePlan.load(tmp_path / "plan.json")
    assert again == plan
    shards = [tile for k in (1, 2, 3) for tile in again.shard(k, 3)]
    assert sorted(t.index for t in shards) == list(range(len(plan.tiles)))


@pytest.mark.parametrize("halo", [8, 20])
def test_a_halo_that_leaves_nothing_is_refused(halo):
    with pytest.raises(InputError, match="less than half"):
        plan_tiles((40, 40, 40), size_vox=16, halo_vox=halo)


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, halo=st.integers(0, 6), share=st.floats(0.02, 1.2))
def test_chosen_windows_fit_and_none_reads_less(shape, halo, share):
    most = int(share * np.prod(shape))
    sizes = choose_windows(shape, most_vox=most, halo=halo)
    reads = []
    for counts in itertools.product(*[range(1, n + 1) for n in shape]):
        edges = [n if k == 1 else -(-(n + 2 * halo * (k - 1)) // k)
                 for n, k in zip(shape, counts, strict=True)]  # fmt: skip
        room = all(k == 1 or e > 2 * halo for k, e in zip(counts, edges, strict=True))
        if room and np.prod(edges) <= most:
            reads.append(np.prod([n + 2 * halo * (k - 1)
                                  for n, k in zip(shape, counts, strict=True)]))  # fmt: skip
    if sizes is None:
        assert not reads
        return
    plan = plan_tiles(shape, size_vox=sizes, halo_vox=halo)
    boxes = [np.subtract(t.read_stop, t.read_start).prod() for t in plan.tiles]
    assert max(boxes) <= most
    assert sum(boxes) == pytest.approx(cost(plan) * np.prod(shape))
    assert sum(boxes) <= min(reads)


def _network(volume):
    """Something with zero padding that looks two voxels far, and gives a number in 0..1."""
    kernel = np.arange(125, dtype=float).reshape(5, 5, 5)
    return ndimage.convolve(volume, kernel / kernel.sum(), mode="constant")


def _merge(plan, results, threshold=0.5, mask_cut=True):
    probability = np.full(plan.shape_zyx, np.nan, np.float32)
    mask = np.full(plan.shape_zyx, -1, np.int8)
    counts = merge_windows(
        plan, lambda tile: results[tile.index], probability=probability, mask=mask,
        threshold=threshold, mask_cut=mask_cut,
    )  # fmt: skip
    return probability, mask, counts


@pytest.mark.parametrize("shape", [(7, 33, 26), (20, 20, 20), (12, 41, 9)])
def test_tiled_equals_untiled_where_the_halo_reaches_as_far_as_the_network(shape):
    volume = np.random.default_rng(0).random(shape)
    plan = plan_tiles(shape, size_vox=12, halo_vox=2)
    assert len(plan.tiles) > 1
    windows = [_network(volume[box(t.read_start, t.read_stop)]) for t in plan.tiles]
    whole = _network(volume)
    probability, mask, counts = _merge(plan, windows, mask_cut=False)
    np.testing.assert_allclose(probability, whole, rtol=1e-6)
    np.testing.assert_array_equal(mask, probability >= 0.5)
    assert counts.foreground_vox == mask.sum() > 0


def _windows(volume, plan):
    return [volume[box(t.read_start, t.read_stop)].copy() for t in plan.tiles]


def test_balls_across_seams_come_out_once_and_whole():
    shape = (24, 48, 48)
    plan = plan_tiles(shape, size_vox=24, halo_vox=8)
    truth = np.zeros(shape, np.float32)
    seams = sorted({t.keep_stop[1] for t in plan.tiles})[:-1]
    for y in seams:
        for x in (6, 23, 40):
            truth[12 - 3 : 12 + 4, y - 3 : y + 4, x - 3 : x + 4] = ball(3)
    probability, mask, counts = _merge(plan, _windows(truth, plan))
    np.testing.assert_array_equal(mask, truth)
    np.testing.assert_array_equal(probability, truth)
    assert ndimage.label(mask, np.ones((3, 3, 3)))[1] == 3 * len(seams)
    assert counts.removed_vox == 0


def test_false_fragments_at_a_cut_face_are_removed():
    shape = (10, 10, 40)
    plan = plan_tiles(shape, size_vox=25, halo_vox=5)
    first, second = plan.tiles
    assert (first.read_stop[2], second.keep_start[2], second.read_start[2]) == (25, 20, 15)
    windows = _windows(np.zeros(shape, np.float32), plan)
    # An artefact of the first window's cut face that reaches past its halo, to x = 17; and a true
    # particle elsewhere.
    windows[0][4:6, 4:6, 17:25] = 0.9
    windows[0][2:5, 2:5, 2:5] = 0.9
    _, mask, counts = _merge(plan, windows)
    assert not mask[:, :, 15:].any()
    assert mask[2:5, 2:5, 2:5].all()
    assert (counts.removed_vox, counts.removed_components) == (2 * 2 * 3, 1)
    assert _merge(plan, windows, mask_cut=False)[1][:, :, 17:20].any()


def test_a_particle_that_a_neighbour_also_marks_outlives_an_artefact_it_hangs_on():
    plan = plan_tiles((10, 10, 40), size_vox=25, halo_vox=5)
    particle = np.zeros((10, 10, 40), np.float32)
    particle[3:7, 3:7, 16:20] = 1  # whole in both windows, kept by the first
    windows = _windows(particle, plan)
    windows[0][5, 5, 18:25] = 1  # joins it to the cut face, where the second sees nothing
    _, mask, _ = _merge(plan, windows)
    np.testing.assert_array_equal(mask, particle)


def test_a_component_longer_than_every_window_stays():
    shape = (12, 12, 90)
    plan = plan_tiles(shape, size_vox=30, halo_vox=6)
    assert len(plan.tiles) > 3
    fibre = np.zeros(shape, np.float32)
    fibre[4:8, 4:8, 3:87] = 1
    _, mask, counts = _merge(plan, _windows(fibre, plan))
    np.testing.assert_array_equal(mask, fibre)
    assert counts.removed_vox == 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), halo=st.integers(0, 4))
def test_windows_that_agree_lose_nothing(seed, halo):
    """Whatever the shapes: where windows say the same, the mask is that of the whole volume."""
    volume = ndimage.gaussian_filter(np.random.default_rng(seed).random((9, 21, 30)), 1.5)
    volume = (volume > np.median(volume)).astype(np.float32)
    plan = plan_tiles(volume.shape, size_vox=11, halo_vox=halo)
    _, mask, _ = _merge(plan, _windows(volume, plan))
    np.testing.assert_array_equal(mask, volume)


def test_a_window_of_another_shape_is_refused():
    plan = plan_tiles((10, 10, 40), size_vox=25, halo_vox=5)
    windows = _windows(np.zeros((10, 10, 40)), plan)
    windows[1] = windows[1][:, :, 1:]
    with pytest.raises(InputError, match="window 1"):
        _merge(plan, windows)
