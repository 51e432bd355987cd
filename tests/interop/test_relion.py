"""RELION itself (Debian's, 3.1) cuts subtomograms at the places of our files.

It knows nothing of RELION-4's and -5's tomography; their files are read by test_contract.py only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
from dialect_contract import ROOT, Case, table_of
from needed import absent
from numpy.typing import NDArray
from PIL import Image

from tomoline.export.dialect import TomogramParticles, selected
from tomoline.export.geometry import TomogramGeometry
from tomoline.export.registry import DIALECTS
from tomoline.settings import DatasetSettings, ExportSettings

BOX = 16
SHAPES = {"even": (56, 60, 64), "odd": (57, 61, 63)}  # z, y, x
# z, y, x: between voxels, in every direction, a box apart; a dot is where the nearest voxel is
PLACES = np.array(
    [(12.2, 14.0, 16.4), (30.49, 32.51, 15.8), (45.0, 20.7, 48.0), (21.7, 50.3, 39.6)]
)
VOXEL = 5.4
DATASET = DatasetSettings(name="d", sheet="d.tsv", tilt_series_pixel_size_angstrom=1.35)


def relion(program: str, *arguments: str, folder: Path) -> str:
    """Run a program of RELION; skip where it is not."""
    if shutil.which(program) is None:
        absent(f"{program} is not here (apt-get install relion)")
    done = subprocess.run(
        [program, *arguments],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def tomogram(folder: Path, name: str, size: str) -> TomogramParticles:
    """A tomogram with a bright dot, less bright ones beside it in x, y and z, at each place."""
    shape = SHAPES[size]
    rng = np.random.default_rng(len(name))
    volume = rng.normal(0, 1, shape).astype(np.float32)
    for z, y, x in np.rint(PLACES).astype(int):
        volume[z, y, x] = 100
        volume[z, y, x + 1], volume[z, y + 1, x], volume[z + 1, y, x] = 60, 40, 20
    path = folder / f"{name}.mrc"
    with mrcfile.new(path) as file:
        file.set_data(volume)
        file.voxel_size = VOXEL
        file.header.origin = (311.5, -207.25, 55.0)
    return TomogramParticles(
        tilt_series=name,
        particles=table_of(PLACES, Case(size, 4)),
        geometry=TomogramGeometry.of_given(shape, VOXEL, DATASET),
        dataset=DATASET,
        source=path,
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tomograms and our files of them."""
    folder = tmp_path_factory.mktemp("relion")
    settings = ExportSettings()
    given = [selected(tomogram(folder, f"TS_{n}", n), settings) for n in ("even", "odd")]
    DIALECTS["relion3"].write_combined(given, folder / "relion3", settings)
    return folder


@pytest.fixture(scope="module")
def extracted(project: Path) -> list[NDArray[np.float32]]:
    """The boxes that RELION cut, in the order of its own list of them."""
    relion(
        "relion_preprocess", "--i", "relion3/micrographs.star", "--coord_dir", "relion3/coords/",
        "--coord_suffix", "_tomoline.star", "--extract", "--extract_size", str(BOX),
        "--part_dir", "Extract/", "--part_star", "Extract/particles.star", folder=project,
    )  # fmt: skip
    listed = starfile.read(project / "Extract" / "particles.star", always_dict=True)["particles"]
    boxes = []
    for name in listed["rlnImageName"]:
        with mrcfile.open(project / name, permissive=True) as file:
            boxes.append(np.array(file.data))
    return boxes


def test_what_relion_cuts_has_the_particle_in_the_middle(
    extracted: Sequence[NDArray[np.float32]],
) -> None:
    """RELION's middle of an even box is voxel size / 2; the neighbours tell the axes apart."""
    assert len(extracted) == 2 * len(PLACES)
    c = BOX // 2
    for box in extracted:
        assert box.shape == (BOX, BOX, BOX)
        assert box[c, c, c] > 90
        assert np.unravel_index(box.argmax(), box.shape) == (c, c, c)
        beside = [box[c, c, c + 1], box[c, c + 1, c], box[c + 1, c, c]]
        np.testing.assert_allclose(beside, [60, 40, 20], atol=6)


def test_relion_keeps_the_rest_of_the_place_class_and_score(
    project: Path, extracted: Sequence[NDArray[np.float32]]
) -> None:
    """Coordinate less origin is the particle's place between voxels, in RELION's own list too."""
    listed = starfile.read(
        project / "Extract" / "particles.star", always_dict=True,
        parse_as_string=["tomolineClassName"],
    )["particles"]  # fmt: skip
    zyx = listed[[f"rlnCoordinate{axis}" for axis in "ZYX"]].to_numpy(float)
    origin = listed[[f"rlnOrigin{axis}Angst" for axis in "ZYX"]].to_numpy(float)
    np.testing.assert_allclose(zyx - origin / VOXEL, [*PLACES, *PLACES], atol=1e-5)
    assert list(listed["tomolineClassName"][:4]) == ["1bxn", "4e10", "ribosome", "1bxn"]
    assert list(listed["rlnAutopickFigureOfMerit"][:2]) == [0.95, 0.9]


def test_relion_would_have_cut_off_fractions(project: Path, tmp_path: Path) -> None:
    """Why our coordinates are whole: given 13.7, this RELION's box is centred on 13."""
    path = next((project / "relion3" / "coords").rglob("TS_even_tomoline.star"))
    table = next(iter(starfile.read(path, always_dict=True).values())).iloc[:1].copy()
    table["rlnCoordinateX"] += 0.7
    other = tmp_path / path.relative_to(project / "relion3")
    other.parent.mkdir(parents=True)
    starfile.write(table, other)
    first = starfile.read(project / "relion3" / "micrographs.star", always_dict=True)
    first["micrographs"] = first["micrographs"].iloc[:1]
    starfile.write(first, tmp_path / "micrographs.star")
    relion(
        "relion_preprocess", "--i", "micrographs.star", "--coord_dir", "coords/", "--coord_suffix",
        "_tomoline.star", "--extract", "--extract_size", str(BOX), "--part_dir", "Extract/",
        "--part_star", "Extract/particles.star", folder=tmp_path,
    )  # fmt: skip
    listed = starfile.read(tmp_path / "Extract" / "particles.star", always_dict=True)["particles"]
    with mrcfile.open(tmp_path / listed["rlnImageName"].iloc[0], permissive=True) as file:
        assert file.data[8, 8, 8] > 90  # still the dot, as if nothing had been added


def test_picture_of_what_relion_cut(
    extracted: Sequence[NDArray[np.float32]], tmp_path: Path
) -> None:
    """The docs' picture can be made again: set TOMOLINE_PICTURES=1."""
    wanted = bool(os.environ.get("TOMOLINE_PICTURES"))
    path = ROOT / "docs" / "pictures" / "relion_cut.png" if wanted else tmp_path / "cut.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(extracted).save(path, optimize=True)
    assert path.stat().st_size < 100_000


def contact_sheet(boxes: Sequence[NDArray[np.float32]], zoom: int = 6) -> Image.Image:
    """Middle slices in z, y and x below each other, a box a column, a cross at the middle."""
    c, gap, edge = BOX // 2, 4, BOX * zoom
    width, height = len(boxes) * (edge + gap) + gap, 3 * (edge + gap) + gap
    sheet = np.full((height, width, 3), 255, np.uint8)
    for column, box in enumerate(boxes):
        for row, cut in enumerate((box[c], box[:, c], box[:, :, c])):
            grey = np.clip((cut + 10) / 110 * 255, 0, 255).astype(np.uint8)
            tile = np.repeat(np.repeat(grey, zoom, 0), zoom, 1)[..., None].repeat(3, 2)
            middle = c * zoom + zoom // 2
            for a, b in ((0, middle - zoom), (middle + zoom, edge)):
                tile[middle, a:b] = tile[a:b, middle] = (200, 60, 30)
            y, x = gap + row * (edge + gap), gap + column * (edge + gap)
            sheet[y : y + edge, x : x + edge] = tile
    return Image.fromarray(sheet)
