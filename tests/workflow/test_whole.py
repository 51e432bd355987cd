"""The workflow with a classifier of whole subtomograms, which also sifts the candidates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_project import (
    CENTRES,
    Project,
    make_project,
    make_sifted_project,
    save_whole_network,
)

from tomoline.ops.votes import BACKGROUND_LIKE

SPECKS = [(28, 12, 14), (12, 34, 40)]
CLASSES = ["background", "ball", "cube"]


@pytest.fixture(scope="module")
def sifted(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A tomogram of two balls and two specks, of which the localizer takes all for particles."""
    project = make_sifted_project(tmp_path_factory.mktemp("whole"), CLASSES, SPECKS)
    project.configure(keep=["classes"])
    done = project.snakemake()
    assert done.returncode == 0, done.stderr
    return project


def test_specks_are_sifted_out_and_balls_stay(sifted: Project) -> None:
    table = pd.read_csv(sifted.file("one", "particles.csv"), keep_default_na=False)
    particles = table[table["status"] == "accepted"]
    assert sorted(particles["class"]) == ["ball", "ball"]
    places = particles[["z_vox", "y_vox", "x_vox"]].to_numpy()
    for centre in CENTRES["one"]:
        assert np.linalg.norm(places - centre, axis=1).min() < 0.5
    out = table[table["status"] == "rejected"]
    assert list(out["reason"]) == [BACKGROUND_LIKE] * 2
    places = out[["z_vox", "y_vox", "x_vox"]].to_numpy()
    for centre in SPECKS:
        assert np.linalg.norm(places - centre, axis=1).min() < 0.5
    assert particles["score"].min() > 0.95
    assert out["score"].max() < 0.1
    np.testing.assert_allclose(table["score"], table["expected_precision"], atol=1e-6)
    score = json.loads(sifted.file("one", "evaluation.json").read_text())["one_to_one"]
    assert (score["tp"], score["fp"], score["fn"]) == (2, 0, 0)


def test_the_localizer_works_at_the_threshold_of_the_sift(sifted: Project) -> None:
    logs = "".join(p.read_text() for p in sifted.folder.rglob("merge*.log"))
    assert "0.3" in logs


def test_a_localizer_it_was_not_fitted_to_is_told_before_any_job(
    sifted: Project, tmp_path: Path
) -> None:
    project = make_project(tmp_path, {"one": CENTRES["one"]})
    save_whole_network(project.folder / "models" / "dsmnet-classifier", CLASSES)
    done = project.snakemake("--dry-run")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "tomoline calibrate msdnet-localizer dsmnet-classifier" in said
    again = sifted.snakemake("--dry-run")
    assert "tomoline calibrate" not in again.stdout + again.stderr
