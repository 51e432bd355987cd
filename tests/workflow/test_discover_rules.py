"""The branch of the discovery in a real run: from candidates to a class of one's own naming."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import starfile
import torch
from planted_sets import write_set
from tiny_project import VOXEL_SIZE, make_project

from tomoline.io.cluster_names import read_clusters
from tomoline.io.features import read_features
from tomoline.io.stacks import open_stack
from tomoline.networks.cards import ModelCard
from tomoline.networks.dsmnet import DSMNet
from tomoline.networks.weights import save_model

EVERY = [(z, y, x) for z in (11, 28) for y in (12, 35) for x in (13, 42)]
CENTRES = {"one": EVERY[:5], "two": EVERY[3:]}
CLASSES = ["background", "ball", "cube"]


def save_multitask(folder: Path) -> None:
    """A network with all subnets, as it is before any training."""
    shape = {
        "classes": 3, "maps": [2, 2, 2], "features": 6, "stem": "strided",
        "subnets": ["classification", "segmentation", "recovery"],
    }  # fmt: skip
    torch.manual_seed(3)
    card = ModelCard(
        name="multi", network="dsmnet", parameters=shape, role="classifier", classes=CLASSES,
        voxel_size_angstrom=VOXEL_SIZE, voxel_size_range_angstrom=(8.0, 12.0), box_vox=12,
        receptive_field_vox=12, n_parameters=1,
    )  # fmt: skip
    save_model(folder, card, DSMNet(**shape).state_dict())


def test_a_named_cluster_is_a_class_in_the_exports(tmp_path: Path) -> None:
    project = make_project(tmp_path, CENTRES)
    save_multitask(tmp_path / "models" / "multi")
    chosen = {"enabled": True, "model": "multi", "clusters": 2, "most_clusters": 3,
              "test_time_flips": 1}  # fmt: skip
    export = {"dialects": ["csv", "relion5"]}
    project.configure(discover=chosen, export=export)
    done = project.snakemake()
    assert done.returncode == 0, done.stderr
    for name, places in CENTRES.items():
        features = read_features(project.file(name, "discovery", "features.h5"))
        assert features.features.shape == (len(places), 6)
        for stack in ("masks.mrc", "densities.mrc"):
            volumes = open_stack(project.file(name, "discovery", stack))
            assert volumes.shape == (len(places), 12, 12, 12)
    mark, clusters = read_clusters(project.file("discovery", "clusters.csv"))
    assert len(clusters) == 10 and set(clusters["cluster"]) == {1, 2}
    page = project.file("discovery", "clusters.html").read_text()
    assert mark in page and "http-equiv" not in page

    names = tmp_path / "config" / "found.yaml"
    names.write_text(f"clustering: {mark}\nnames: {{2: novel}}\n")
    project.configure(discover={**chosen, "names": {"tiny": "config/found.yaml"}}, export=export)
    planned = set(project.planned())
    assert {"vote", "export"} <= planned and not {"segment", "multitask"} & planned
    done = project.snakemake()
    assert done.returncode == 0, done.stderr
    named = clusters[clusters["cluster"] == 2]
    table = pd.read_csv(project.file("export", "csv", "particles.csv"))
    novel = table[table["class"] == "novel"]
    assert sorted(zip(novel["tomogram"], novel["particle_id"], strict=True)) == sorted(
        zip(named["tomogram"], named["candidate_id"], strict=True)
    )
    assert set(table["class"]) == {"novel", "ball"} and len(table) == 10
    stars = list(project.file("export", "relion5").glob("*.star"))
    texts = "".join(path.read_text() for path in stars)
    assert "novel" in texts and all(starfile.read(path, always_dict=True) for path in stars)

    names.write_text("clustering: 000000000000\nnames: {2: novel}\n")
    refused = project.snakemake("--forcerun", "vote")
    assert refused.returncode != 0
    log = project.file("one", "logs", "vote.log").read_text()
    assert "the clusters have changed" in log


def test_a_users_own_files_need_no_tomograms(tmp_path: Path) -> None:
    project = make_project(tmp_path, {"one": [(20, 20, 20)]})
    save_multitask(tmp_path / "models" / "multi")
    files = [write_set(tmp_path / f"{name}.h5", seed=k, each=3) for k, name in enumerate("ab")]
    project.configure(
        datasets=["nothing"],
        discover={"model": "multi", "files": [str(f) for f in files], "name": "mine", "clusters": 3,
                  "most_clusters": 4, "test_time_flips": 1},
    )  # fmt: skip
    done = project.snakemake("discover")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "results" / "discovered" / "mine"
    _, clusters = read_clusters(folder / "clusters.csv")
    assert clusters["tomogram"].tolist() == ["a"] * 27 + ["b"] * 27
    assert set(clusters["true"]) == {"ball", "cube", "shell"}
    assert "Recovered against true densities" in (folder / "clusters.html").read_text()
