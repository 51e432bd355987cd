"""What picks look like: boxes are cut where they should be, and means are of what was cut."""

import re

import numpy as np
import pytest

from tomoline.report import densities
from tomoline.report.palette import styles
from tomoline.report.slices import Picks

CENTRES = [(20, 20, 20), (20, 20, 60), (20, 60, 20), (22, 60, 60), (2, 40, 40)]


def picks_at(zyx, names=None, radius=6.0) -> Picks:
    names = names or ["ball"] * len(zyx)
    return Picks(
        zyx=np.array(zyx, float).reshape(-1, 3),
        names=np.array(names, dtype=object),
        scores=np.linspace(0.9, 0.5, len(zyx)),
        radius_vox=dict.fromkeys(names, radius),
    )


def dark(shape, centres, inner, outer) -> np.ndarray:
    """-1 between two radii about each centre, 0 elsewhere."""
    grid = np.moveaxis(np.indices(shape), 0, -1)
    volume = np.zeros(shape, np.float32)
    for centre in centres:
        apart = np.linalg.norm(grid - centre, axis=-1)
        volume[(apart >= inner) & (apart <= outer)] = -1
    return volume


@pytest.mark.parametrize("edge", [8, 9])
def test_the_nearest_voxel_is_in_the_middle_of_its_box(edge: int) -> None:
    volume = np.arange(20**3, dtype=np.float32).reshape(20, 20, 20)
    box = densities.cut(volume, np.array([9.6, 10.4, 7.0]), edge)
    assert box.shape == (edge,) * 3
    assert box[(edge // 2,) * 3] == volume[10, 10, 7]


def test_what_lies_outside_is_unknown_not_zero() -> None:
    volume = np.ones((10, 10, 10), np.float32)
    box = densities.cut(volume, np.array([0.0, 5, 5]), 8)
    assert np.isnan(box[:4]).all() and np.isfinite(box[4:]).all()
    assert np.isnan(densities.cut(volume, np.array([-30.0, 5, 5]), 8)).all()
    assert densities.cut(volume, np.array([5.0, 5, 5]), 8, depth=3).shape == (3, 8, 8)


def test_profile_is_dense_within_the_ball_and_nothing_outside() -> None:
    volume = dark((40, 80, 80), CENTRES, 0, 4)
    (density,) = densities.densities(volume, picks_at(CENTRES), voxel_size_angstrom=10)
    assert density.n == density.n_averaged == 5
    assert density.profile[:4] == pytest.approx(1.0)  # up is dense, although particles are dark
    assert density.profile[6:] == pytest.approx(0.0)
    assert density.error[:4] == pytest.approx(0.0)  # one of them leaves the volume: no matter


def test_a_hollow_particle_has_its_shell_in_the_profile_and_a_hole_in_the_mean() -> None:
    volume = dark((40, 80, 80), CENTRES[:4], 5, 7)
    (density,) = densities.densities(volume, picks_at(CENTRES[:4]), voxel_size_angstrom=10)
    assert int(np.argmax(density.profile)) in (5, 6, 7)
    assert density.profile[0] == 0
    middle = density.mean.shape[0] // 2
    assert density.mean[middle, middle, middle] == 0
    assert density.mean[middle, middle, middle + 6] == -1


def test_error_falls_with_the_root_of_the_number() -> None:
    rng = np.random.default_rng(0)
    volume = rng.normal(0, 1, (60, 60, 60)).astype(np.float32)
    places = rng.uniform(15, 45, (400, 3))
    (few,) = densities.densities(volume, picks_at(places[:25]), voxel_size_angstrom=10)
    (many,) = densities.densities(volume, picks_at(places), voxel_size_angstrom=10)
    assert np.mean(few.error[1:7] / many.error[1:7]) == pytest.approx(4.0, rel=0.15)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 12, 100])
def test_ranks_are_apart_and_in_order(n: int) -> None:
    places = densities.rank_places(n)
    every = [i for rank in places.values() for i in rank]
    assert every == sorted(set(every)) and all(0 <= i < n for i in every)
    assert bool(every) == bool(n)
    if n >= 3:
        assert places["best"][0] == 0 and places["worst"][-1] == n - 1


def test_single_picks_are_those_of_the_scores_told() -> None:
    centres = [(10.0, 10.0, 12.0 * k + 10) for k in range(6)]
    volume = np.zeros((20, 20, 90), np.float32)
    for k, (z, y, x) in enumerate(centres):
        volume[int(z), int(y), int(x)] = -1 - k
    (density,) = densities.densities(volume, picks_at(centres), voxel_size_angstrom=100)
    middle = density.mean.shape[0] // 2
    seen = {word: [float(p[middle, middle]) for _, p in r] for word, r in density.ranks.items()}
    assert seen == {"best": [-1, -2], "middle": [-3, -4], "worst": [-5, -6]}
    assert density.ranks["worst"][-1][0] == pytest.approx(0.5)


def test_cards_are_in_the_classes_order_and_small() -> None:
    rng = np.random.default_rng(0)
    volume = rng.normal(0, 1, (40, 80, 80)).astype(np.float32)
    n = 24 * 15
    names = [f"class{i % 24:02d}" for i in range(n)]
    picks = picks_at(rng.uniform(0, 40, (n, 3)), names, radius=20.0)
    shown = densities.densities(volume, picks, voxel_size_angstrom=10)
    looks = styles(sorted(set(names), reverse=True))
    html = densities.densities_html(shown, looks, voxel_size_angstrom=10)
    assert re.findall(r"</svg>(class\d+)</h3>", html) == list(looks)
    assert len(html) < 1_000_000
    assert densities.densities_html([], looks, voxel_size_angstrom=10) == ""


def test_no_more_classes_than_a_page_holds_and_the_largest_first() -> None:
    names = [f"c{i}" for i in range(30)] + ["many"] * 3
    picks = picks_at([(5, 5, 5)] * len(names), names)
    shown = densities.densities(np.zeros((10, 10, 10), np.float32), picks, voxel_size_angstrom=10)
    assert len(shown) == densities.MOST_CLASSES and shown[0].name == "many"
