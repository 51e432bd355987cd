"""Real and dry runs of the workflow beside the story of `test_failure.py`."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import starfile
import yaml
from snakemake.profiles import ProfileConfigFileParser
from tiny_project import ROOT, Project, make_project

from tomoline.export.dialect import Place
from tomoline.export.registry import DIALECTS
from tomoline.io.sheet import load_dataset
from tomoline.stages.importing import geometry_of

CENTRES = {"one": [(12, 12, 14), (28, 30, 40)], "empty": [], "spare": [(20, 20, 20)]}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A run with small windows in two shards, everything kept, one row not used, one file empty."""
    project = make_project(tmp_path_factory.mktemp("run"), CENTRES)
    sheet = project.folder / "config" / "datasets" / "tiny.tsv"
    sheet.write_text(sheet.read_text().replace("spare.mrc\tyes", "spare.mrc\tno"))
    keep = ["prepared", "shards", "probability", "mask", "subtomograms", "classes"]
    project.configure(keep=keep, tiling={"shards": 2, "size_vox": 32, "halo_vox": 4})
    done = project.snakemake()
    assert done.returncode == 0, done.stderr
    return project


@pytest.fixture(scope="module")
def exported(kept: Project) -> Project:
    """The same, and then all dialects named in the settings and run again."""
    config = kept.folder / "config" / "config.yaml"
    settings = {**yaml.safe_load(config.read_text()), "export": {"dialects": list(DIALECTS)}}
    config.write_text(yaml.safe_dump(settings))
    done = kept.snakemake()
    assert done.returncode == 0, done.stderr
    assert not re.findall(r"rule (prepare|tile|segment|classify|vote):", done.stderr)
    return kept


def accepted(project: Project, tomogram: str) -> pd.DataFrame:
    table = pd.read_csv(project.file(tomogram, "particles.csv"))
    return table[table["status"] == "accepted"]


def test_shards_find_what_was_planted(kept: Project) -> None:
    places = accepted(kept, "one")[["z_vox", "y_vox", "x_vox"]].to_numpy()
    assert len(places) == 2
    for centre in CENTRES["one"]:
        assert np.linalg.norm(places - centre, axis=1).min() < 0.5


def test_what_keep_names_is_kept(kept: Project) -> None:
    names = {path.name for path in kept.file("one").rglob("*") if path.is_file()}
    assert {"1-of-2.h5", "2-of-2.h5", "prepared.mrc", "probability.mrc", "mask.mrc",
            "subtomograms.h5", "classes.h5"} <= names  # fmt: skip
    assert {"segment_1-of-2.log", "segment_2-of-2.log", "segment_1-of-2.jsonl"} <= names


def test_kept_files_spare_the_next_run_their_making(kept: Project) -> None:
    config = kept.folder / "config" / "config.yaml"
    text = config.read_text()
    config.write_text(yaml.safe_dump({**yaml.safe_load(text), "cluster": {"min_size_vox": 9}}))
    try:
        planned = set(kept.planned())
    finally:
        config.write_text(text)
    assert {"cluster", "extract", "classify", "vote"} <= planned
    assert not {"prepare", "segment", "merge"} & planned


def test_an_empty_tomogram_gives_valid_empty_files_and_a_row(kept: Project) -> None:
    assert len(accepted(kept, "empty")) == 0
    for name in ("relion5.star", "relion4.star"):
        tables = starfile.read(kept.file("empty", "export", name), always_dict=True)
        assert len(tables["particles"]) == 0
    assert len(pd.read_csv(kept.file("empty", "export", "particles.csv"))) == 0
    assert kept.file("empty", "report", "tomogram.html").is_file()


@pytest.mark.parametrize("name", DIALECTS)
def test_dialects_named_later_are_written_by_the_next_run(exported: Project, name: str) -> None:
    """Each tomogram's own file, read back, has its particles; the data set's file is there."""
    entry = DIALECTS[name]
    dataset, (row, *_) = load_dataset("tiny", folder=exported.folder / "config" / "datasets")
    place = Place(geometry=geometry_of(row, dataset))
    table = entry.read(exported.file("one", "export", *entry.file_name.split("/")), place)
    found = table[["z_vox", "y_vox", "x_vox"]].to_numpy()
    wanted = accepted(exported, "one")[["z_vox", "y_vox", "x_vox"]].to_numpy()
    assert len(found) == len(wanted) == 2
    for centre in wanted:
        assert np.abs(found - centre).max(axis=1).min() < 0.01
    assert exported.file("export", name, entry.combined_name).is_file()


def test_nothing_is_left_to_do_then(exported: Project) -> None:
    assert exported.planned() == {}


def test_the_summary_lists_rows_that_were_not_run(kept: Project) -> None:
    table = pd.read_csv(kept.file("report", "summary.csv")).set_index("tomogram")
    assert dict(table["state"]) == {"one": "finished", "empty": "finished", "spare": "unused"}
    assert not kept.file("spare").exists()


def refusal(project: Project) -> str:
    done = project.snakemake("--dry-run")
    assert done.returncode != 0
    message = done.stdout + done.stderr
    assert "Traceback" not in message
    return message


def test_faults_are_refused_at_once_and_without_a_traceback(project: Project) -> None:
    project.configure(cluster={"min_size": 3})
    message = refusal(project)
    assert "did you mean `min_size_vox`?" in message
    assert len(message.splitlines()) < 15
    project.configure()
    (project.folder / "models" / "msdnet-localizer" / "weights.safetensors").write_bytes(b"")
    assert "SHA-256" in refusal(project)


def test_a_file_that_is_gone_does_not_keep_the_others_from_running(project: Project) -> None:
    (project.folder / "tomograms" / "two.mrc").unlink()
    assert project.planned()["prepare"] == 3
    done = project.snakemake("results/tiny/two/prepared.json")
    assert done.returncode != 0
    assert "tomograms/two.mrc" in project.file("two", "logs", "prepare.log").read_text()


def test_default_profile_leaves_the_cluster_profile_alone() -> None:
    default = yaml.safe_load((ROOT / "profiles" / "default" / "config.yaml").read_text())
    slurm = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())
    assert default["keep-going"] is True
    assert default["rerun-incomplete"] is True
    assert not set(default) & set(slurm)
    assert not {"executor", "jobs", "cores", "resources", "default-resources"} & set(default)
    assert (ROOT / "slurm").resolve() == (ROOT / "profiles" / "slurm").resolve()


@pytest.mark.parametrize(("tomograms", "scheduler"), [(0, "ilp"), (299, "ilp"), (301, "greedy")])
def test_the_solver_schedules_small_graphs_and_the_greedy_one_large_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tomograms: int, scheduler: str
) -> None:
    (tmp_path / "config" / "datasets").mkdir(parents=True)
    sheet = tmp_path / "config" / "datasets" / "d.tsv"
    sheet.write_text("\n".join(["tomogram", *map(str, range(tomograms))]))
    monkeypatch.chdir(tmp_path)
    with (ROOT / "profiles" / "default" / "config.yaml").open() as handle:
        assert ProfileConfigFileParser().parse(handle)["scheduler"] == scheduler


def test_retries_are_in_the_profile_and_groups_stay_within_a_tomogram() -> None:
    text = "".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))
    slurm = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())
    assert slurm["retries"] >= 1
    assert "retries:" not in text
    assert "group-components" not in slurm
    rule = r"^rule (\w+):(?:(?!^rule ).)*?    group:\n        [^\n]*(?:NETWORK|VOTES)"
    one_job = re.findall(rule, text, re.MULTILINE | re.DOTALL)
    assert set(one_job) == {"tile", "segment", "merge", "cluster", "extract", "classify", "vote"}
    partitions = {slurm["set-resources"][rule]["slurm_partition"] for rule in one_job}
    assert partitions == {"gpu"}  # a job has one partition


def test_cluster_profile_names_only_rules_that_exist() -> None:
    text = "".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))
    slurm = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())
    for rule in slurm["set-resources"]:
        assert f"rule {rule}:" in text


def test_training_and_simulation_need_no_model_and_no_dataset(project: Project) -> None:
    project.configure(datasets=["none"], models={"folder": "nowhere"})
    (project.folder / "resources").symlink_to(ROOT / "resources")
    assert project.planned("train") == {"train": 1}
    assert project.planned("simulate") == {"simulate_one": 10, "simulate": 1}
    assert project.planned("simulate_demo") == {"simulate_demo": 1}
    two = {"name": "x", "tomograms": 3, "variants": {"a": {"snr": 1.0}, "b": {"snr": 0.1}}}
    project.configure(datasets=["none"], models={"folder": "nowhere"}, simulate=two)
    assert project.planned("simulate") == {"simulate_one": 6, "simulate": 1}
    assert project.planned("simulate_subtomograms") == {
        "simulate_boxes": 6, "simulate_join": 2, "simulate_subtomograms": 1
    }  # fmt: skip
    assert "nowhere" in refusal(project)


def test_workflow_passes_its_own_linter(project: Project) -> None:
    done = project.snakemake("--lint")
    assert done.returncode == 0, done.stderr


def test_demo_dataset_is_shipped_and_can_be_planned(tmp_path: Path) -> None:
    done = Project(ROOT).run("snakemake", "--dry-run", "--nolock", "--forceall",
                             "--config", "datasets=[demo]", "--cores", "2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "wildcards: dataset=demo, tomogram=demo_01" in done.stdout + done.stderr
