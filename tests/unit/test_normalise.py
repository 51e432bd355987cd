"""The grey scale of the networks: mean 0, SD 1, robust, the same bytes every time."""

import numpy as np
import pytest

from tomoline.ops import normalise as module
from tomoline.ops.normalise import apply_scale, clipped_share, normalise, repair, robust_scale

# A normal distribution cut at its 0.5 and 99.5 percentiles has this SD.
CUT_NORMAL_SD = 0.9600


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return np.random.default_rng(3).normal(50, 4, (40, 50, 60)).astype(np.float32)


def test_mean_and_sd_of_the_inner_99_percent(noise: np.ndarray) -> None:
    scale = robust_scale(noise)
    assert scale.mean == pytest.approx(50, abs=0.05)
    assert scale.sd == pytest.approx(4 * CUT_NORMAL_SD, rel=0.01)


def test_result_is_float32_with_unit_scale(noise: np.ndarray) -> None:
    out = normalise(noise)
    assert out.dtype == np.float32
    assert out.mean() == pytest.approx(0, abs=0.01)
    assert out.std() == pytest.approx(1 / CUT_NORMAL_SD, rel=0.01)


def test_outliers_do_not_move_the_scale_and_are_clipped(noise: np.ndarray) -> None:
    hot = noise.copy()
    hot[0, 0, :20] = 1e6
    hot[1, 0, :20] = -1e6
    out = normalise(hot)
    assert out.max() == 10
    assert out.min() == -10
    np.testing.assert_allclose(out[5:], normalise(noise)[5:], atol=0.01)
    assert clipped_share(out) == pytest.approx(40 / hot.size)


def test_invert_changes_the_sign_only(noise: np.ndarray) -> None:
    np.testing.assert_array_equal(normalise(noise, invert=True), -normalise(noise))


def test_in_place_is_the_same(noise: np.ndarray) -> None:
    own = noise.copy()
    result = apply_scale(own, robust_scale(own), out=own)
    assert result is own
    np.testing.assert_array_equal(own, normalise(noise))


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint16, np.float16, np.float64])
def test_any_type_and_scale_gives_the_same_picture(dtype: type) -> None:
    values = np.random.default_rng(0).integers(0, 100, (8, 9, 10))
    np.testing.assert_allclose(
        normalise(values.astype(dtype)), normalise(values * 3.0 + 1000), atol=1e-5
    )


def test_a_large_offset_costs_no_digits(noise: np.ndarray) -> None:
    np.testing.assert_allclose(
        normalise(noise.astype(np.float64) + 1e7), normalise(noise), atol=1e-5
    )


def test_bytes_do_not_depend_on_memory_layout(noise: np.ndarray) -> None:
    first = normalise(noise).tobytes()
    assert normalise(noise).tobytes() == first
    assert normalise(np.asfortranarray(noise)).tobytes() == first


def test_blocks_and_sampling_change_nothing_that_matters(
    noise: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = normalise(noise)
    monkeypatch.setattr(module, "SAMPLE_VOXELS", 20_000)
    monkeypatch.setattr(module.blocks, "__defaults__", (3000,))
    np.testing.assert_allclose(normalise(noise), whole, atol=0.03)


def test_a_constant_volume_becomes_zero() -> None:
    assert robust_scale(np.full((3, 3, 3), 7.0)).sd == 0
    np.testing.assert_array_equal(normalise(np.full((3, 3, 3), 7.0)), 0)


def test_bad_voxels_become_the_mean(noise: np.ndarray) -> None:
    bad = noise.copy()
    bad[2, 3, 4], bad[5, 6, 7] = np.nan, np.inf
    mended, share = repair(bad)
    assert share == pytest.approx(2 / bad.size)
    good = np.isfinite(bad)
    np.testing.assert_array_equal(mended[good], bad[good])
    assert mended[2, 3, 4] == pytest.approx(bad[good].mean(), rel=1e-5)
    assert np.isnan(bad[2, 3, 4])  # the given array is left alone
    out = normalise(bad)
    assert out[2, 3, 4] == 0
    assert np.isfinite(out).all()


def test_repair_leaves_good_and_integer_volumes_alone(noise: np.ndarray) -> None:
    assert repair(noise)[0] is noise
    whole = np.zeros((2, 2, 2), np.int16)
    assert repair(whole) == (whole, 0.0)


def test_nothing_finite() -> None:
    mended, share = repair(np.full((2, 2, 2), np.nan))
    assert share == 1
    np.testing.assert_array_equal(mended, 0)
    with pytest.raises(ValueError, match="finite"):
        normalise(np.full((2, 2, 2), np.nan))
