"""The way that docs/review.md prints, command by command: from clicks and a run to a review, from
its answers to labels, to a model that knows a class more, and its STAR file."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_project import (
    ROOT,
    VOXEL_SIZE,
    Project,
    balls,
    save_threshold_network,
    write_tomogram,
)

from tomoline.networks.cards import ModelCard, load_card
from tomoline.networks.dsmnet import DSMNet
from tomoline.networks.weights import save_model

BALLS = [(10, 8, 10), (10, 8, 44), (30, 8, 28), (30, 30, 10), (12, 40, 44)]
SPECKS = [(30, 8, 10), (12, 20, 28), (30, 26, 46), (12, 36, 12), (30, 40, 30)]
NAMES = ("ts_01", "ts_02", "ts_03", "ts_04")


def places(name: str) -> dict[str, np.ndarray]:
    shift = np.random.default_rng(NAMES.index(name)).integers(-2, 3, 3)
    return {"ball": np.array(BALLS) + shift, "speck": np.array(SPECKS) + shift}


def truly(name: str, zyx: np.ndarray) -> str:
    """What lies at a place."""
    near = {kind: np.linalg.norm(own - zyx, axis=1).min() for kind, own in places(name).items()}
    kind = min(near, key=near.__getitem__)
    return {"ball": "ball", "speck": "mine"}[kind] if near[kind] < 3 else "no"


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
    "held_out": ["ts_04"], "epochs": 32, "steps_per_epoch": 8, "batch_size": 24, "views": 4,
    "layers": "all", "learning_rate": 0.005, "keep_named": 1, "labels": "complete",
}  # fmt: skip


def documented() -> dict[str, list[str]]:
    """The commands of `In short` as they are printed, by what they do."""
    text = (ROOT / "docs" / "review.md").read_text().split("## In short")[1].split("## ")[0]
    block = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    lines = block.replace("\\\n", " ").splitlines()
    words = [command for line in lines if (command := shlex.split(line, comments=True))]
    steps = ("model2point", "import", "run", "review", "adopt", "finetune", "use")
    return dict(zip(steps, words, strict=True))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project(tmp_path_factory.mktemp("review"))
    assert made.run("tomoline", "init", ".").returncode == 0
    (made.folder / "tomograms").mkdir()
    for seed, name in enumerate(NAMES):
        own = places(name)
        volume = balls(own["ball"], seed=seed, specks_zyx=own["speck"])
        write_tomogram(made.folder / "tomograms" / f"{name}.mrc", volume)
    done = made.run("tomoline", "onboard", "tomograms", "--name", "session7", "--contrast", "dark")
    assert done.returncode == 0, done.stderr
    save_threshold_network(made.folder / "models" / "msdnet-localizer", "localizer",
                           ["background", "particle"])  # fmt: skip
    save_whole(made.folder / "models" / "dsmnet-classifier")
    made.configure(datasets=["session7"], finetune=FINETUNE)
    return made


def typed(project: Project, step: str) -> str:
    """Type a command as it is printed; its output."""
    words = [word.replace("~", str(project.folder)) for word in documented()[step]]
    done = project.run(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def particles(project: Project, name: str) -> pd.DataFrame:
    table = pd.read_csv(project.folder / "results" / "session7" / name / "particles.csv")
    return table[table["status"] == "accepted"]


def kinds(project: Project, name: str) -> list[tuple[str, str]]:
    """What each accepted particle is called, and what it is."""
    return [(row["class"], truly(name, row[["z_vox", "y_vox", "x_vox"]].to_numpy(float)))
            for _, row in particles(project, name).iterrows()]  # fmt: skip


def answered(project: Project) -> None:
    """What a person makes of the review, as a spreadsheet program saves it."""
    path = project.folder / "results" / "session7" / "review" / "review.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table["decision"] = [
        truly(row["tomogram"], row[["z_vox", "y_vox", "x_vox"]].to_numpy(float))
        for _, row in table.iterrows()
    ]
    assert set(table["decision"]) >= {"ball", "mine"}
    (project.folder / "Downloads").mkdir()
    table.to_csv(project.folder / "Downloads" / "review.csv", index=False, sep=";",
                 lineterminator="\r\n", encoding="utf-8-sig")  # fmt: skip


def test_the_documented_way_leads_from_a_click_to_a_star_file(project: Project) -> None:
    missing = project.run("snakemake", "finetune", "--dry-run")
    assert missing.returncode != 0 and "tomoline adopt" in missing.stdout + missing.stderr

    clicks = [f"1 1 {x + 0.5} {y + 0.5} {z}" for z, y, x in places("ts_01")["speck"]]  # IMOD's
    (project.folder / "clicks.txt").write_text("\n".join(clicks) + "\n")
    assert documented()["model2point"][-1] == documented()["import"][2] == "clicks.txt"
    assert "5 picks (5 mine)" in typed(project, "import")
    typed(project, "run")
    assert {called for called, _ in kinds(project, "ts_04")} == {"ball"}
    assert "5 candidates were decided before" in typed(project, "review")
    answered(project)
    assert "particles" in typed(project, "adopt")
    typed(project, "finetune")
    models = project.folder / "results" / "models"
    told = json.loads((models / "mine" / "finetune.json").read_text())
    assert told["before"]["classes"]["mine"]["right"] == 0
    assert told["after"]["class_accuracy"] > 0.9
    assert load_card(models / "mine-classifier").classes[-1] == "mine"

    # In config.yaml, where `finetune` is left as well: the model is used, and not made again.
    project.configure(
        datasets=["session7"], finetune={**FINETUNE, "name": "mine", "dataset": "session7"},
        models={"folder": "models", "classifier": "results/models/mine-classifier"},
    )  # fmt: skip
    planned = project.planned()
    assert "classify" in planned
    assert not {"prepare", "segment", "cluster", "finetune"} & set(planned)
    typed(project, "use")
    found = kinds(project, "ts_04")
    assert len(found) >= 9
    assert sum(called == true for called, true in found) >= len(found) - 1
    star = project.folder / "results" / "session7" / "export" / "relion5" / "mine.star"
    rows = [line for line in star.read_text().splitlines() if "ts_0" in line]
    assert len(rows) == sum((particles(project, name)["class"] == "mine").sum() for name in NAMES)
