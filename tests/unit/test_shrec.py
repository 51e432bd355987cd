"""SHREC's folders of three years, as downloaded: found, put in their place, evaluated, trained on.

The files are fabricated in the layout that the organisers' scripts read (io/shrec.py says which).
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tomoline.contracts import PARTICLE_COLUMNS, VolumeTransform
from tomoline.errors import InputError
from tomoline.io.mrc import write_volume
from tomoline.io.sheet import load_dataset
from tomoline.io.shrec import model_in, shrec_model
from tomoline.io.tables import write_particles
from tomoline.settings import EvaluateSettings
from tomoline.stages import evaluate
from tomoline.stages.onboard import Request, onboard
from tomoline.training.folders import FolderSource

SHAPE, SLAB, ABOVE = (64, 40, 48), 32, 16
# In the tomogram's voxels (z, y, x).
CENTRES = [("4CR2", (22, 10, 30)), ("1bxn", (40, 28, 12)), ("1bxn", (30, 18, 40))]
YEARS = ("19", "20", "21")


def make(root: Path, year: str, number: int, *, extra: str = "") -> Path:
    """One tomogram of a year; `extra` are further lines of its table, in the year's own frame."""
    old, slab = year == "19", year in ("19", "20")
    folder = root / (str(number) if old else f"model_{number}")
    folder.mkdir(parents=True)
    tail = f"_{number}" if old else ""
    above, depth = (ABOVE, SLAB) if slab else (0, SHAPE[0])
    rng = np.random.default_rng(number)
    tomogram = rng.normal(0, 1, SHAPE).astype(np.float32)
    occupancy = np.zeros((depth, *SHAPE[1:]), np.float32)
    lines = []
    for k, (name, (z, y, x)) in enumerate(CENTRES, 1):
        grid = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
        ball = sum((g - c) ** 2 for g, c in zip(grid, (z, y, x), strict=True)) <= 16
        tomogram[ball] -= 4
        occupancy[ball[above : above + depth]] = k
        place = f"{z - above} {y} {x}" if old else f"{x} {y} {z - above}"
        lines.append(f"{name if year == '21' else name.lower()} {place} 10 20 30")
    if extra:
        x, y, z = (int(c) for c in extra.split()[1:4])
        occupancy[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2] = len(lines) + 1
        lines.append(extra)
    model = f"_model_{number}" if old else ""
    write_volume(folder / f"reconstruction{model}.mrc", tomogram, 10.0)
    write_volume(folder / f"{'hitbox' + tail if old else 'occupancy_mask'}.mrc",
                 occupancy, 10.0)  # fmt: skip
    for name in ("grandmodel", *([] if old else ["class_mask", "grandmodel_noisefree"])):
        write_volume(folder / f"{name}{tail}.mrc", occupancy, 10.0)
    (folder / f"particle_locations{model}.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_a_folder_of_each_year_is_known(tmp_path: Path) -> None:
    for year in YEARS:
        model = model_in(make(tmp_path / year, year, 7))
        assert (model.name, model.number) == ("model_7", 7)
        assert model.layout == ("shrec19" if year == "19" else "shrec21")
        assert model.z_offset_vox() == (0 if year == "21" else ABOVE)
        assert model.occupancy is not None
    assert shrec_model(tmp_path / "a" / "reconstruction.mrc") is None  # nothing of SHREC beside it


def test_volumes_of_another_data_set_are_refused(tmp_path: Path) -> None:
    folder = make(tmp_path, "20", 3)
    write_volume(folder / "occupancy_mask.mrc", np.zeros((32, 40, 40), np.float32), 10.0)
    with pytest.raises(InputError, match=r"64, 40, 48"):
        model_in(folder).z_offset_vox()


@pytest.mark.parametrize("kind", ["auto", "shrec"])
@pytest.mark.parametrize("year", YEARS)
def test_onboarded_as_they_are(year: str, kind: str, tmp_path: Path) -> None:
    for number in (1, 8, 9):
        make(tmp_path / "full_dataset", year, number)
    request = Request(name="shrec", paths=(tmp_path / "full_dataset",), kind=kind)  # type: ignore[arg-type]
    project = tmp_path / "project"
    project.mkdir()
    onboard(request, project=project)
    dataset, rows = load_dataset("shrec", folder=project / "config/datasets")
    assert dataset.truth_format == ("shrec19" if year == "19" else "shrec21")
    assert dataset.truth_z_offset_vox == (0 if year == "21" else ABOVE)
    assert [row.tomogram for row in rows] == ["model_1", "model_8", "model_9"]
    roles = [(row.model_extra or {})["split"] for row in rows]
    assert roles == ["train", "validation", "test"]
    assert all(Path(row.truth).is_file() and Path(row.occupancy).is_file() for row in rows)
    # a human's word stays
    sheet = project / "config/datasets" / dataset.sheet
    sheet.write_text(sheet.read_text().replace("\ttrain", "\tmine"))
    onboard(request, project=project)
    again = load_dataset("shrec", folder=project / "config/datasets")[1]
    assert (again[0].model_extra or {})["split"] == "mine"


def test_type_shrec_takes_nothing_else(tmp_path: Path) -> None:
    write_volume(tmp_path / "other" / "a.mrc", np.zeros((8, 8, 8), np.float32), 10.0)
    project = tmp_path / "project"
    project.mkdir()
    with pytest.raises(InputError, match="SHREC's folders"):
        onboard(Request(name="x", paths=(tmp_path / "other",), kind="shrec"), project=project)
    make(tmp_path / "other", "20", 1)
    outcome = onboard(Request(name="x", paths=(tmp_path / "other",), kind="shrec"), project=project)
    assert [row.tomogram for row in outcome.rows] == ["model_1"]


def test_the_split_of_a_simulated_set_is_its_own(tmp_path: Path) -> None:
    folder = make(tmp_path / "set", "21", 1)
    (folder / "conditions.json").write_text(json.dumps({"split": "test"}))
    project = tmp_path / "project"
    project.mkdir()
    (row,) = onboard(Request(name="x", paths=(tmp_path / "set",)), project=project).rows
    assert (row.model_extra or {})["split"] == "test"


@pytest.mark.parametrize("onboarded", [True, False])
@pytest.mark.parametrize("year", YEARS)
def test_the_true_centres_score_one(year: str, onboarded: bool, tmp_path: Path) -> None:
    """With the dataset's format and offset, and without: then the files tell."""
    model = model_in(make(tmp_path, year, 1))
    score = scored(tmp_path, model, dataset=onboarded)
    for way in ("one_to_one", "shrec"):
        assert score[way]["tp"] == 3
        assert score[way]["fp"] == 0
        assert score[way]["ad_vox"] == 0
    assert score["one_to_one"]["mean_class_accuracy"] == 1  # '21 writes codes in capitals


def test_a_pick_on_a_vesicle_is_false(tmp_path: Path) -> None:
    model = model_in(make(tmp_path, "21", 1, extra="vesicle 30 30 50 0 0 0"))
    score = scored(tmp_path, model, dataset=True, more=[("1bxn", (50, 30, 30))])
    assert score["one_to_one"]["particles"] == 3
    assert (score["shrec"]["tp"], score["shrec"]["fp"]) == (3, 1)


def scored(folder: Path, model, *, dataset: bool, more=()) -> dict:  # type: ignore[no-untyped-def,type-arg]
    rows = [(name.lower(), zyx) for name, zyx in [*CENTRES, *more]]
    places = np.array([zyx for _, zyx in rows], float)
    table = pd.DataFrame(places, columns=["z_vox", "y_vox", "x_vox"]).assign(
        tomogram="model_1", particle_id=np.arange(1, len(rows) + 1), voxel_size_angstrom=10.0,
        tomogram_nz=SHAPE[0], tomogram_ny=SHAPE[1], tomogram_nx=SHAPE[2], binning=1.0,
        status="accepted", reason="", score=0.9, size_vox=100, vote_share=1.0, margin=1.0,
    )  # fmt: skip
    table["class"] = [name for name, _ in rows]
    table = table[list(PARTICLE_COLUMNS)].assign(p_1bxn=0.5, p_4cr2=0.5)
    write_particles(folder / "particles.csv", table)
    VolumeTransform(
        source="t.mrc", file_shape=SHAPE, given_shape_zyx=SHAPE, prepared_shape_zyx=SHAPE,
        given_voxel_size_angstrom=10.0, prepared_voxel_size_angstrom=10.0,
        scale_zyx=(1.0, 1.0, 1.0),
    ).save(folder / "transform.json")  # fmt: skip
    inputs = {"particles": folder / "particles.csv", "truth": model.locations,
              "occupancy": model.occupancy, "transform": folder / "transform.json"}  # fmt: skip
    outputs = {k: folder / f"{k}.out" for k in ("evaluation", "classes", "confusion")}
    known = {"name": "shrec", "sheet": "shrec.tsv", "truth_format": model.layout,
             "truth_z_offset_vox": float(model.z_offset_vox())}  # fmt: skip
    evaluate.run(inputs, outputs, settings=EvaluateSettings(dog_picker=False),
                 dataset=known if dataset else None)  # fmt: skip
    result: dict = json.loads(outputs["evaluation"].read_text())  # type: ignore[type-arg]
    return result


@pytest.mark.parametrize("year", YEARS)
def test_training_reads_the_slab(year: str, tmp_path: Path) -> None:
    folders = [make(tmp_path, year, k) for k in (1, 2)]
    source = FolderSource(folders[:1], folders[1:], ["1bxn", "4cr2"], [4.0, 4.0], seed=1)
    (volume,) = source.volumes(0, 1)
    assert volume.volume.shape == (SHAPE if year == "21" else (SLAB, *SHAPE[1:]))
    assert list(volume.labels) == [2, 1, 1]
    for (z, y, x), label in zip(volume.centres_zyx.astype(int), volume.labels, strict=True):
        assert volume.classes[z, y, x] == label
        assert volume.volume[z, y, x] < -2
