"""The whole chain of a benchmark and of experiments, on tomograms of 40 x 48 x 56 voxels."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml
from tiny_project import ROOT, Project, make_project

from tomoline.simulation.densities import load_density
from tomoline.simulation.phantom import PhantomSettings
from tomoline.simulation.projection import TiltSettings
from tomoline.simulation.shrec import write_shrec
from tomoline.simulation.tomogram import simulate_tomogram

CLASSES = ["1bxn", "3qm1"]
SIMULATED = "results/simulated/tiny"
TRAIN = {
    "task": "joint", "classes": CLASSES, "source": "folders", "folders": [f"{SIMULATED}/model_1"],
    "validation_folders": [f"{SIMULATED}/model_2"], "validation_volumes": 1,
    "shape": {"depth": 2, "width": 4, "max_dilation": 2}, "crop_vox": 24, "batch_size": 2,
    "steps_per_epoch": 8, "volumes_per_epoch": 1, "max_epochs": 2, "learning_rate": 0.02,
    "average_decay": 0.5, "box_vox": 24, "precision": "float32",
}  # fmt: skip
UNET = {
    **TRAIN, "name": "u", "network": "unet", "filters": [4, 6, 8], "task": "classifier",
    "loss": "tversky",
}  # fmt: skip
TOMOGRAMS = {
    "tune": {"use": "validation", "folder": f"{SIMULATED}/model_2"},
    "test": {"use": "test", "folder": f"{SIMULATED}/model_3"},
}
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = make_project(tmp_path_factory.mktemp("benchmark"))
    (project.folder / "resources").symlink_to(ROOT / "resources")
    densities = [load_density(ROOT / "resources" / "densities", name) for name in CLASSES]
    phantom = PhantomSettings(shape_zyx=(40, 48, 56), particles=14)
    for k in (1, 2, 3):
        made = simulate_tomogram(densities, phantom, TiltSettings(snr=5.0), seed=k)
        write_shrec(project.folder / SIMULATED / f"model_{k}", made)
    return project


@pytest.fixture(scope="module")
def run(project: Project) -> Done:
    """A difference of Gaussians, a U-Net to be trained first, a program that is not there; and an
    experiment of two variants that share a training."""
    (project.folder / "u.yaml").write_text(yaml.safe_dump({"train": UNET}))
    folder = project.folder / "experiments"
    folder.mkdir()
    shift = {"with": {}, "without": {"method": {"centres": "components"}}}
    text = yaml.safe_dump({"question": "Mean-shift?", "paper": "a bit", "variants": shift})
    (folder / "shift.yaml").write_text(text)
    methods = {
        "dog": {"kind": "dog"},
        "u": {"kind": "unet", "folder": "results/models", "classifier": "u-classifier"},
        "gone": {"kind": "pytme", "python": "nowhere/python"},
    }
    benchmark = {
        "name": "b", "tomograms": TOMOGRAMS, "methods": methods, "trainings": ["u.yaml"],
        "experiments": "experiments",
    }  # fmt: skip
    project.configure(train=TRAIN, benchmark=benchmark)
    return project.snakemake("benchmark", "experiments")


def table(project: Project, name: str) -> pd.DataFrame:
    folder = project.folder / "results" / "benchmarks" / name
    return pd.read_csv(folder / "table.csv", keep_default_na=False).set_index("method")


def test_methods_are_tuned_elsewhere_and_scored_and_one_that_fails_leaves_its_reason(
    project: Project, run: Done
) -> None:
    assert run.returncode != 0
    rows = table(project, "b")
    assert set(rows.index) == {"dog", "u", "gone"}
    assert rows.loc["dog", "reason"] == rows.loc["u", "reason"] == ""
    assert float(rows.loc["dog", "F1"]) > 0.5
    assert float(rows.loc["dog", "SHREC F1"]) > 0.4
    assert rows.loc["dog", "class accuracy"] == ""
    assert float(rows.loc["u", "class accuracy"]) >= 0
    assert float(rows.loc["u", "wall s"]) > 0
    assert "scale_vox" in rows.loc["dog", "settings"]
    assert "make bench-peers" in rows.loc["gone", "reason"]
    folder = project.folder / "results" / "benchmarks" / "b"
    page = (folder / "table.md").read_text()
    assert "| dog |" in page
    assert "- gone: InputError: nowhere/python" in page
    for name in ("table.png", "classes.png", "test/dog/picks.csv", "logs/test.dog.score.log"):
        assert (folder / name).stat().st_size > 0
    scores = json.loads((folder / "test" / "dog" / "scores.json").read_text())
    tuned = json.loads((folder / "tuned" / "all" / "dog.json").read_text())
    assert scores["tuned"]["threshold"] == tuned["threshold"]
    curves = (project.folder / "results/models/u/curves.jsonl").read_text().splitlines()
    assert len(curves) == 2


def test_the_next_run_does_only_what_failed(project: Project, run: Done) -> None:
    planned = project.planned("benchmark")
    assert planned == {
        "benchmark_respond": 2, "benchmark_tune": 1, "benchmark_score": 1, "benchmark_table": 1,
        "benchmark": 1,
    }  # fmt: skip


def test_experiments_train_what_they_share_once_and_make_one_table(
    project: Project, run: Done
) -> None:
    rows = table(project, "b-shift")
    assert list(rows.index) == ["with", "without"]
    assert (rows["reason"] == "").all()
    assert rows["F1"].astype(float).max() > 0.3
    assert {p.name for p in Path(project.folder / "results/models").iterdir()} == {
        "u", "u-classifier", "b-common", "b-common-localizer", "b-common-classifier",
    }  # fmt: skip
    folder = project.folder / "results" / "benchmarks" / "b"
    joined = pd.read_csv(folder / "all.csv")
    assert list(joined["experiment"]) == ["Mean-shift?"] * 2
    page = (folder / "all.md").read_text()
    assert "In the paper (not the same data): a bit" in page
    assert "| test | without |" in page
    assert (folder / "all.png").stat().st_size > 0
    assert project.planned("experiments") == {}


def test_shipped_experiments_are_planned_with_a_training_each(project: Project) -> None:
    raw = yaml.safe_load((ROOT / "config/benchmarks/experiments.yaml").read_text())
    raw["benchmark"]["experiments"] = str(ROOT / raw["benchmark"]["experiments"])
    raw["train"]["folders"] = [f"{SIMULATED}/model_1"]
    raw["train"]["validation_folders"] = [f"{SIMULATED}/model_2"]
    raw["benchmark"]["tomograms"] = TOMOGRAMS
    variants = project.folder / "shipped"
    variants.mkdir()
    for file in Path(raw["benchmark"]["experiments"]).glob("*.yaml"):
        text = file.read_text().replace("shrec-like-half/snr-0.2", "tiny")
        (variants / file.name).write_text(text)
    raw["benchmark"]["experiments"] = "shipped"
    project.configure(train=raw["train"], benchmark=raw["benchmark"])
    planned = project.planned("experiments")
    # The common one, cross-entropy, three depths, two tomograms, per layer; a U-Net.
    assert planned["benchmark_train"] == 7
    assert planned["benchmark_train_classifier"] == 1
    # Those, and centres of components: each is run once, whatever it is compared with.
    assert planned["benchmark_score"] == 9
    assert planned["benchmark_table"] == 6
    assert planned["experiments_table"] == 1
