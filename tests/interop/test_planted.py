"""The geometry of exports by calculation: centres, ways of binning, sizes, the user's page.

That every dialect puts particles where they were planted, test_contract.py has.
"""

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


@pytest.mark.parametrize("centre", ["picker", "cpp"])
@pytest.mark.parametrize("shape", [(16, 20, 24), (15, 21, 33)])
def test_a_binning_that_is_not_whole(
    shape: tuple[int, int, int], centre: str, tmp_path: Path
) -> None:
    """7.4 times; whole ones are in test_contract.py."""
    settings = ExportSettings(relion_centre=centre)
    given = selected(tomogram(shape, 7.4), settings)
    path = tmp_path / "relion5.star"
    DIALECTS["relion5"].write(given, path, settings)
    particles = starfile.read(path, always_dict=True)["particles"]
    xyz = particles[[f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ"]].to_numpy(float)
    half = np.array(shape)[::-1] * 7.4 / 2 - (centre == "picker")
    zyx = (xyz / PIXEL + half)[:, ::-1] / 7.4
    np.testing.assert_allclose(zyx, given.zyx_vox(), atol=2e-6)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", DIALECTS)
def test_same_input_same_bytes(name: str, tmp_path: Path) -> None:
    settings, dialect = ExportSettings(), DIALECTS[name]
    written = []
    for _ in range(2):
        given = selected(tomogram((16, 20, 24), 4), settings)
        dialect.write(given, tmp_path / "one" / dialect.file_name, settings)
        dialect.write_combined([given], tmp_path / "all", settings)
        written.append(contents(tmp_path))
    assert written[0] == written[1]
    assert len(written[0]) >= 2


@pytest.mark.parametrize("name", ["relion5", "relion4", "relion3", "warp", "csv"])
def test_empty_tomogram_gives_a_valid_file(name: str, tmp_path: Path) -> None:
    """Those of the other dialects have no columns; test_import.py reads all of them."""
    for file, score in (("full", 0.0), ("empty", 1.0)):
        settings = ExportSettings(min_score=score)
        given = selected(tomogram((16, 20, 24), 4), settings)
        DIALECTS[name].write(given, tmp_path / file, settings)
    if name == "csv":
        full, empty = pd.read_csv(tmp_path / "full"), pd.read_csv(tmp_path / "empty")
    else:
        blocks = [starfile.read(tmp_path / f, always_dict=True) for f in ("full", "empty")]
        full, empty = (next(iter(block.values())) for block in blocks)
    if name in ("relion5", "relion4"):
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
