"""The workflow with several classifiers that name particles together, and their activation maps."""

from __future__ import annotations

import re

import h5py
import numpy as np
import pandas as pd
import pytest
from tiny_project import (
    Project,
    make_sifted_project,
    save_threshold_network,
)

SPECKS = [(28, 12, 14)]
CLASSES = ["background", "ball", "cube"]
MODELS = {"folder": "models", "ensemble": ["dsmnet-classifier", "voxels"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = make_sifted_project(tmp_path_factory.mktemp("ensemble"), CLASSES, SPECKS)
    save_threshold_network(project.folder / "models" / "voxels", "classifier", CLASSES)
    project.configure(
        models=MODELS, keep=["prepared", "classes"], activation={"per_class": 1},
    )  # fmt: skip
    done = project.snakemake()
    assert done.returncode == 0, done.stderr
    return project


def test_the_particle_table_is_as_always(run: Project) -> None:
    table = pd.read_csv(run.file("one", "particles.csv"), keep_default_na=False)
    kept = table[table["status"] == "accepted"]
    assert list(kept["class"]) == ["ball", "ball"] and (kept["vote_share"] == 1).all()
    # The speck is a ball to the voxels, but background to the one that judges wholes.
    out = table[table["status"] == "rejected"]
    assert list(out["reason"]) == ["background to the classifier"]
    np.testing.assert_allclose(table["p_ball"] + table["p_cube"], 1, atol=1e-5)
    np.testing.assert_allclose(table["score"], table["expected_precision"], atol=1e-6)
    for name, kind in {"classes.h5": "views", "classes_2.h5": "labels"}.items():
        with h5py.File(run.file("one", name)) as file:
            assert kind in file and len(file["candidate_id"]) == len(table)


def test_the_report_names_both_and_shows_where_they_saw_the_class(run: Project) -> None:
    text = re.sub("<[^>]+>", "", run.file("report", "summary.html").read_text())
    assert "2 networks together" in text and "Genest" in text and "Liu C" in text
    page = run.file("one", "report", "activation.html").read_text()
    assert re.findall(r'<th scope="col"[^>]*>([^<]*)', page) == [
        "Particle", "Subtomogram", "dsmnet-classifier", "voxels"
    ]  # fmt: skip
    assert page.count("<img") == 3 and "truly ball" in page


def test_what_does_not_fit_is_told_before_any_job(run: Project) -> None:
    done = run.snakemake("--dry-run")
    said = done.stdout + done.stderr
    assert "has no temperature" in said and "tomoline calibrate msdnet-localizer voxels" in said
    save_threshold_network(run.folder / "models" / "other", "classifier", ["background", "rod"])
    try:
        wrong = {**MODELS, "ensemble": ["dsmnet-classifier", "other"]}
        run.configure(models=wrong)
        done = run.snakemake("--dry-run")
        assert done.returncode != 0
        assert "the classes ball, cube" in done.stdout + done.stderr
    finally:
        run.configure(models=MODELS)
