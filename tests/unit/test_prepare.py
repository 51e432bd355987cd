"""prepare: what goes in is checked, what comes out has the model's scale, contrast and place."""

import gzip
import json
import logging
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.ndimage import map_coordinates
from scipy.optimize import least_squares

from tomoline.contracts import VolumeTransform
from tomoline.errors import InputError, ToolError
from tomoline.io import imod
from tomoline.io.mrc import open_volume, read_header, write_volume
from tomoline.ops.normalise import normalise
from tomoline.settings import PrepareSettings
from tomoline.stages import prepare

SHAPE = (40, 52, 61)
CENTRE = np.array([18.3, 30.6, 22.9])
OUTPUTS = {"volume": "prepared.mrc", "transform": "prepared.json", "picture": "middle.png"}


def particle(*, sd: float = 6.0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """One dark Gaussian, broad enough not to be clipped where it is fitted."""
    grid = np.meshgrid(
        *(np.arange(n) - c for n, c in zip(shape, CENTRE, strict=True)), indexing="ij"
    )
    return -np.exp(-sum(np.square(g) for g in grid) / (2 * sd**2)).astype(np.float32)


def fitted_centre(prepared: np.ndarray) -> np.ndarray:
    """Place of the Gaussian by least squares, from voxels that are not clipped."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in prepared.shape), indexing="ij"), -1)
    use = (prepared < 0.3 * prepared.min()) & (prepared > -9.9)
    places, values = grid[use].astype(float), prepared[use].astype(float)

    def misfit(p: np.ndarray) -> np.ndarray:
        return p[0] + p[1] * np.exp(-np.square(places - p[2:5]).sum(1) / (2 * p[5] ** 2)) - values

    start = [0.0, values.min(), *places.mean(0), places.std()]
    return np.asarray(least_squares(misfit, start).x[2:5])


class Bench:
    """A folder with a card, in which tomograms are prepared."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.card = folder / "model" / "card.yaml"
        self.card.parent.mkdir()
        card = {
            "name": "finder",
            "network": "msdnet",
            "parameters": {},
            "role": "localizer",
            "classes": ["background", "particle"],
            "voxel_size_angstrom": 10.0,
            "voxel_size_range_angstrom": [8.0, 13.0],
            "threshold": 0.5,
            "bandwidth_vox": 3.0,
            "receptive_field_vox": 15,
            "n_parameters": 1,
        }
        self.card.write_text(yaml.safe_dump(card))

    def write(self, volume: np.ndarray, voxel: float = 10.0) -> Path:
        path = self.folder / "given.mrc"
        write_volume(path, volume, voxel)
        return path

    def run(
        self,
        path: Path,
        *,
        settings: dict[str, Any] | None = None,
        axes: str = "xyz",
        dataset_axes: str = "auto",
        **dataset: Any,
    ) -> tuple[np.ndarray, VolumeTransform]:
        outputs = {key: self.folder / "out" / name for key, name in OUTPUTS.items()}
        prepare.run(
            {"tomogram": path, "model": self.card},
            outputs,
            settings=PrepareSettings(**(settings or {})),
            dataset={"contrast": "dark", "axes": dataset_axes, "voxel_size_angstrom": None}
            | dataset,
            axes=axes,
        )
        return np.array(open_volume(outputs["volume"])), VolumeTransform.load(outputs["transform"])

    def refused(self, path: Path, *words: str, **how: Any) -> None:
        shutil.rmtree(self.folder / "out", ignore_errors=True)
        with pytest.raises(InputError) as caught:
            self.run(path, **how)
        for word in (str(path), "Remedy", *words):
            assert word in str(caught.value)
        out = self.folder / "out"
        assert not out.exists() or list(out.iterdir()) == []


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def dark_centre(prepared: np.ndarray) -> np.ndarray:
    """Centre of the dark particle, by moments of what is clearly darker than the noise."""
    mass = np.where(prepared < 0.05 * prepared.min(), -prepared, 0).astype(float)
    grid = np.meshgrid(*(np.arange(n) for n in prepared.shape), indexing="ij")
    return np.array([(mass * g).sum() / mass.sum() for g in grid])


# --- what comes out


def test_the_models_voxel_size_leaves_the_voxels_where_they_are(bench: Bench) -> None:
    given = particle()
    prepared, transform = bench.run(bench.write(given))
    np.testing.assert_array_equal(prepared, normalise(given))
    assert transform.given_shape_zyx == transform.prepared_shape_zyx == SHAPE
    assert transform.scale_zyx == (1, 1, 1)
    assert transform.offset_zyx == (0, 0, 0)
    assert transform.prepared_voxel_size_angstrom == 10
    assert read_header(bench.folder / "out" / "prepared.mrc").voxel_size_angstrom == 10


@pytest.mark.parametrize("voxel", [7.84, 13.48, 5.0, 20.0])
def test_positions_go_back_to_the_given_voxels(bench: Bench, voxel: float) -> None:
    prepared, transform = bench.run(bench.write(particle(), voxel))
    assert transform.scale_zyx == pytest.approx((10 / voxel,) * 3, rel=5e-4)
    assert transform.prepared_voxel_size_angstrom == pytest.approx(10, rel=5e-4)
    assert transform.prepared_shape_zyx == prepared.shape
    back = transform.to_given(fitted_centre(prepared)[None])
    np.testing.assert_allclose(back[0], CENTRE, atol=0.01)


def test_bright_particles_become_dark(bench: Bench) -> None:
    dark, _ = bench.run(bench.write(particle()))
    turned, transform = bench.run(bench.write(-particle()), contrast="bright")
    np.testing.assert_allclose(turned, dark, atol=1e-5)
    assert transform.contrast == "bright"
    assert transform.quality["skewness"] < -0.4


def test_a_contrast_the_picture_belies_is_told(bench: Bench) -> None:
    _, transform = bench.run(bench.write(-particle()))
    assert any("contrast" in warning for warning in transform.warnings)


def test_tilts_own_order_is_turned(bench: Bench) -> None:
    upright, _ = bench.run(bench.write(particle()))
    raw = np.ascontiguousarray(particle()[::-1].transpose(1, 0, 2))
    turned, transform = bench.run(bench.write(raw), axes="xzy")
    np.testing.assert_array_equal(turned, upright)
    assert transform.axes == "xzy"
    assert transform.file_shape == raw.shape
    assert transform.given_shape_zyx == SHAPE
    by_dataset, _ = bench.run(bench.write(raw), axes="xyz", dataset_axes="xzy")
    np.testing.assert_array_equal(by_dataset, upright)


def test_within_the_tolerance_nothing_is_rescaled(bench: Bench) -> None:
    prepared, transform = bench.run(bench.write(particle(), 10.2))
    assert transform.scale_zyx == (1, 1, 1)
    assert transform.prepared_voxel_size_angstrom == 10.2
    np.testing.assert_array_equal(prepared, normalise(particle()))


def test_never_rescale(bench: Bench) -> None:
    never = {"rescale": "never"}
    _, transform = bench.run(bench.write(particle(), 12.0), settings=never)  # the card allows it
    assert transform.scale_zyx == (1, 1, 1)
    bench.refused(bench.write(particle(), 5.0), "8 to 13", "5 angstrom", settings=never)


def test_same_input_same_bytes(bench: Bench) -> None:
    path = bench.write(particle(), 7.84)
    files = [bench.folder / "out" / name for name in OUTPUTS.values()]
    bench.run(path)
    first = [file.read_bytes() for file in files]
    bench.run(path)
    assert [file.read_bytes() for file in files] == first
    assert sorted(p.name for p in (bench.folder / "out").iterdir()) == sorted(OUTPUTS.values())


def test_compressed_and_plain_give_the_same(bench: Bench) -> None:
    plain = bench.write(particle(), 7.84)
    expected, _ = bench.run(plain)
    packed = bench.folder / "given.mrc.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    np.testing.assert_array_equal(bench.run(packed)[0], expected)


def test_quality_figures(bench: Bench) -> None:
    given = particle() * 3 + 7
    _, transform = bench.run(bench.write(given))
    quality = transform.quality
    assert quality["given_mean"] == pytest.approx(given.mean(), rel=1e-5)
    assert quality["given_sd"] == pytest.approx(given.std(), rel=1e-4)
    assert (quality["given_min"], quality["given_max"]) == (given.min(), given.max())
    assert quality["not_finite_share"] == 0
    assert quality["depth_vox"] == 40
    assert quality["thin"] is True  # 400 angstrom
    assert 0 <= quality["clipped_share"] < 0.01
    assert quality["header_voxel_size_xyz_angstrom"] == [10, 10, 10]
    assert any("thin" in warning for warning in transform.warnings)
    json.loads((bench.folder / "out" / "prepared.json").read_text())


def test_the_picture_is_a_grey_png_with_y_upwards(bench: Bench) -> None:
    bench.run(bench.write(particle()))
    raw = (bench.folder / "out" / "middle.png").read_bytes()
    assert raw.startswith(b"\x89PNG\r\n\x1a\n")
    assert raw[16:24] == np.array([61, 52], ">u4").tobytes()
    start = raw.index(b"IDAT") + 4
    rows = np.frombuffer(zlib.decompress(raw[start:-16]), np.uint8).reshape(52, 62)[:, 1:]
    darkest = np.argwhere(rows == rows.min()).mean(axis=0)
    np.testing.assert_allclose(darkest, (51 - CENTRE[1], CENTRE[2]), atol=1.5)


# --- bad input


def changed(path: Path, offset: int, values: np.ndarray) -> Path:
    raw = bytearray(path.read_bytes())
    raw[offset : offset + values.nbytes] = values.tobytes()
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("voxel", [0.0, 1.0])
def test_no_voxel_size(bench: Bench, voxel: float, caplog: pytest.LogCaptureFixture) -> None:
    path = bench.write(particle(), voxel)
    bench.refused(path, "voxel_size_angstrom")
    with caplog.at_level(logging.WARNING):
        _, transform = bench.run(path, voxel_size_angstrom=10.0)
    assert transform.given_voxel_size_angstrom == 10
    assert any("dataset's" in warning for warning in transform.warnings)
    assert "dataset's" in caplog.text


def test_the_dataset_beats_a_header_that_disagrees(bench: Bench) -> None:
    _, transform = bench.run(bench.write(particle(), 10.0), voxel_size_angstrom=12.0)
    assert transform.given_voxel_size_angstrom == 12
    assert transform.scale_zyx == pytest.approx((10 / 12,) * 3, rel=5e-4)
    assert any("disagrees" in warning for warning in transform.warnings)
    _, transform = bench.run(bench.write(particle(), 10.0), voxel_size_angstrom=10.01)
    assert not any("disagrees" in warning for warning in transform.warnings)


def test_anisotropic_voxels(bench: Bench) -> None:
    path = changed(bench.write(particle()), 48, np.array([40 * 12.5], "<f4"))
    bench.refused(path, "10 x 10 x 12.5", "voxel_size_angstrom")
    _, transform = bench.run(path, voxel_size_angstrom=10.0)
    assert transform.given_voxel_size_angstrom == 10


def test_voxels_coarser_than_the_models_are_told(bench: Bench) -> None:
    _, transform = bench.run(bench.write(particle(), 20.0))
    assert any("coarser" in warning for warning in transform.warnings)


def test_a_few_bad_voxels_are_repaired_and_told(bench: Bench) -> None:
    given = particle()
    given[0, 0, :3] = np.nan, np.inf, -np.inf
    prepared, transform = bench.run(bench.write(given))
    assert np.isfinite(prepared).all()
    assert transform.quality["not_finite_share"] == pytest.approx(3 / given.size)
    assert any("NaN" in warning for warning in transform.warnings)


def test_many_bad_voxels_are_refused(bench: Bench) -> None:
    given = particle()
    given[:2] = np.nan
    bench.refused(bench.write(given), "NaN", "0.05")
    _, transform = bench.run(bench.write(given), settings={"max_out_of_range": 0.1})
    assert transform.quality["not_finite_share"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("fill", "word"),
    [
        (lambda volume: volume.fill(3), "every voxel is 3"),
        (lambda volume: volume.fill(np.nan), "NaN"),
        (lambda volume: (volume.fill(0), volume.__setitem__((0, 0, 0), 1)), "99%"),
    ],
)
def test_empty_volumes(bench: Bench, fill: Callable[[np.ndarray], Any], word: str) -> None:
    volume = particle()
    fill(volume)
    bench.refused(bench.write(volume), word)


def test_truncated_and_foreign_files(bench: Bench) -> None:
    path = bench.write(particle())
    path.write_bytes(path.read_bytes()[:-100])
    bench.refused(path, "truncated")
    path.write_text("not a tomogram\n" * 100)
    bench.refused(path, "text")


def test_an_image_is_no_tomogram(bench: Bench) -> None:
    bench.refused(bench.write(particle()[:1]), "61 x 52 x 1")


@pytest.mark.parametrize("shape", [(5, 33, 47), (31, 9, 64), (17, 17, 17)])
def test_thin_odd_and_small_volumes(bench: Bench, shape: tuple[int, int, int]) -> None:
    volume = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    prepared, transform = bench.run(bench.write(volume, 7.0))
    assert transform.prepared_shape_zyx == prepared.shape
    assert np.isfinite(prepared).all()


# --- IMOD


def test_without_imod_the_imod_route_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("IMOD_DIR", raising=False)
    with pytest.raises(ToolError, match="IMOD"):
        bench.run(bench.write(particle(), 5.0), settings={"imod": True})


def stand_in_rotation(source: Path, target: Path) -> None:
    volume = np.array(open_volume(source))
    write_volume(target, volume.transpose(1, 0, 2)[::-1].copy(), 5.0)


def stand_in_binning(source: Path, target: Path, factor: int) -> imod.Geometry:
    volume = np.array(open_volume(source))
    nz, ny, nx = (n // factor for n in volume.shape)
    cut = volume[: nz * factor, : ny * factor, : nx * factor]
    binned = cut.reshape(nz, factor, ny, factor, nx, factor).mean(axis=(1, 3, 5))
    write_volume(target, binned.astype(np.float32), 5.0 * factor)
    return imod.Geometry(scale_zyx=(factor,) * 3, offset_zyx=((factor - 1) / 2,) * 3)


def stand_in_scaling(source: Path, target: Path, scale: float) -> imod.Geometry:
    volume = np.array(open_volume(source))
    corner = 0.4  # newstack centres what does not divide evenly
    sizes = [int(n / scale) for n in volume.shape[1:]]
    y, x = ((np.arange(n) + 0.5) * scale - 0.5 + corner for n in sizes)
    grid = np.stack(np.meshgrid(y, x, indexing="ij"))
    sections = [map_coordinates(section, grid, order=3, mode="nearest") for section in volume]
    write_volume(target, np.stack(sections).astype(np.float32), 10.0)
    offset = (scale - 1) / 2 + corner
    return imod.Geometry(scale_zyx=(1.0, scale, scale), offset_zyx=(0.0, offset, offset))


@pytest.mark.parametrize(
    ("voxel", "axes"), [(5.0, "xyz"), (5.0, "xzy"), (7.84, "xzy"), (13.0, "xyz")]
)
def test_the_imod_route_gives_the_same_positions(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, voxel: float, axes: str
) -> None:
    monkeypatch.setattr(imod, "rotate_rx", stand_in_rotation)
    monkeypatch.setattr(imod, "bin_volume", stand_in_binning)
    monkeypatch.setattr(imod, "scale_sections", stand_in_scaling)
    given = particle()
    if axes == "xzy":
        given = np.ascontiguousarray(given[::-1].transpose(1, 0, 2))
    path = bench.write(given, voxel)
    prepared, transform = bench.run(path, axes=axes, settings={"imod": True})
    back = transform.to_given(fitted_centre(prepared)[None])
    np.testing.assert_allclose(back[0], CENTRE, atol=0.02)
    _, native = bench.run(path, axes=axes)
    assert transform.given_shape_zyx == native.given_shape_zyx
    assert transform.scale_zyx == pytest.approx(native.scale_zyx, rel=1e-3)
    left = {p.name for p in (bench.folder / "out").iterdir()}
    assert left == set(OUTPUTS.values())


# --- files of other people's programs


@pytest.mark.shared
def test_tilts_output_gives_the_same_volume_as_trimvols(bench: Bench, shared_data: Path) -> None:
    folder = shared_data / "tomograms"
    turned, transform = bench.run(folder / "pn_a_01.mrc")
    raw, raw_transform = bench.run(folder / "pn_a_01_imodraw.mrc", axes="xzy")
    np.testing.assert_array_equal(raw, turned)
    assert raw_transform.given_shape_zyx == transform.given_shape_zyx == (128, 256, 256)
    assert transform.warnings == ()
    assert transform.quality["skewness"] < 0


@pytest.mark.shared
@pytest.mark.parametrize("name", ["13pf_MT", "14pf_MT"])
def test_real_bright_thin_tomograms(bench: Bench, shared_data: Path, name: str) -> None:
    path = shared_data / "real" / f"{name}.mrc"
    _, transform = bench.run(path, contrast="bright")
    assert transform.scale_zyx == pytest.approx((10 / 10.52,) * 3, rel=5e-4)
    assert transform.quality["thin"] is True
    assert transform.quality["skewness"] < 0
    assert not any("contrast" in warning for warning in transform.warnings)
    _, wrong = bench.run(path, contrast="dark")
    assert any("contrast" in warning for warning in wrong.warnings)
