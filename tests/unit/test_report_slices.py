"""Slices: a mark must lie on its particle, and pictures must stay small."""

import io

import numpy as np
import pytest
from PIL import Image

from tomoline.report import slices
from tomoline.report.palette import styles


def picks_at(*zyx: tuple[float, float, float]) -> slices.Picks:
    return slices.Picks(
        zyx=np.array(zyx, float).reshape(-1, 3),
        names=np.array(["a"] * len(zyx), dtype=object),
        scores=np.linspace(1, 0.1, len(zyx)),
        radius_vox={"a": 4.0},
    )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_marks_lie_on_the_voxel_they_name(axis: int) -> None:
    shape, spot = (21, 31, 41), (10, 15, 20)
    grid = np.indices(shape)
    volume = np.sqrt(sum((g - c) ** 2 for g, c in zip(grid, spot, strict=True)))
    shown = slices.planes(volume, picks_at(spot), n_slices=1, voxel_size_angstrom=10)
    plane = next(p for p in shown if p.axis == axis)
    row, column = np.argwhere(plane.pixels == plane.pixels.min()).mean(axis=0)
    assert plane.index == spot[axis]
    # A mark is in picture coordinates, where a voxel's centre is half a pixel in.
    assert plane.marks[0] == pytest.approx((column + 0.5, row + 0.5))


def test_y_runs_upwards() -> None:
    volume = np.zeros((5, 10, 10), np.float32)
    volume[:, 9, :] = 1
    (top, *_) = slices.planes(volume, picks_at(), n_slices=1, voxel_size_angstrom=10)
    assert top.pixels[0].min() > top.pixels[-1].max()


def test_only_picks_that_the_slice_cuts_are_drawn() -> None:
    picks = picks_at((13, 5, 5), (14, 5, 5), (26, 5, 5), (27, 5, 5))
    volume = np.zeros((41, 11, 11), np.float32)
    shown = slices.planes(volume, picks, n_slices=1, voxel_size_angstrom=10)
    assert shown[0].index == 20
    # A radius of 4 voxels and a slab of 2 more to either side (50 Å of 10 Å voxels).
    assert shown[0].picked.tolist() == [1, 2]


def test_the_best_are_drawn_where_there_are_too_many() -> None:
    n = slices.MAX_MARKS + 25
    picks = picks_at(*[(2.0, 3.0, 3.0)] * n)
    shown = slices.planes(np.zeros((5, 8, 8)), picks, n_slices=1, voxel_size_angstrom=10)
    assert shown[0].picked.tolist() == list(range(slices.MAX_MARKS))
    assert shown[0].n_left_out == 25


def test_many_slices_share_the_marks_of_a_page() -> None:
    picks = picks_at(*[(z % 80, 3.0, 3.0) for z in range(8000)])
    shown = slices.planes(np.zeros((80, 8, 8)), picks, n_slices=40, voxel_size_angstrom=10)
    assert sum(len(p.marks) for p in shown) <= slices.MAX_MARKS_PAGE


def test_more_slices_than_the_volume_has() -> None:
    shown = slices.planes(np.zeros((3, 8, 8)), picks_at(), n_slices=40, voxel_size_angstrom=10)
    assert [p.index for p in shown if p.axis == 0] == [0, 1, 2]


def test_pictures_keep_within_the_limit() -> None:
    noise = np.random.default_rng(0).normal(size=(6, 700, 700)).astype(np.float32)
    shown = slices.planes(noise, picks_at(), n_slices=6, voxel_size_angstrom=10)
    encoded = slices.encode(shown, limit_bytes=200_000)
    assert sum(map(len, encoded)) <= 200_000
    assert Image.open(io.BytesIO(encoded[0])).format == "JPEG"


def test_projections_show_where_a_column_stands_and_every_pick() -> None:
    volume = np.zeros((9, 10, 12), np.float32)
    volume[:, 4, 7] = -1
    along_z, along_y = slices.projections(volume, picks_at((4, 4, 7), (0, 9, 11)))
    for plane in (along_z, along_y):
        dark = np.argwhere(plane.pixels == plane.pixels.min())
        assert set(dark[:, 1]) == {7} and len(plane.marks) == 2
    assert along_z.marks[0] == pytest.approx((7.5, 10 - 4.5))
    assert along_y.marks[0] == pytest.approx((7.5, 9 - 4.5))
    assert (along_z.name, along_y.name) == ("along z", "along y")


def test_scale_bar_is_round_and_right() -> None:
    assert slices.scale_bar_nm(256) == 50
    assert slices.scale_bar_nm(40) == pytest.approx(10)
    assert slices.scale_bar_nm(9) == pytest.approx(2)


def test_marker_is_twice_the_core() -> None:
    core = 4 / 3 * np.pi * 3**3
    assert slices.marker_radii({"a": core})["a"] == pytest.approx(6)
    assert slices.marker_radii({"a": 1, "b": 1e9, "c": float("nan")}) == {"a": 3, "b": 20}


def test_svg_and_png_are_the_same_each_time(tmp_path) -> None:
    picks = picks_at((5, 5, 5), (5, 9, 9))
    volume = np.random.default_rng(1).normal(size=(11, 20, 20))
    shown = slices.planes(volume, picks, n_slices=1, voxel_size_angstrom=10)
    looks = styles(["a"])
    for name in ("one.png", "two.png"):
        slices.write_png(tmp_path / name, shown, picks, looks, title="t")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    text = slices.plane_svg(shown[0], slices.encode(shown)[0], picks, looks, voxel_size_angstrom=10)
    assert text.count("<circle") == 4  # a dark rim and a colour for each pick
