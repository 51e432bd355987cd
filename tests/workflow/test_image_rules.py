"""Real runs: from simulated micrographs to a segmenter and masks; a localizer of slices."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tiny_project import CENTRES, RADIUS, ROOT, VOXEL_SIZE, Project

from tomoline.networks.cards import ModelCard
from tomoline.networks.pyconv_unet import PyConvUNet
from tomoline.networks.weights import save_model

TINY = {"filters": [4, 8], "pyramid": [2, 1]}
MICROGRAPHS = {
    "name": "tiny", "micrographs": 2, "shape_yx": [64, 96], "pixel_size_angstrom": 10.0,
    "structures": ["1bxn"], "particles": [2, 4], "carbon_share": 1.0,
    "sets": {"a": {}, "b": {"structures": ["1bxn", "3qm1"]}},
}  # fmt: skip
FILES = "results/simulated/tiny/*/micrograph_????"
TRAINING = {
    "name": "film", "networks": ["pyconv_unet"], "images": [f"{FILES}.mrc"],
    "labels": [f"{FILES}_mask.png"], "classes": {"carbon": [1], "other": [2, 3, 4]},
    "test_images": 1, "validation_images": 1, "crop_px": 32, "steps_per_epoch": 2,
    "max_epochs": 2, "precision": "float32", **TINY,
}  # fmt: skip


def run(project: Project, *arguments: str) -> None:
    done = project.snakemake(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_from_simulated_micrographs_to_a_segmenter_its_table_and_masks(project: Project) -> None:
    (project.folder / "resources").symlink_to(ROOT / "resources")
    segmenting = {
        "dataset": "session", "images": ["results/simulated/tiny/a/micrograph_????.mrc"],
        "model": "results/models/film-pyconv_unet",
    }  # fmt: skip
    project.configure(
        datasets=["none"], models={"folder": "nowhere"}, simulate_micrographs=MICROGRAPHS,
        train_images=TRAINING, segment_images=segmenting,
    )  # fmt: skip
    refused = project.snakemake("train_images", "--dry-run")
    assert refused.returncode != 0
    assert "make the files first" in refused.stdout + refused.stderr
    run(project, "simulate_micrographs")
    run(project, "train_images")
    models = project.folder / "results" / "models"
    table = pd.read_csv(models / "film" / "comparison.tsv", sep="\t")
    assert list(table[table["image"] == "all"]["network"]) == ["pyconv_unet"]
    assert (models / "film" / "comparison.md").read_text().count("| pyconv_unet |") == 1
    run(project, "segment_images")
    for number in (1, 2):
        folder = project.folder / "results" / "session" / f"micrograph_000{number}"
        mask = np.asarray(Image.open(folder / "mask.png"))
        probability = np.asarray(Image.open(folder / "mask_probability.png"))
        assert mask.shape == probability.shape == (64, 96)
        said = json.loads((folder / "mask.json").read_text())
        assert said["classes"] == {"0": "background", "1": "carbon", "2": "other"}


def save_slice_threshold(folder: Path) -> None:
    """A localizer of slices that marks voxels darker than 6 deviations below the mean."""
    parameters = {"in_channels": 3, "classes": 2, "filters": [1], "pyramid": [1]}
    network = PyConvUNet(**parameters)
    state = {k: torch.zeros_like(v) for k, v in network.state_dict().items()}
    for k, (sign, offset) in ((0, (-1.0, 6.0)), (3, (1.0, 0.0))):
        kernel = state[f"down.0.{k}.levels.0.weight"]
        kernel[0, kernel.shape[1] // 2, 1, 1] = sign
        state[f"down.0.{k + 1}.weight"] += 1
        state[f"down.0.{k + 1}.running_var"] += 1
        state[f"down.0.{k + 1}.running_mean"] += offset
    state["last.weight"] += 6.0
    state["last.bias"] -= 0.5
    save_model(folder, ModelCard(
        name=folder.name, network="pyconv_unet", parameters=parameters, role="localizer",
        classes=["background", "particle"], voxel_size_angstrom=VOXEL_SIZE,
        voxel_size_range_angstrom=(8.0, 12.0), threshold=0.5, bandwidth_vox=RADIUS,
        receptive_field_vox=network.receptive_field_vox, n_parameters=1,
    ), state)  # fmt: skip


def test_a_localizer_of_slices_finds_the_particles_in_the_same_rules(project: Project) -> None:
    save_slice_threshold(project.folder / "models" / "slices")
    models = {"folder": "models", "localizer": "slices"}
    project.configure(models=models, segment={"slice_axes": "all"})
    run(project, "results/tiny/one/candidates.csv")
    found = pd.read_csv(project.file("one", "candidates.csv"))
    found = found[found["status"] == "accepted"]
    places = found[[f"{a}_prepared_vox" for a in "zyx"]].to_numpy()
    assert len(places) == len(CENTRES["one"])
    for centre in CENTRES["one"]:
        assert np.linalg.norm(places - centre, axis=1).min() < 1.0
