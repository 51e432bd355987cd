"""Particles planted at known places, written in every dialect and read back by others' rules.

The reading side below shares no code with the writing side: it repeats what the target program
does with the file, from unbinned pixels and sizes, and must arrive at the planted voxels.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import starfile

from tomoline.contracts import PARTICLE_COLUMNS, VolumeTransform
from tomoline.export.dialect import TomogramParticles, selected
from tomoline.export.geometry import TomogramGeometry
from tomoline.export.registry import DIALECTS
from tomoline.settings import DatasetSettings, ExportSettings

CLASSES = ["1bxn", "4e10", "ribosome"]  # the second looks like a number
PIXEL = 1.35


def planted(shape: tuple[int, int, int], binning: float) -> pd.DataFrame:
    """Particles at the corners, the centre and a sub-voxel place, the last one rejected."""
    nz, ny, nx = shape
    zyx = np.array(
        [
            (0, 0, 0),
            (nz - 1, ny - 1, nx - 1),
            ((nz - 1) / 2, (ny - 1) / 2, (nx - 1) / 2),
            (1.25, 2.5, 3.125),
            (5, 5, 5),
        ]
    )
    n = len(zyx)
    table = pd.DataFrame(
        {
            "tomogram": ["t1"] * n,
            "particle_id": range(1, n + 1),
            "z_vox": zyx[:, 0],
            "y_vox": zyx[:, 1],
            "x_vox": zyx[:, 2],
            "voxel_size_angstrom": PIXEL * binning,
            "tomogram_nz": nz,
            "tomogram_ny": ny,
            "tomogram_nx": nx,
            "binning": binning,
            "status": ["accepted"] * (n - 1) + ["rejected"],
            "reason": [""] * (n - 1) + ["too small"],
            "score": [0.9, 0.8, 0.7, 0.6, 0.5],
            "size_vox": 30,
            "class": ["1bxn", "4e10", "ribosome", "1bxn", ""],
            "vote_share": 0.9,
            "margin": 0.5,
            **{f"p_{name}": 0.25 for name in CLASSES},
        }
    )
    assert list(table.columns[: len(PARTICLE_COLUMNS)]) == list(PARTICLE_COLUMNS)
    return table


def tomogram(shape: tuple[int, int, int], binning: float, **dataset: object) -> TomogramParticles:
    settings = DatasetSettings.model_validate(
        {"name": "d", "sheet": "d.tsv", "tilt_series_pixel_size_angstrom": PIXEL} | dataset
    )
    transform = VolumeTransform(
        source="t1.mrc", file_shape=shape, given_shape_zyx=shape, prepared_shape_zyx=shape,
        given_voxel_size_angstrom=PIXEL * binning, prepared_voxel_size_angstrom=10.0,
        scale_zyx=(1.0, 1.0, 1.0),
    )  # fmt: skip
    return TomogramParticles(
        tilt_series="TS_1",
        particles=planted(shape, binning),
        geometry=TomogramGeometry.of(transform, settings),
        dataset=settings,
    )


def read_relion5(path: Path, shape: tuple[int, int, int], binning: float, centre: str):
    """RELION-5: coordinate / pixel + centre = unbinned pixel; voxel = that / binning."""
    blocks = starfile.read(path, always_dict=True, parse_as_string=["tomolineClassName"])
    pixel = float(blocks["optics"]["rlnTomoTiltSeriesPixelSize"].iloc[0])
    size = np.array(shape)[::-1] * binning  # rlnTomoSizeX, Y, Z
    offset = size / 2 - 1 if centre == "picker" else size / 2
    names = [f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ"]
    xyz = blocks["particles"][names].to_numpy(float) / pixel + offset
    return xyz[:, ::-1] / binning, list(blocks["particles"]["tomolineClassName"])


def read_relion4(path: Path, shape: tuple[int, int, int], binning: float, centre: str):
    """RELION-4: unbinned pixels from the corner."""
    blocks = starfile.read(path, always_dict=True, parse_as_string=["tomolineClassName"])
    xyz = blocks["particles"][[f"rlnCoordinate{axis}" for axis in "XYZ"]].to_numpy(float)
    return xyz[:, ::-1] / binning, list(blocks["particles"]["tomolineClassName"])


def read_csv(path: Path, shape: tuple[int, int, int], binning: float, centre: str):
    """CSV: voxels of the given tomogram."""
    table = pd.read_csv(path, dtype={"class": str})
    return table[["z_vox", "y_vox", "x_vox"]].to_numpy(float), list(table["class"])


READERS: dict[str, Callable] = {"relion5": read_relion5, "relion4": read_relion4, "csv": read_csv}


def test_every_dialect_has_its_reader() -> None:
    assert set(READERS) == set(DIALECTS)


@pytest.mark.parametrize("centre", ["picker", "cpp"])
@pytest.mark.parametrize("binning", [1, 2, 4, 8, 7.4])
@pytest.mark.parametrize("shape", [(16, 20, 24), (15, 21, 33)])
@pytest.mark.parametrize("name", DIALECTS)
def test_planted_particles_come_back(
    name: str, shape: tuple[int, int, int], binning: float, centre: str, tmp_path: Path
) -> None:
    settings = ExportSettings(relion_centre=centre)
    given = selected(tomogram(shape, binning), settings)
    path = tmp_path / DIALECTS[name].file_name
    DIALECTS[name].write(given, path, settings)
    zyx, classes = READERS[name](path, shape, binning, centre)
    wanted = planted(shape, binning).iloc[:4]
    np.testing.assert_allclose(zyx, wanted[["z_vox", "y_vox", "x_vox"]], atol=2e-6)
    assert classes == list(wanted["class"])


@pytest.mark.parametrize("name", DIALECTS)
def test_same_input_same_bytes(name: str, tmp_path: Path) -> None:
    settings = ExportSettings()
    for folder in ("a", "b"):
        given = selected(tomogram((16, 20, 24), 4), settings)
        DIALECTS[name].write(given, tmp_path / folder / "file", settings)
    assert (tmp_path / "a/file").read_bytes() == (tmp_path / "b/file").read_bytes()


@pytest.mark.parametrize("name", DIALECTS)
def test_empty_tomogram_gives_a_valid_file(name: str, tmp_path: Path) -> None:
    settings = ExportSettings(min_score=1.0)
    for reader_of, score in (("full", 0.0), ("empty", 1.0)):
        settings = ExportSettings(min_score=score)
        given = selected(tomogram((16, 20, 24), 4), settings)
        DIALECTS[name].write(given, tmp_path / reader_of, settings)
    if name == "csv":
        full, empty = pd.read_csv(tmp_path / "full"), pd.read_csv(tmp_path / "empty")
    else:
        blocks = [starfile.read(tmp_path / f, always_dict=True) for f in ("full", "empty")]
        full, empty = (block["particles"] for block in blocks)
        assert list(blocks[1]) == ["particles", "optics"]
        assert blocks[1]["optics"]["rlnTomoTiltSeriesPixelSize"].iloc[0] == PIXEL
    assert len(full) == 4
    assert len(empty) == 0
    assert list(empty.columns) == list(full.columns)


def test_the_two_centres_are_one_unbinned_pixel_apart() -> None:
    geometry = tomogram((15, 20, 24), 4).geometry
    origin = np.zeros((1, 3))
    picker = geometry.to_centred_angstrom(origin, centre="picker")
    cpp = geometry.to_centred_angstrom(origin, centre="cpp")
    np.testing.assert_allclose(picker - cpp, PIXEL)
    # The corner voxel's centre lies half the size before the centre: 15 * 4 / 2 pixels in z.
    np.testing.assert_allclose(cpp, [[-30 * PIXEL, -40 * PIXEL, -48 * PIXEL]])


@pytest.mark.parametrize("binning", [1, 2, 3, 4, 8])
def test_averaging_moves_the_centre_of_a_block(binning: int) -> None:
    """A point planted in an unbinned line, which is then averaged in blocks, is found again."""
    at = 5 * binning + (binning - 1) / 2  # the middle of block 5
    line = np.exp(-0.5 * ((np.arange(16 * binning) - at) / (2 * binning)) ** 2)
    averaged = line.reshape(16, binning).mean(axis=1)
    found = float((np.arange(16) * averaged).sum() / averaged.sum())
    shape = (16, 16, 16)
    geometry = tomogram(shape, binning, binned_by="average").geometry
    unbinned = geometry.to_unbinned(np.full((1, 3), found))
    np.testing.assert_allclose(unbinned, at, atol=0.05 * binning)
    np.testing.assert_allclose(geometry.from_unbinned(unbinned), found)


@pytest.mark.parametrize("size", [32, 45])
@pytest.mark.parametrize("binning", [2, 4])
def test_fourier_cropping_leaves_the_first_voxel_where_it_was(size: int, binning: int) -> None:
    """A blob planted in an unbinned line, which is then Fourier cropped, is found again."""
    at, n = 10.0 * binning, size * binning
    line = np.exp(-0.5 * ((np.arange(n) - at) / (1.5 * binning)) ** 2)
    cropped = np.fft.irfft(np.fft.rfft(line)[: size // 2 + 1], n=size) * size / n
    found = float((np.arange(size) * cropped).sum() / cropped.sum())
    geometry = tomogram((size, size, size), binning).geometry
    np.testing.assert_allclose(geometry.to_unbinned(np.full((1, 3), found)), at, atol=1e-3)


def test_a_known_unbinned_size_sets_the_centre() -> None:
    """4001 pixels binned by 4 make 1000 voxels; RELION's centre is then 2000.5, not 2000."""
    shape = (100, 1000, 1000)
    geometry = tomogram(shape, 4, unbinned_size_xyz=(4001, 4000, 400)).geometry
    zero = geometry.to_centred_angstrom(np.zeros((1, 3)), centre="cpp") / PIXEL
    np.testing.assert_allclose(zero, [[-200, -2000, -2000.5]])


def test_the_users_page_works_its_example_as_the_code_does() -> None:
    page = (Path(__file__).parents[2] / "docs" / "coordinates.md").read_text(encoding="utf-8")
    geometry = tomogram((500, 1000, 1000), 4).geometry
    zyx = np.array([(100, 700, 250.25)])
    for centre in ("picker", "cpp"):
        z, y, x = geometry.to_centred_angstrom(zyx, centre=centre)[0]
        assert f"`{centre}`: times 1.35 A | {x:.2f} | {y:.2f} | {z:.2f} |" in page
    z, y, x = geometry.to_unbinned(zyx)[0]
    assert f"(`relion4`) | {x:.0f} | {y:.0f} | {z:.0f} |" in page
