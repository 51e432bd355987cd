"""From a run to a review, from its answers to labels, to a model that knows a class more."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_project import VOXEL_SIZE, Project, balls, make_project, write_tomogram

from tomoline.io.sheet import read_sheet, write_sheet
from tomoline.networks.cards import ModelCard, load_card
from tomoline.networks.dsmnet import DSMNet
from tomoline.networks.weights import save_model

BALLS = [(10, 8, 10), (10, 8, 44), (30, 8, 28), (30, 30, 10), (12, 40, 44)]
SPECKS = [(30, 8, 10), (12, 20, 28), (30, 26, 46), (12, 36, 12), (30, 40, 30)]
NAMES = ("one", "two", "three", "four")


def places(name: str) -> dict[str, np.ndarray]:
    shift = np.random.default_rng(NAMES.index(name)).integers(-2, 3, 3)
    return {"ball": np.array(BALLS) + shift, "speck": np.array(SPECKS) + shift}


def truly(name: str, zyx: np.ndarray) -> str:
    """What lies at a place."""
    near = {kind: np.linalg.norm(own - zyx, axis=1).min() for kind, own in places(name).items()}
    kind = min(near, key=near.__getitem__)
    return kind if near[kind] < 3 else "no"


def save_whole(folder: Path) -> None:
    """A classifier of random layers that calls every candidate a ball."""
    classes = ["background", "ball", "cube"]
    parameters = {"classes": 3, "maps": [4, 6, 8], "features": 10, "dropout": 0.0,
                  "stem": "strided"}  # fmt: skip
    torch.manual_seed(4)
    state = DSMNet(**parameters).state_dict()
    state["last.bias"][1] = 3.0
    save_model(folder, ModelCard(
        name=folder.name, network="dsmnet", parameters=parameters, role="classifier",
        classes=classes, voxel_size_angstrom=VOXEL_SIZE, voxel_size_range_angstrom=(8.0, 12.0),
        box_vox=16, receptive_field_vox=16, n_parameters=1,
    ), state)  # fmt: skip


FINETUNE = {
    "name": "mine", "held_out": ["four"], "epochs": 8, "steps_per_epoch": 8, "batch_size": 24,
    "views": 4, "layers": "all", "learning_rate": 0.005, "keep_named": 1, "labels": "complete",
}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = make_project(tmp_path_factory.mktemp("review"), {name: [] for name in NAMES})
    for seed, name in enumerate(NAMES):
        own = places(name)
        volume = balls(own["ball"], seed=seed, specks_zyx=own["speck"])
        write_tomogram(made.folder / "tomograms" / f"{name}.mrc", volume)
    sheet = made.folder / "config" / "datasets" / "tiny.tsv"
    write_sheet(sheet, [row.model_copy(update={"truth": ""}) for row in read_sheet(sheet)])
    (made.folder / "resources" / "densities").mkdir(parents=True)
    save_whole(made.folder / "models" / "dsmnet-classifier")
    made.configure()
    return made


def kinds(project: Project, name: str) -> list[tuple[str, str]]:
    """What each accepted particle is called, and what it is."""
    table = pd.read_csv(project.file(name, "particles.csv"))
    table = table[table["status"] == "accepted"]
    return [(row["class"], truly(name, row[["z_vox", "y_vox", "x_vox"]].to_numpy(float)))
            for _, row in table.iterrows()]  # fmt: skip


def test_from_a_run_over_a_review_to_a_model_of_ones_own(project: Project) -> None:
    done = project.snakemake()
    assert done.returncode == 0, done.stderr
    assert {called for called, _ in kinds(project, "four")} == {"ball"}

    missing = project.snakemake("finetune", "--dry-run")
    assert missing.returncode != 0 and "tomoline adopt" in missing.stdout + missing.stderr

    asked = project.run("tomoline", "review", "tiny", "--number", "100")
    assert asked.returncode == 0, asked.stderr
    path = project.file("review", "review.csv")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table["decision"] = [
        truly(row["tomogram"], row[["z_vox", "y_vox", "x_vox"]].to_numpy(float))
        for _, row in table.iterrows()
    ]
    assert set(table["decision"]) >= {"ball", "speck"}
    table.to_csv(path, index=False)
    adopted = project.run("tomoline", "adopt", "tiny", str(path), "--new-class", "speck")
    assert adopted.returncode == 0, adopted.stderr

    project.configure(finetune=FINETUNE)
    planned = project.planned("finetune")
    assert planned == {"finetune": 1}  # nothing of the tomograms is computed again
    taught = project.snakemake("finetune")
    assert taught.returncode == 0, taught.stderr
    models = project.folder / "results" / "models"
    told = json.loads((models / "mine" / "finetune.json").read_text())
    assert told["before"]["classes"]["speck"]["right"] == 0
    assert told["after"]["class_accuracy"] > 0.9
    assert load_card(models / "mine-classifier").classes[-1] == "speck"

    project.configure(
        models={"folder": "models", "classifier": "results/models/mine-classifier"},
        finetune=FINETUNE,  # left in the file, as people do
    )
    planned = project.planned()
    assert "classify" in planned and not {"prepare", "segment", "cluster"} & set(planned)
    done = project.snakemake()
    assert done.returncode == 0, done.stderr
    found = kinds(project, "four")
    assert len(found) >= 9
    assert sum(called == true for called, true in found) >= len(found) - 1
    star = project.file("export", "relion5", "speck.star")
    assert star.is_file()
