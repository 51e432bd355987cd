"""Particles planted in tomograms of every kind, exported, and read back by others' rules.

For `interop/test_contract.py` and the table of `docs/dialects.md` (run this file to write it). The
reading side shares no code with the writing side: it uses other people's readers where the package
index has one (starfile, dynamotable, imodmodel, copick in an environment of its own) and repeats
what the target program does with the numbers, from sizes, binning and pixel size.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import dynamotable
import mrcfile
import numpy as np
import pandas as pd
import starfile
from numpy.typing import NDArray
from tiny_project import save_threshold_network

from tomoline.contracts import VolumeTransform
from tomoline.export.dialect import TomogramParticles, selected
from tomoline.export.geometry import TomogramGeometry
from tomoline.export.registry import DIALECTS
from tomoline.networks.cards import load_card, write_card
from tomoline.settings import DatasetSettings, ExportSettings, PrepareSettings
from tomoline.stages import prepare

ROOT = Path(__file__).parents[1]
CLASSES = ("1bxn", "4e10", "ribosome")  # the second looks like a number
PIXEL = 1.35
SHAPES = {"even": (20, 24, 28), "odd": (21, 25, 27)}  # z, y, x
CENTRES = ("picker", "cpp")
COPICK_PYTHON = ROOT / ".venv-copick" / "bin" / "python"


@dataclass(frozen=True)
class Case:
    """A kind of tomogram: `turned` is `tilt`'s own output, `origin` a header with an origin."""

    size: str
    binning: int
    origin: bool = False
    turned: bool = False
    centre: str = "picker"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size of the tomogram as later programs see it (z, y, x)."""
        return SHAPES[self.size]

    @property
    def voxel(self) -> float:
        return PIXEL * self.binning


CASES = [
    Case(*values) for values in product(SHAPES, (1, 2, 4, 8), (False, True), (False, True), CENTRES)
]


@dataclass(frozen=True)
class Found:
    """What a reader found: places in voxels of the given tomogram, None for what it cannot hold."""

    zyx: NDArray[np.float64]
    classes: list[str] | None
    scores: list[float] | None


@dataclass(frozen=True)
class File:
    """An exported file with the tomogram that it is of."""

    path: Path
    case: Case
    source: Path


# --- planting ---------------------------------------------------------------------------------


def dots(shape: tuple[int, int, int]) -> NDArray[np.int64]:
    """Voxels (z, y, x) that are dark: corners, the middle and others, all on whole voxels."""
    nz, ny, nx = shape
    places = [(0, 0, 0), (nz - 1, ny - 1, nx - 1), (nz // 2, ny // 2, nx // 2), (3, 7, 11)]
    return np.array([*places, (10, 2, 5)])


def between(shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Places between voxels."""
    return np.array([(1.23456789, 2.5, np.pi), np.array(shape) - (np.e, 1.6180339, 3.9)])


def write_tomogram(path: Path, case: Case) -> None:
    """Write a tomogram with a dark dot at each of `dots`, in the axis order that the case wants.

    `tilt` writes (x, depth, y): section s, row r and column c of it are y = s, z = R - 1 - r and
    x = c of the tomogram that `trimvol -rx` makes of it.
    """
    nz, ny, nx = case.shape
    rng = np.random.default_rng(7)
    volume = rng.normal(0, 0.1, (ny, nz, nx) if case.turned else case.shape).astype(np.float32)
    for z, y, x in dots(case.shape):
        volume[(y, nz - 1 - z, x) if case.turned else (z, y, x)] = -50 - z
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(volume)
        file.voxel_size = case.voxel
        if case.origin:
            file.header.origin = (311.5, -207.25, 55.0)


@cache
def _model(folder: Path) -> Path:
    save_threshold_network(folder, "localizer", ["background", "particle"])
    wide = load_card(folder).model_copy(update={"voxel_size_range_angstrom": (0.1, 100.0)})
    write_card(folder, wide)
    return folder / "card.yaml"


def planted(case: Case, folder: Path) -> TomogramParticles:
    """Prepare a tomogram as the workflow does, find its dots, and make its particle table.

    The dots' places are those in the prepared volume taken back to the given voxels; those between
    voxels are put to them.
    """
    source, transform, volume = (folder / n for n in ("TS_1_rec.mrc", "p.json", "p.mrc"))
    folder.mkdir(parents=True, exist_ok=True)
    write_tomogram(source, case)
    dataset = {"name": "d", "sheet": "d.tsv", "tilt_series_pixel_size_angstrom": PIXEL}
    prepare.run(
        {"tomogram": source, "model": _model(folder.parent / "model")},
        {"volume": volume, "transform": transform, "picture": folder / "p.png"},
        settings=PrepareSettings(rescale="never"),
        dataset=dataset,
        axes="xzy" if case.turned else "xyz",
    )
    with mrcfile.open(volume) as file:
        prepared = np.array(file.data)
    lowest = np.argsort(prepared, axis=None)[: len(dots(case.shape))]
    at = np.stack(np.unravel_index(lowest, prepared.shape), axis=1).astype(float)
    given = VolumeTransform.load(transform)
    zyx = np.concatenate([given.to_given(at), between(case.shape)])
    settings = DatasetSettings.model_validate(dataset)
    return TomogramParticles(
        tilt_series="TS_1",
        particles=table_of(zyx, case),
        geometry=TomogramGeometry.of(given, settings),
        dataset=settings,
        source=source,
        is_turned=case.turned,
    )


def table_of(zyx: NDArray[np.float64], case: Case) -> pd.DataFrame:
    """A particle table of accepted particles at these places, and a rejected one."""
    nz, ny, nx = case.shape
    zyx = np.concatenate([zyx, [(5, 5, 5)]])
    n = len(zyx)
    kept = [True] * (n - 1) + [False]
    return pd.DataFrame(
        {
            "tomogram": "t1",
            "particle_id": range(1, n + 1),
            "z_vox": zyx[:, 0],
            "y_vox": zyx[:, 1],
            "x_vox": zyx[:, 2],
            "voxel_size_angstrom": case.voxel,
            "tomogram_nz": nz,
            "tomogram_ny": ny,
            "tomogram_nx": nx,
            "binning": float(case.binning),
            "status": ["accepted" if keep else "rejected" for keep in kept],
            "reason": ["" if keep else "too small" for keep in kept],
            "score": [round(0.95 - 0.05 * k, 6) for k in range(n)],
            "size_vox": 30,
            "class": [CLASSES[k % 3] if keep else "" for k, keep in enumerate(kept)],
            "vote_share": 0.9,
            "margin": 0.5,
            **{f"p_{name}": 0.25 for name in CLASSES},
        }
    )


def truth(case: Case) -> NDArray[np.float64]:
    """Where the particles of `planted` are, by construction."""
    return np.concatenate([dots(case.shape).astype(float), between(case.shape)])


# --- reading by others' rules -----------------------------------------------------------------


def _star(file: File) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    blocks = starfile.read(file.path, always_dict=True, parse_as_string=["tomolineClassName"])
    return blocks, blocks.get("particles", next(iter(blocks.values())))


def _judged(particles: pd.DataFrame, xyz: NDArray[np.float64]) -> Found:
    scores = particles["rlnAutopickFigureOfMerit"].astype(float)
    return Found(xyz[:, ::-1], list(particles["tomolineClassName"]), list(scores))


def read_relion5(file: File) -> Found:
    """RELION-5: coordinate / pixel + centre = unbinned pixel; voxel = that / binning."""
    blocks, particles = _star(file)
    pixel = float(blocks["optics"]["rlnTomoTiltSeriesPixelSize"].iloc[0])
    size = np.array(file.case.shape)[::-1] * file.case.binning  # rlnTomoSizeX, Y, Z
    offset = size / 2 - 1 if file.case.centre == "picker" else size / 2
    names = [f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ"]
    assert set(particles["rlnTomoName"]) <= {"TS_1"}
    return _judged(
        particles, (particles[names].to_numpy(float) / pixel + offset) / file.case.binning
    )


def _coordinates(particles: pd.DataFrame) -> NDArray[np.float64]:
    return particles[[f"rlnCoordinate{axis}" for axis in "XYZ"]].to_numpy(float)


def read_relion4(file: File) -> Found:
    """RELION-4: unbinned pixels from the corner."""
    _, particles = _star(file)
    return _judged(particles, _coordinates(particles) / file.case.binning)


def read_relion3(file: File) -> Found:
    """RELION-3: whole voxels of the tomogram's file, less the origin; it cuts off fractions."""
    _, particles = _star(file)
    xyz = _coordinates(particles)
    assert (xyz == np.floor(xyz)).all()
    origins = particles[[f"rlnOrigin{axis}Angst" for axis in "XYZ"]].to_numpy(float)
    assert set(particles["rlnMicrographName"]) <= {str(file.source.resolve())}
    return _judged(particles, xyz - origins / file.case.voxel)


def read_warp(file: File) -> Found:
    """Warp: coordinate times --coords_angpix is angstrom from the first voxel's centre."""
    _, particles = _star(file)
    angpix = float(file.path.read_text().splitlines()[0].split()[-1])
    assert set(particles["rlnMicrographName"]) <= {"TS_1.tomostar"}
    assert {"rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"} <= set(particles.columns)
    return _judged(particles, _coordinates(particles) * angpix / file.case.voxel)


def read_dynamo(file: File) -> Found:
    """Dynamo: MATLAB's voxels, the first one's centre is 1; read by dynamotable."""
    if not file.path.read_text():  # dynamotable, unlike Dynamo, refuses an empty table
        return Found(np.empty((0, 3)), [], [])
    table = dynamotable.read(file.path, file.path.with_suffix(".doc"))
    assert set(table["tomo_file"]) == {str(file.source.resolve())}
    assert table["tag"].is_unique
    listed = pd.read_csv(file.path.with_suffix(".classes.csv"), dtype={"class": str})
    names = dict(zip(listed["number"], listed["class"], strict=True))
    xyz = table[["x", "y", "z"]].to_numpy(float) - 1
    return Found(xyz[:, ::-1], [names[n] for n in table["class"]], list(table["cc"].astype(float)))


def read_imod(file: File) -> Found:
    """IMOD: x and y from the corner of the first voxel, z from the middle of the first slice."""
    lines = np.loadtxt(file.path, ndmin=2).reshape(-1, 6)
    listed = pd.read_csv(file.path.with_suffix(".classes.csv"), dtype={"class": str})
    names = dict(zip(listed["number"], listed["class"], strict=True))
    zyx = lines[:, [4, 3, 2]] - (0, 0.5, 0.5)
    return Found(zyx, [names[int(n)] for n in lines[:, 0]], list(lines[:, 5]))


def read_eman2(file: File) -> Found:
    """EMAN2, e2spt_boxer.py: voxel = box / apix * apix_unbin + size // 2."""
    info = json.loads(file.path.read_text())
    boxes = info["boxes_3d"]
    xyz = np.array([box[:3] for box in boxes], dtype=float).reshape(-1, 3)
    nz, ny, nx = file.case.shape
    xyz = xyz / file.case.voxel * info["apix_unbin"] + (nx // 2, ny // 2, nz // 2)
    names = [info["class_list"][str(box[5])]["name"] for box in boxes]
    return Found(xyz[:, ::-1], names, [box[4] for box in boxes])


def read_portal(file: File) -> Found:
    """CZ CryoET Data Portal: voxels, a line a point."""
    lines = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert all(set(line) == {"type", "location"} and line["type"] == "point" for line in lines)
    zyx = [[line["location"][axis] for axis in "zyx"] for line in lines]
    return Found(np.array(zyx, dtype=float).reshape(-1, 3), None, None)


def read_csv(file: File) -> Found:
    """CSV: voxels of the given tomogram."""
    table = pd.read_csv(file.path, dtype={"class": str})
    zyx = table[["z_vox", "y_vox", "x_vox"]].to_numpy(float)
    return Found(zyx, list(table["class"]), list(table["score"]))


# Runs in copick's own environment: its dependencies do not agree with ours.
_COPICK = """
import json, sys, warnings
warnings.simplefilter("ignore")
import copick
answer = []
for config in json.load(sys.stdin):
    root = copick.from_file(config)
    objects = [o.name for o in root.pickable_objects]
    points = []
    for run in root.runs:
        for picks in run.picks:
            assert picks.pickable_object_name in objects
            for p in picks.points:
                points.append([run.name, picks.pickable_object_name, picks.user_id, p.score,
                               p.location.x, p.location.y, p.location.z])
    answer.append(points)
json.dump(answer, sys.stdout)
"""


def read_copick(files: Sequence[File]) -> list[Found]:
    """copick, the package itself: angstrom, the first voxel's centre at 0."""
    done = subprocess.run(
        [str(COPICK_PYTHON), "-c", _COPICK],
        input=json.dumps([str(file.path) for file in files]),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = []
    for file, points in zip(files, json.loads(done.stdout), strict=True):
        assert {(point[0], point[2]) for point in points} <= {("TS_1", "tomoline")}
        xyz = np.array([point[4:] for point in points], dtype=float).reshape(-1, 3)
        found.append(Found(xyz[:, ::-1] / file.case.voxel, [p[1] for p in points],
                           [p[3] for p in points]))  # fmt: skip
    return found


def _each(read: Callable[[File], Found]) -> Callable[[Sequence[File]], list[Found]]:
    return lambda files: [read(file) for file in files]


READERS: dict[str, Callable[[Sequence[File]], list[Found]]] = {
    "relion5": _each(read_relion5),
    "relion4": _each(read_relion4),
    "relion3": _each(read_relion3),
    "warp": _each(read_warp),
    "dynamo": _each(read_dynamo),
    "imod": _each(read_imod),
    "eman2": _each(read_eman2),
    "copick": read_copick,
    "portal": _each(read_portal),
    "csv": _each(read_csv),
}
READ_WITH = {
    "relion5": "starfile; cryoCAT",
    "relion4": "starfile; cryoCAT",
    "relion3": "starfile; RELION 3.1.3 itself",
    "warp": "starfile",
    "dynamo": "dynamotable; cryoCAT",
    "imod": "numpy; imodmodel (.mod)",
    "eman2": "json, by e2spt_boxer's formula",
    "copick": "copick",
    "portal": "json",
    "csv": "pandas",
}


# --- comparing --------------------------------------------------------------------------------


def in_order(found: Found) -> Found:
    """The same, ordered by place."""
    order = np.lexsort(np.round(found.zyx, 1).T)
    pick = lambda values: None if values is None else [values[k] for k in order]  # noqa: E731
    return Found(found.zyx[order], pick(found.classes), pick(found.scores))


def errors(name: str, planted_in: dict[Case, TomogramParticles], folder: Path) -> dict[Case, float]:
    """Export every case in a dialect and read it back: the largest error in voxels of each.

    AssertionError where particles, their classes or their scores are not what was planted.
    """
    files = []
    for number, (case, tomogram) in enumerate(planted_in.items()):
        settings = ExportSettings(relion_centre=case.centre)
        path = folder / str(number) / DIALECTS[name].file_name
        DIALECTS[name].write(selected(tomogram, settings), path, settings)
        files.append(File(path, case, tomogram.source))
    largest = {}
    for file, found in zip(files, READERS[name](files), strict=True):
        wanted = truth(file.case)
        kept = selected(planted_in[file.case], ExportSettings()).particles
        own = in_order(Found(kept[["z_vox", "y_vox", "x_vox"]].to_numpy(float),
                             list(kept["class"]), list(kept["score"])))  # fmt: skip
        got, want = in_order(found), in_order(Found(wanted, None, None))
        assert got.zyx.shape == want.zyx.shape, (name, file.case)
        assert got.classes in (None, own.classes), (name, file.case)
        if got.scores is not None:
            np.testing.assert_allclose(got.scores, own.scores, atol=1e-4)
        largest[file.case] = float(np.abs(got.zyx - want.zyx).max())
    return largest


def plant_all(folder: Path) -> dict[Case, TomogramParticles]:
    """Every case's tomogram; the two centres of RELION-5 share one."""
    made: dict[Case, TomogramParticles] = {}
    for number, case in enumerate(CASES):
        twin = Case(case.size, case.binning, case.origin, case.turned, CENTRES[0])
        made[case] = made[twin] if twin in made else planted(case, folder / f"tomogram_{number}")
    return made


# --- the table --------------------------------------------------------------------------------

TABLE = ROOT / "docs" / "dialects.md"
_HEAD = """\
# Dialects and tomograms: how far off is a particle that is read back?

Written by `python tests/dialect_contract.py`; the tests (`tests/interop/test_contract.py`) hold
every number below 0.01. Dots are planted in the voxels of a tomogram's file, the file is prepared
as in a run, what is found is exported and read back with another program's reader, or, where there
is none for Python, by the formula in its source. A number is the largest distance along an axis in
voxels of the given tomogram, of {places} places, corners and places between voxels among them.

Even tomograms have {even} voxels (x, y, z), odd ones {odd}; each column holds files
with and without an origin in the header, in `tilt`'s axis order (turned as `trimvol -rx` does) and
not, and both of RELION-5's centres: {cases} files a dialect.

"""


def table_lines(largest: dict[str, dict[Case, float]]) -> list[str]:
    """A row a dialect, a column a size and binning."""
    columns = [(size, binning) for size in SHAPES for binning in (1, 2, 4, 8)]
    lines = ["| dialect | read with | " + " | ".join(f"{s}, bin {b}" for s, b in columns) + " |"]
    lines.append("|---|---|" + "---|" * len(columns))
    for name, by_case in largest.items():
        cells = [
            max(e for case, e in by_case.items() if (case.size, case.binning) == column)
            for column in columns
        ]
        shown = [f"{np.ceil(cell * 1e5) / 1e5:.5f}" for cell in cells]
        lines.append(f"| `{name}` | {READ_WITH[name]} | " + " | ".join(shown) + " |")
    return lines


def main(folder: Path) -> None:
    """Write docs/dialects.md."""
    made = plant_all(folder)
    largest = {name: errors(name, made, folder / name) for name in DIALECTS}
    head = _HEAD.format(
        places=len(truth(CASES[0])),
        even=" x ".join(map(str, SHAPES["even"][::-1])),
        odd=" x ".join(map(str, SHAPES["odd"][::-1])),
        cases=len(CASES),
    )
    tail = "\n\n![What RELION 3.1.3 cut](pictures/relion_cut.png)\n\n" + _CUT
    TABLE.write_text(head + "\n".join(table_lines(largest)) + tail, encoding="utf-8")


_CUT = """\
What RELION 3.1.3 (`relion_preprocess --extract`) cut at the places of our `relion3` files out of
two tomograms with a bright dot a particle (`tests/interop/test_relion.py`): the middle slices of
the boxes in z, y and x. The cross marks voxel 8 of 16, RELION's middle.

Beside the readers whose numbers these are, cryoCAT reads four kinds of tomogram from `relion5`
(`relion_centre: cpp`, as it has the centre), `relion4` and `dynamo`
(`tests/interop/test_cryocat.py`), and imodmodel the `.mod`. emfile reads EM motive lists, which
none of the dialects is.
"""

if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
    print(TABLE, file=sys.stderr)
