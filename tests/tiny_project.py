"""A small project as a user has one, with networks whose answer can be calculated."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from tomoline.networks.cards import ModelCard, Sift, load_card
from tomoline.networks.dsmnet import DSMNet
from tomoline.networks.msdnet import MSDNet
from tomoline.networks.weights import save_model
from tomoline.stages.onboard import Request, onboard

ROOT = Path(__file__).parents[1]
VOXEL_SIZE = 10.0
RADIUS = 4.0


def save_threshold_network(folder: Path, role: str, classes: Sequence[str], **shape: Any) -> None:
    """Write a network that sees single voxels: dark ones are of the first class.

    After the preparation particles are negative in units of standard deviations, so the logit
    `-6 x - 36` of a class passes zero at 6 deviations below the mean. Of a larger `shape`, such as
    `depth=49`, it takes as long as any other, and all its layers give zero.
    """
    small = {"depth": 1, "width": 1, "max_dilation": 1}
    parameters: dict[str, Any] = {**small, **shape, "classes": len(classes)}
    network = MSDNet(in_channels=1, **parameters)
    state = {key: torch.zeros_like(value) for key, value in network.state_dict().items()}
    state["last_weight"][1, 0] = -6.0
    state["last_bias"][1] = -36.0
    state["last_bias"][2:] = -99.0
    card = ModelCard(
        name=folder.name,
        network="msdnet",
        parameters=parameters,
        role=role,
        classes=list(classes),
        voxel_size_angstrom=VOXEL_SIZE,
        voxel_size_range_angstrom=(8.0, 12.0),
        threshold=0.5 if role == "localizer" else None,
        bandwidth_vox=RADIUS if role == "localizer" else None,
        box_vox=16 if role == "classifier" else None,
        receptive_field_vox=network.receptive_field_vox,
        n_parameters=1,
    )
    save_model(folder, card, state)


def save_whole_network(folder: Path, classes: Sequence[str], *, sift: Sift | None = None) -> None:
    """Write a classifier of whole subtomograms: enough dark voxels are the first class.

    Each layer hands on, or sums, what lies below 6 deviations, so the feature grows with the
    volume of the dark structure: a ball of 4 voxels' radius lies far above the class's threshold,
    one of 2 as far below it.
    """
    parameters: dict[str, Any] = {
        "classes": len(classes), "maps": [1, 1, 1], "features": 1, "dropout": 0.0,
        "stem": "strided",
    }  # fmt: skip
    network = DSMNet(in_channels=1, **parameters)
    state = {key: torch.zeros_like(value) for key, value in network.state_dict().items()}
    for key in state:
        if key.endswith("running_var") or ("norm" in key and key.endswith("weight")):
            state[key] += 1.0
    state["first.weight"][0, 0, 2, 2, 2] = -1.0  # dark is positive
    state["first_norm.running_mean"] += 6.0
    for k in range(2):
        state[f"halve.{k}.0.weight"] += 1 / 27
        state[f"halve.{k}.1.weight"] += 1.0
    state["to_features.weight"] += 1.0
    state["last.weight"][1, 0] = 80.0
    state["last.bias"][1] = -5.0
    state["last.bias"][2:] = -99.0
    card = ModelCard(
        name=folder.name,
        network="dsmnet",
        parameters=parameters,
        role="classifier",
        classes=list(classes),
        voxel_size_angstrom=VOXEL_SIZE,
        voxel_size_range_angstrom=(8.0, 12.0),
        box_vox=16,
        receptive_field_vox=16,
        n_parameters=1,
        sift=sift,
    )
    save_model(folder, card, state)


def balls(
    centres_zyx: Sequence[Sequence[float]],
    *,
    seed: int,
    specks_zyx: Sequence[Sequence[float]] = (),
) -> NDArray[np.float32]:
    """A volume (40, 48, 56) of weak noise with dark balls, and specks of half their radius."""
    grid = np.moveaxis(np.indices((40, 48, 56)), 0, -1)
    volume = np.random.default_rng(seed).normal(0, 0.1, (40, 48, 56))
    for radius, centres in ((RADIUS, centres_zyx), (RADIUS / 2, specks_zyx)):
        for centre in centres:
            volume[np.linalg.norm(grid - centre, axis=-1) <= radius] -= 3.0
    return volume.astype(np.float32)


def write_tomogram(path: Path, volume: NDArray[np.float32]) -> None:
    """Write an MRC file of the tests' voxel size."""
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(volume)
        file.voxel_size = VOXEL_SIZE


@dataclass(frozen=True)
class Project:
    """A folder with tomograms, a data set and a configuration."""

    folder: Path

    def configure(self, **sections: Any) -> None:
        """Write config.yaml: the tests' models, and these sections."""
        base: dict[str, Any] = {"datasets": ["tiny"], "models": {"folder": "models"}}
        base["evaluate"] = {"dog_picker": False}
        path = self.folder / "config" / "config.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump({**base, **sections}))

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of this Python's environment in the folder."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        environment.pop("SNAKEMAKE_PROFILE", None)
        program = Path(sys.executable).with_name(arguments[0])
        return subprocess.run(
            [str(program), *arguments[1:]],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def snakemake(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the workflow with its own default profile."""
        profile = ROOT / "profiles" / "default"
        return self.run(
            "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2",
            "--workflow-profile", str(profile), *arguments,
        )  # fmt: skip

    def planned(self, *arguments: str) -> dict[str, int]:
        """Jobs of a dry run: rule and number."""
        done = self.snakemake("--dry-run", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        lines = (done.stdout + done.stderr).splitlines()
        starts = [n for n, line in enumerate(lines) if line.startswith("job ")]
        if not starts:
            return {}
        jobs = {}
        for line in lines[starts[0] + 2 :]:
            if not line.strip() or line.startswith("total"):
                break
            name, count = line.split()
            jobs[name] = int(count)
        return jobs

    def file(self, *parts: str) -> Path:
        """A file below the results of the data set."""
        return self.folder.joinpath("results", "tiny", *parts)


CENTRES = {
    "one": [(12, 12, 14), (28, 30, 40)],
    "two": [(20, 20, 20)],
    "three": [(12, 30, 12), (12, 12, 40), (28, 24, 28)],
}


def make_project(
    folder: Path, centres: Mapping[str, Sequence[Sequence[float]]] = CENTRES
) -> Project:
    """Tomograms with dark balls, onboarded; the one called `one` has a truth."""
    project = Project(folder)
    (folder / "tomograms").mkdir(parents=True)
    for seed, (name, places) in enumerate(centres.items()):
        write_tomogram(folder / "tomograms" / f"{name}.mrc", balls(places, seed=seed))
    save_threshold_network(folder / "models" / "msdnet-localizer", "localizer",
                           ["background", "particle"])  # fmt: skip
    save_threshold_network(folder / "models" / "dsmnet-classifier", "classifier",
                           ["background", "ball", "cube"])  # fmt: skip
    project.configure()
    truth = folder / "tomograms" / "one_particles.csv"
    rows = [f"{x},{y},{z},ball" for z, y, x in CENTRES["one"]]
    truth.write_text("\n".join(["x,y,z,cls", *rows]) + "\n")
    onboard(Request(name="tiny", paths=(folder / "tomograms",)), project=folder)
    return project


def make_sifted_project(
    folder: Path, classes: Sequence[str], specks_zyx: Sequence[tuple[int, int, int]]
) -> Project:
    """A tomogram `one` of two balls and of specks, which the localizer takes for particles too.

    Its classifier of wholes, `dsmnet-classifier`, sifts them: fitted to the localizer, it takes
    what it gives a probability of 0.6 or more.
    """
    project = make_project(folder, {"one": CENTRES["one"]})
    volume = balls(CENTRES["one"], seed=0, specks_zyx=specks_zyx)
    write_tomogram(project.folder / "tomograms" / "one.mrc", volume)
    models = project.folder / "models"
    sift = Sift(
        localizer_sha256=load_card(models / "msdnet-localizer").weights_sha256, threshold=0.3,
        least=0.6, intercept=0.0, score=0.0, background=1.0,
    )  # fmt: skip
    save_whole_network(models / "dsmnet-classifier", classes, sift=sift)
    return project
