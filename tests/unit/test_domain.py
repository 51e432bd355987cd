"""Whether the model can judge a tomogram: statistics by calculation, verdicts by hand."""

import numpy as np
import pytest

from tomoline.evaluation.domain import judge, ranges
from tomoline.networks.cards import Domain, ModelCard, Range
from tomoline.ops.normalise import normalise
from tomoline.ops.statistics import (
    SPECTRUM,
    byte_counts,
    candidate_statistics,
    grey_statistics,
    probability_statistics,
)

SHAPE = (64, 96, 96)


def noise(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def with_wedge(volume, degrees=30):
    """Without the power within `degrees` of z in the plane of z and x, as a tilt series leaves."""
    f = np.fft.rfftn(volume)
    fz = np.fft.fftfreq(volume.shape[0])[:, None, None]
    fx = np.fft.rfftfreq(volume.shape[2])
    f[np.broadcast_to(np.rad2deg(np.arctan2(fx, np.abs(fz))) < degrees, f.shape)] = 0
    return np.fft.irfftn(f, s=volume.shape, axes=(0, 1, 2)).astype(np.float32)


def tomogram(seed=0, depth=1.0, radius=4.0):
    """Dark balls in noise, with a wedge: what a localizer is made for."""
    rng = np.random.default_rng(seed)
    volume, grid = noise(seed), np.indices(SHAPE)
    for centre in rng.uniform(6, np.array(SHAPE) - 6, (40, 3)):
        square = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True))
        volume[square <= radius**2] -= 3 * depth
    return normalise(with_wedge(volume))


def card(domain):
    return ModelCard(
        name="x", network="msdnet", parameters={}, role="localizer",
        classes=["background", "particle"], voxel_size_angstrom=10.0, threshold=0.5,
        voxel_size_range_angstrom=(9.0, 11.0), bandwidth_vox=3.0, n_parameters=1,
        receptive_field_vox=9, domain=domain,
    )  # fmt: skip


@pytest.fixture(scope="module")
def known():
    """A card whose domain are such tomograms."""
    depths = np.linspace(0.6, 1.4, 8)
    return card(
        ranges([grey_statistics(tomogram(k, d)) for k, d in enumerate(depths)], source="tests")
    )


def test_white_noise_has_a_flat_spectrum_and_no_wedge():
    found = grey_statistics(noise())
    shares = np.array([found[name] for name in SPECTRUM])
    np.testing.assert_allclose(shares, np.log10(1 / 12), atol=0.15)
    assert abs(found["wedge"]) < 0.2 and abs(found["skewness"]) < 0.1
    assert grey_statistics(with_wedge(noise()))["wedge"] < -1.5
    shallow = grey_statistics(noise(shape=(20, 40, 70)))  # thinner than a cube
    assert all(np.isfinite(value) for value in shallow.values())
    assert grey_statistics(np.zeros(SHAPE, np.float32))["skewness"] == 0


def test_a_wave_is_found_in_its_band_and_scale_and_offset_do_not_matter():
    x = np.arange(96)
    wave = np.broadcast_to(np.cos(2 * np.pi * 0.2 * x), SHAPE).astype(np.float32)  # 0.18 to 0.22
    found = grey_statistics(wave + 0.01 * noise())
    assert max(SPECTRUM, key=lambda name: found[name]) == "spectrum_05"
    again = grey_statistics(7 * (wave + 0.01 * noise()) + 100)
    for name, value in found.items():
        assert again[name] == pytest.approx(value, abs=1e-2)


def test_dark_balls_are_skewed_downwards_and_bright_ones_upwards():
    volume = tomogram()
    assert grey_statistics(volume)["skewness"] < -0.5
    assert grey_statistics(-volume)["skewness"] == pytest.approx(
        -grey_statistics(volume)["skewness"], abs=1e-6
    )


def test_probabilities_and_candidates_are_counted():
    p = np.zeros((10, 10, 10), np.float32)
    p[0, :, :] = 0.4  # 100 unsure
    p[1, 0, :] = 0.8  # on the edge: unsure
    p[1, 1:4, :] = 1.0
    found = probability_statistics(byte_counts(p), 0.75)
    assert found["marked_share"] == pytest.approx(0.04)
    assert found["unsure_share"] == pytest.approx(110 / 140)
    assert found["p_50"] == 0 and found["p_90"] == pytest.approx(0.4, abs=0.01)
    assert found["p_99"] == 1
    assert probability_statistics(byte_counts(0 * p), 0.75)["unsure_share"] == 0
    few = candidate_statistics(np.full(9, 0.9), np.full(9, 50), 10**6)
    assert few == {"candidates": 9, "candidates_per_million_vox": 9}
    many = candidate_statistics(np.linspace(0, 1, 11), np.arange(11), 10**6)
    assert many["score_50"] == 0.5 and many["size_90"] == 9


def test_tomograms_of_the_same_kind_are_in_the_domain(known):
    for seed in range(20, 30):
        verdict = judge(grey_statistics(tomogram(seed, 0.6 + 0.08 * (seed - 20))), known)
        assert verdict.in_domain == "yes", verdict


@pytest.mark.parametrize(
    ("volume", "words"),
    [
        (-tomogram(50), "inverted contrast"),
        (normalise(noise(51)), "no missing wedge|noise"),
        (normalise(np.ascontiguousarray(tomogram(52).transpose(2, 1, 0))), "wedge"),
        (normalise(tomogram(53, radius=9.0)), "another voxel size"),
    ],
    ids=["inverted", "noise", "turned", "larger"],
)
def test_what_the_model_does_not_know_is_told(known, volume, words):
    verdict = judge(grey_statistics(volume), known)
    assert verdict.in_domain in ("doubtful", "no")
    assert any(word in verdict.reason for word in words.split("|")), verdict.reason


def simple(**statistics):
    names = {name: Range(low=a, median=b, high=c) for name, (a, b, c) in statistics.items()}
    return card(Domain(source="by hand", tomograms=9, statistics=names))


def test_only_sides_that_harm_count_and_the_flag_follows_the_distance():
    model = simple(
        score_50=(0.8, 0.9, 0.95), size_50=(60, 100, 140), marked_share=(0.01, 0.03, 0.05)
    )
    fine = {"score_50": 0.99, "size_50": 110, "marked_share": 0.0, "candidates": 20}
    assert judge(fine, model).in_domain == "yes"
    assert judge(fine | {"score_50": 0.65}, model).in_domain == "doubtful"  # 2.5 units below
    assert judge(fine | {"score_50": 0.45}, model).in_domain == "no"
    small = judge(fine | {"size_50": 15}, model)
    assert small.in_domain == "doubtful"
    assert "voxels larger than the header says" in small.reason
    assert small.distances["size_50"] == pytest.approx(85 / 40)


def test_nothing_found_is_not_the_same_as_cannot_judge():
    model = simple(skewness=(-3, -2, -1), marked_share=(0.01, 0.03, 0.05))
    nothing = {"candidates": 0, "marked_share": 0.0}
    verdict = judge(nothing | {"skewness": -1.5}, model)
    assert verdict.in_domain == "yes" and "no particles here" in verdict.reason
    verdict = judge(nothing | {"skewness": 1.0}, model)
    assert verdict.in_domain == "no" and verdict.reason.startswith("The model cannot judge")
    # A range that is wide does not hide a change of sign.
    wide = simple(skewness=(-3, -0.2, 0.1))
    flags = [judge({"skewness": value}, wide).in_domain for value in (0.1, 0.2, 0.5)]
    assert flags == ["yes", "doubtful", "no"]


def test_larger_voxels_than_the_model_has_seen():
    model = simple(skewness=(-3, -2, -1))
    verdict = judge({"given_voxel_size_angstrom": 13.5, "skewness": -2}, model)
    assert verdict.in_domain == "doubtful"
    assert "13.5 A where the model was trained at 9 to 11 A" in verdict.reason
    assert judge({"given_voxel_size_angstrom": 21.0, "skewness": -2}, model).in_domain == "no"
    assert judge({"given_voxel_size_angstrom": 5.0, "skewness": -2}, model).in_domain == "yes"


def test_a_card_without_a_domain_says_that_it_does_not_know():
    verdict = judge({"skewness": 5.0}, card(None))
    assert verdict.in_domain == "unknown" and verdict.distances == {}
    assert judge({"given_voxel_size_angstrom": 40.0}, card(None)).in_domain == "no"
    assert ranges([{"skewness": 1.0}] * 4, source="too few") is None
