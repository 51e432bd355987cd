"""Every dialect of the registry puts planted particles where they were planted.

tests/dialect_contract.py has the tomograms, the readers and the comparison.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import dialect_contract as contract
import imodmodel
import numpy as np
import pandas as pd
import pytest
import starfile
from needed import absent

from tomoline.export.dialect import TomogramParticles, selected
from tomoline.export.registry import DIALECTS
from tomoline.settings import ExportSettings

LIMIT_VOX = 0.01


@pytest.fixture(scope="module")
def planted(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[contract.Case, TomogramParticles]:
    return contract.plant_all(tmp_path_factory.mktemp("planted"))


def test_every_dialect_has_its_reader() -> None:
    assert set(contract.READERS) == set(DIALECTS)
    assert set(contract.READ_WITH) == set(DIALECTS)


def readable(name: str) -> None:
    """Skip what this machine cannot read."""
    if name == "copick" and not contract.COPICK_PYTHON.exists():
        absent("copick's own environment is not here (make readers)")


@pytest.mark.parametrize("name", DIALECTS)
def test_planted_particles_come_back(name: str, planted: dict, tmp_path: Path) -> None:
    """64 kinds of tomogram: size, binning, origin, axes of the file, RELION-5's centre."""
    readable(name)
    largest = contract.errors(name, planted, tmp_path)
    assert len(largest) == 2 * 4 * 2 * 2 * 2
    assert max(largest.values()) < LIMIT_VOX


@pytest.mark.parametrize("name", DIALECTS)
def test_a_shift_of_two_hundredths_is_seen(name: str, planted: dict, tmp_path: Path) -> None:
    """The test above would find an error: here is one, along each axis."""
    readable(name)
    moved = {}
    for case, axis in zip(list(planted)[::24], ("z_vox", "y_vox", "x_vox"), strict=True):
        table = planted[case].particles.copy()
        table[axis] += 0.02
        moved[case] = replace(planted[case], particles=table)
    largest = contract.errors(name, moved, tmp_path)
    assert list(largest.values()) == pytest.approx([0.02] * 3, abs=1e-3)


@pytest.mark.parametrize("name", ["relion5", "relion4", "relion3", "warp", "csv"])
def test_what_can_hold_them_keeps_share_margin_and_probabilities(
    name: str, planted: dict, tmp_path: Path
) -> None:
    """Read by starfile or pandas; the other dialects have no place for them (docs)."""
    given = next(iter(planted.values()))
    table, rng = given.particles.copy(), np.random.default_rng(1)
    judged = ["vote_share", "margin", *(f"p_{kind}" for kind in contract.CLASSES)]
    table[judged] = rng.random((len(table), len(judged)))
    chosen = selected(replace(given, particles=table), ExportSettings())
    path = tmp_path / DIALECTS[name].file_name
    DIALECTS[name].write(chosen, path, ExportSettings())
    if name == "csv":
        found = pd.read_csv(path)[judged]
    else:
        blocks = starfile.read(path, always_dict=True)
        labels = ["VoteShare", "Margin", *(f"Probability_{kind}" for kind in contract.CLASSES)]
        block = blocks.get("particles", next(iter(blocks.values())))
        found = block[[f"tomoline{label}" for label in labels]]
    assert len(found) == len(contract.truth(next(iter(planted)))) > 3
    np.testing.assert_allclose(found.to_numpy(float), chosen.particles[judged], atol=1e-6)


def test_the_table_in_the_docs_has_every_dialect() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .*? \| ([\d. |]+)\|$", contract.TABLE.read_text(), re.M)
    assert [name for name, _ in rows] == list(DIALECTS)
    for _, cells in rows:
        numbers = [float(cell) for cell in cells.split("|") if cell.strip()]
        assert len(numbers) == 8
        assert max(numbers) < LIMIT_VOX


# What point2model does with lines of object, contour, x, y, z, value: an object is added for each
# number up to the line's, names come from -name in order, a point goes where the line says.
POINT2MODEL = """#!{python}
import sys
import imodmodel, numpy as np, pandas as pd
from imodmodel.models import ImodModel
if sys.argv[1:] == ["-help"]:
    print("Version 4.11.24")
    sys.exit(0)
source, target = sys.argv[-2:]
assert sys.argv[sys.argv.index("-values") + 1] == "1" and "-scat" in sys.argv
lines = np.loadtxt(source, ndmin=2)
assert lines.shape[1] == 6
imodmodel.write(pd.DataFrame({{
    "object_id": lines[:, 0].astype(int) - 1, "contour_id": lines[:, 1].astype(int) - 1,
    "x": lines[:, 2], "y": lines[:, 3], "z": lines[:, 4]}}), target)
"""


def test_imod_models_are_made_by_point2model(
    planted: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for IMOD's program, read back by imodmodel; IMOD itself is not to be had here."""
    program = tmp_path / "imod" / "bin" / "point2model"
    program.parent.mkdir(parents=True)
    program.write_text(POINT2MODEL.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.delenv("IMOD_DIR", raising=False)
    given = selected(next(iter(planted.values())), ExportSettings())
    DIALECTS["imod"].write(given, tmp_path / "points.txt", ExportSettings())
    model = imodmodel.read(tmp_path / "points.mod")
    zyx = model[["z", "y", "x"]].to_numpy(float) - (0, 0.5, 0.5)
    found = contract.in_order(contract.Found(zyx, list(model["object_id"]), None))
    wanted = contract.in_order(contract.Found(given.zyx_vox(), given.class_names(), None))
    np.testing.assert_allclose(found.zyx, wanted.zyx, atol=1e-5)
    assert [contract.CLASSES[number] for number in found.classes] == wanted.classes
    folder = tmp_path / "all"
    written = DIALECTS["imod"].write_combined([given], folder, ExportSettings())
    assert [path.name for path in written] == ["classes.csv", "TS_1.txt", "TS_1.mod"]


def test_without_imod_there_are_the_points_and_it_is_said(
    planted: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("IMOD_DIR", raising=False)
    given = selected(next(iter(planted.values())), ExportSettings())
    with caplog.at_level("INFO"):
        DIALECTS["imod"].write(given, tmp_path / "points.txt", ExportSettings())
    assert "point2model was not found" in caplog.text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["points.classes.csv", "points.txt"]
