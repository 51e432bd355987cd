"""A real run on micrographs: files for every program; one fails alone, the next run mends it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
import torch
import yaml
from tiny_project import ROOT

from tomoline.io.picks import read_picks
from tomoline.networks.hydrapicker import GENERAL, HydraPicker
from tomoline.networks.pickers import HeadCard, PickerCard, save_picker
from tomoline.stages.onboard_micrographs import MicrographRequest, onboard_micrographs
from tomoline.stages.project import init_project
from tomoline.stages.status import collect_status

SHAPE = {"body": 4, "width": 1 / 32, "stem": "strided"}


def save_untrained(folder: Path) -> None:
    """Write a picker that takes about every cell for a particle."""
    torch.manual_seed(1)
    network = HydraPicker(**SHAPE)
    with torch.no_grad():
        network.head(GENERAL)[-1].bias[2] = 1.0
    card = PickerCard(name=folder.name, parameters=SHAPE, heads={GENERAL: HeadCard()})
    save_picker(folder, card, network.state_dict())


def write_micrograph(path: Path, seed: int, *, empty: bool = False) -> None:
    values = np.random.default_rng(seed).normal(0, 0 if empty else 1, (150, 170))
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(values.astype(np.float32))
        file.voxel_size = 2.0


def snakemake(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("snakemake")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(program), "--cores", "1", "--keep-going", *words], cwd=project, env=environment,
        capture_output=True, text=True, check=False, timeout=540,
    )  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three micrographs: one good, one empty, and one that was damaged after onboarding."""
    folder = tmp_path_factory.mktemp("micrographs") / "project"
    init_project(folder)
    given = folder / "given"
    given.mkdir()
    write_micrograph(given / "good.mrc", 1)
    write_micrograph(given / "empty.mrc", 2, empty=True)
    write_micrograph(given / "broken.mrc", 3)
    (given / "good_picks.csv").write_text("x_px,y_px\n50,60\n100,90\n")
    save_untrained(folder / "results" / "models" / "untrained")
    request = MicrographRequest(name="set", paths=(given,), diameter_angstrom=50.0)
    assert onboard_micrographs(request, project=folder).usable == 3
    config = {"datasets": ["set"], "micrographs": {"model": "results/models/untrained"}}
    (folder / "config" / "config.yaml").write_text(yaml.safe_dump(config))
    (given / "broken.mrc").write_bytes((given / "broken.mrc").read_bytes()[:5000])
    first = snakemake(folder)
    assert first.returncode != 0
    return folder


def test_what_failed_fails_alone_and_is_named(project: Path) -> None:
    own = project / "results" / "set"
    assert not (own / "broken" / "picks.csv").exists()
    both = starfile.read(own / "export" / "relion" / "particles.star")
    assert set(both["rlnMicrographName"]) == {"given/good.mrc"}
    page = (own / "report" / "summary.html").read_text()
    assert "truncated" in page
    (status,) = collect_status(project, dataset="set")
    states = {row.tomogram: row.summary for row in status.tomograms}
    assert states == {"good": "finished", "empty": "finished", "broken": "failed"}
    assert "truncated" in next(
        row.stages["pick"].reason for row in status.tomograms if row.tomogram == "broken"
    )


def test_an_empty_micrograph_leaves_whole_empty_files(project: Path) -> None:
    own = project / "results" / "set"
    assert len(read_picks(own / "empty" / "picks.csv")) == 0
    assert (own / "export" / "eman" / "empty.box").read_text() == ""
    assert "Nothing varies in empty" in (own / "report" / "summary.html").read_text()


def test_picks_lie_within_the_micrograph_and_apart(project: Path) -> None:
    table = read_picks(project / "results" / "set" / "good" / "picks.csv")
    own = table.loc[table["status"] == "accepted", ["y_px", "x_px"]].to_numpy()
    assert len(own) > 5
    assert (own >= 12).all()  # half a diameter of 25 pixels from the edge
    assert (own <= [137, 157]).all()
    apart = np.linalg.norm(own[:, None] - own[None], axis=-1) + 1e3 * np.eye(len(own))
    assert apart.min() >= 0.6 * 25 * 0.99


def test_the_next_run_does_only_what_is_missing(project: Path) -> None:
    write_micrograph(project / "given" / "broken.mrc", 3)
    kept = project / "results" / "set" / "good" / "picks.csv"
    before = kept.stat().st_mtime_ns
    second = snakemake(project)
    assert second.returncode == 0, second.stderr
    assert kept.stat().st_mtime_ns == before
    listed = (project / "results" / "set" / "report" / "summary.csv").read_text()
    assert [line.split(",")[0] for line in listed.splitlines()[1:]] == ["broken", "empty", "good"]
    assert "truncated" not in (project / "results" / "set" / "report" / "summary.html").read_text()


def test_a_head_that_is_not_there_stops_the_run_at_once(project: Path) -> None:
    done = snakemake(project, "-n", "--config", "micrographs={model: results/models/untrained, "
                     "head: mine}")  # fmt: skip
    assert done.returncode != 0
    # Where Snakemake prints what stops a dry run differs between its releases.
    assert "general" in done.stdout + done.stderr
