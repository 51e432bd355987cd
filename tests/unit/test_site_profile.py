"""`tomoline init-profile`: sinfo's lines in, a profile with this site's partitions out."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tomoline import cli
from tomoline.errors import InputError
from tomoline.stages.project import init_project, workflow_root
from tomoline.stages.site_profile import (
    SINFO_FORMAT,
    TEMPLATE,
    Wishes,
    asked_minutes,
    choose,
    fill,
    parse_sinfo,
)

ROOT = workflow_root()
SHIPPED = (ROOT / TEMPLATE).read_text()

# As a cluster with preemption by tier prints it: every partition shows the cluster's mode.
LARGE = """\
batch*|up|4-00:00:00|40|64|256000|(null)|12/26/2/40|REQUEUE|10
debug|up|30:00|2|64|256000|(null)|0/2/0/2|REQUEUE|20
gpu|up|2-00:00:00|8|48|512000|gpu:a100:4(S:0-1)|8/0/0/8|REQUEUE|20
gpu|up|2-00:00:00|4|32|256000|gpu:v100:2|4/0/0/4|REQUEUE|20
gpu-long|up|7-00:00:00|2|48|512000|gpu:a100:4|2/0/0/2|REQUEUE|20
gpu-scavenge|up|infinite|12|32+|256000+|gpu:a100:4|2/0/0/12|REQUEUE|1
gpu-old|down|infinite|3|16|64000|gpu:2|0/0/3/3|OFF|10
"""
# As Debian's SLURM 22.05 prints the four emulated nodes of tests/slurm.
EMULATED = """\
cpu*|up|2-00:00:00|2|8|16000|(null)|0/2/0/2|OFF|10
gpu|up|2-00:00:00|2|8|16000|gpu:2|0/2/0/2|OFF|10
gpu_low|up|2-00:00:00|2|8|16000|gpu:2|0/2/0/2|REQUEUE|1
"""
NO_GPU = "main*|up|1-12:00:00|1.2K|32|128000|(null)|600/600/0/1.2K|OFF|1\n"
MIXED = "all*|up|infinite|4|32|128000|gpu:rtx:2|0/4/0/4|OFF|1\n"


def chosen(text: str, **wishes: Any) -> tuple[str, str | None]:
    choice = choose(parse_sinfo(text, source="test"), Wishes(**wishes))
    return choice.cpu.name, choice.gpu.name if choice.gpu else None


def filled(text: str, template: str = SHIPPED, **wishes: Any) -> dict[str, Any]:
    choice = choose(parse_sinfo(text, source="test"), Wishes(**wishes))
    profile = yaml.safe_load(fill(template, choice, account=wishes.get("account"))[0])
    assert isinstance(profile, dict)
    return profile


def test_lines_of_one_partition_are_joined() -> None:
    parts = {part.name: part for part in parse_sinfo(LARGE, source="test")}
    gpu = parts["gpu"]
    assert (gpu.nodes, gpu.cpus, gpu.gpus, gpu.gpu_kinds) == (12, 48, 4, ("a100", "v100"))
    assert (gpu.minutes, parts["debug"].minutes) == (2880, 30)
    assert parts["batch"].default
    assert not parts["batch"].gpus
    assert not parts["gpu-old"].up
    assert parts["gpu-scavenge"].cpus == 32
    assert parse_sinfo(NO_GPU, source="test")[0].nodes == 1200


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("1-02:03:00", 1563), ("02:03:30", 123.5), ("90:00", 90), ("2-0", 2880), ("45", 45)],
)
def test_time_limits(limit: str, minutes: float) -> None:
    text = MIXED.replace("infinite", limit)
    assert parse_sinfo(text, source="test")[0].minutes == minutes


@pytest.mark.parametrize(
    ("gres", "count"),
    [
        ("(null)", 0), ("gpu", 1), ("gpu:2", 2), ("gpu:a100:8(S:0-1)", 8), ("nvme:1,gpu:4", 4),
        ("gpu:a100:2,gpu:v100:1", 3), ("mygpu:1", 0), ("gpu:1g.5gb:7", 7),
    ],
)  # fmt: skip
def test_generic_resources(gres: str, count: int) -> None:
    assert parse_sinfo(MIXED.replace("gpu:rtx:2", gres), source="test")[0].gpus == count


@pytest.mark.parametrize(
    ("text", "cpu", "gpu"),
    [
        (LARGE, "batch", "gpu-long"),  # not the test partition, the scavenger, the one that is down
        (EMULATED, "cpu", "gpu"),
        (NO_GPU, "main", None),
        (MIXED, "all", "all"),
        (LARGE.replace("batch*", "batch"), "batch", "gpu-long"),
        (LARGE.replace("batch*|up", "batch*|drain"), "debug", "gpu-long"),
    ],
)
def test_choice(text: str, cpu: str, gpu: str | None) -> None:
    assert chosen(text) == (cpu, gpu)


def test_wishes_are_followed() -> None:
    assert chosen(LARGE, gpu_partition="gpu", cpu_partition="debug") == ("debug", "gpu")
    assert chosen(LARGE, gpu_partition="none") == ("batch", None)
    with pytest.raises(InputError, match="expected one of batch, debug, gpu, gpu-long"):
        chosen(LARGE, gpu_partition="gpuu")


def test_what_is_unusual_is_told() -> None:
    def warnings(text: str) -> str:
        return " ".join(choose(parse_sinfo(text, source="test"), Wishes()).warnings)

    assert warnings(LARGE) == warnings(EMULATED) == ""
    assert "run on CPUs" in warnings(NO_GPU)
    assert "has GPUs: jobs that need none go to all" in warnings(MIXED)
    only_low = "".join(line for line in EMULATED.splitlines(True) if not line.startswith("gpu|"))
    assert "can be preempted; gpu_low is taken" in warnings(only_low)
    with pytest.raises(InputError, match="expected a partition that is up"):
        choose(parse_sinfo(MIXED.replace("|up|", "|down|"), source="t"), Wishes())


@pytest.mark.parametrize("text", [LARGE, EMULATED, NO_GPU, MIXED])
def test_every_rule_of_the_template_gets_its_partition(text: str) -> None:
    shipped, profile = yaml.safe_load(SHIPPED), filled(text)
    cpu, gpu = chosen(text)
    names = {"cpu": cpu, "gpu": gpu or cpu}
    assert profile["default-resources"]["slurm_partition"] == cpu
    assert profile["set-resources"].keys() == shipped["set-resources"].keys()
    for rule, resources in shipped["set-resources"].items():
        mine = profile["set-resources"][rule]
        assert mine["slurm_partition"] == names[resources["slurm_partition"]], rule
        assert ("gpu" in mine) == ("gpu" in resources and gpu is not None), rule
    others = shipped.keys() - {"default-resources", "set-resources"}
    assert {key: profile[key] for key in others} == {key: shipped[key] for key in others}


def test_comments_stay() -> None:
    choice = choose(parse_sinfo(EMULATED, source="test"), Wishes())
    text, notes = fill(SHIPPED, choice)
    assert notes == []
    added = [line for line in text.splitlines() if line not in SHIPPED.splitlines()]
    assert [line for line in SHIPPED.splitlines() if line not in text.splitlines()] == []
    assert len(added) == 4  # three in the heading, and:
    assert "# slurm_partition: gpu_low # can be preempted" in added[-1]


def test_an_account_is_set_only_where_it_is_given() -> None:
    assert filled(EMULATED, account="lab42")["default-resources"]["slurm_account"] == "lab42"
    assert "slurm_account" not in filled(EMULATED)["default-resources"]
    with pytest.raises(InputError, match="an account's name"):
        filled(EMULATED, account="my lab: 3")


@pytest.mark.parametrize("name", ["no", "1234", "1e3"])
def test_names_that_yaml_would_take_for_something_else(name: str) -> None:
    profile = filled(EMULATED.replace("cpu*", f"{name}*"), account=name)
    default = profile["default-resources"]
    assert (default["slurm_partition"], default["slurm_account"]) == (name, name)


def test_run_times_beyond_the_limit_are_lowered() -> None:
    text = EMULATED.replace("gpu|up|2-00:00:00", "gpu|up|06:00:00")
    choice = choose(parse_sinfo(text, source="test"), Wishes())
    profile, notes = fill(SHIPPED, choice)
    assert yaml.safe_load(profile)["set-resources"]["train"]["runtime"] == 360
    assert notes == [
        "train: gpu ends jobs after 6 h, so its run time is set to that instead of 24 h"
    ]


def test_a_template_that_cannot_be_filled_is_refused() -> None:
    template = SHIPPED.replace("slurm_partition: gpu\n", "slurm_partition: 'fast one'\n", 1)
    with pytest.raises(InputError, match="others at tile"):
        filled(EMULATED, template)


def test_what_rules_ask_for_is_read_from_them() -> None:
    asked = asked_minutes(ROOT, on_gpu=False)
    assert {"prepare", "segment", "merge", "cluster", "classify", "vote", "evaluate"} <= set(asked)
    assert all(base > 0 for base, _ in asked.values())
    assert asked["segment"][1] > 0
    faster = asked_minutes(ROOT, on_gpu=True)
    assert faster["segment"][1] < asked["segment"][1]
    assert faster["merge"] == asked["merge"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    init_project(tmp_path / "mine")
    return tmp_path / "mine"


@pytest.fixture
def captured(tmp_path: Path) -> Path:
    path = tmp_path / "sinfo.txt"
    path.write_text(EMULATED)
    return path


def test_a_project_gets_it_where_snakemake_looks(
    project: Path, captured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["init-profile", "--project", str(project), "--from-file", str(captured)]
    captured.write_text(LARGE)
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "  snakemake --profile slurm\n" in out
    assert re.search(r"gpu-long +gpu +7 days", out)
    first = (project / "slurm/config.yaml").read_text()
    assert "slurm_partition: gpu-long" in first
    assert (ROOT / TEMPLATE).read_text() == SHIPPED  # the shipped one is left alone
    # a second time only when forced, and then the first one is kept
    assert cli.main([*arguments, "--account", "lab"]) == 2
    assert "--force (it is kept as .bak)" in capsys.readouterr().err
    assert (project / "slurm/config.yaml").read_text() == first
    assert cli.main([*arguments, "--account", "lab", "--force"]) == 0
    assert (project / "slurm/config.yaml.bak").read_text() == first
    assert "slurm_account: lab " in (project / "slurm/config.yaml").read_text()
    assert cli.main([*arguments, "--force"]) == 0
    assert (project / "slurm/config.yaml.bak").read_text() == first
    assert (project / "slurm/config.yaml.bak1").exists()


def test_a_folder_or_the_users_own(
    tmp_path: Path, captured: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], project: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    arguments = ["init-profile", "--from-file", str(captured)]
    assert cli.main([*arguments, "--user"]) == 0
    assert (tmp_path / "home/snakemake/slurm/config.yaml").is_file()
    assert cli.main([*arguments, "our_site"]) == 0
    assert (tmp_path / "our_site/config.yaml").is_file()
    assert "snakemake --profile our_site" in capsys.readouterr().out
    assert cli.main([*arguments, "mine"]) == 0
    assert "slurm_partition: gpu_low" in (project / "slurm/config.yaml").read_text()
    assert cli.main([*arguments, "x", "--user"]) == 2
    assert cli.main(arguments) == 2  # this folder is no project
    assert "a project folder" in capsys.readouterr().err


def test_the_repository_itself_gets_one_beside_the_shipped_one(
    tmp_path: Path, captured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "repository"
    for name in ("config/config.yaml", TEMPLATE):
        (root / name).parent.mkdir(parents=True)
        shutil.copy(ROOT / name, root / name)
    (root / "slurm").symlink_to("profiles/slurm")
    monkeypatch.setattr("tomoline.stages.site_profile.workflow_root", lambda: root)
    assert cli.main(["init-profile", "--project", str(root), "--from-file", str(captured)]) == 0
    assert (root / TEMPLATE).read_text() == SHIPPED
    assert (root / "profiles/site/config.yaml").is_file()


def test_a_link_to_another_projects_profile_is_not_written_through(
    project: Path, captured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "slurm").unlink()
    (tmp_path / "others").mkdir()
    (project / "slurm").symlink_to(tmp_path / "others")
    arguments = ["init-profile", "--project", str(project), "--from-file", str(captured)]
    assert cli.main(arguments) == 2
    assert "a link to" in capsys.readouterr().err
    assert not list((tmp_path / "others").iterdir())


def test_partitions_that_end_jobs_too_early_are_told(
    project: Path, captured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captured.write_text(EMULATED.replace("2-00:00:00", "00:30:00"))
    assert cli.main(["init-profile", str(project), "--from-file", str(captured)]) == 0
    out = capsys.readouterr().out
    assert "Mind: gpu ends jobs after 30 min, and a tomogram of 50 million voxels" in out
    assert "Mind: cpu ends jobs after 30 min, and a tomogram" in out


def program(folder: Path, name: str, text: str, code: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.out").write_text(text)
    stream = "2" if code else "1"
    path = folder / name
    path.write_text(
        f'#!/bin/sh\necho "$@" > "$0.asked"\n/bin/cat "$0.out" >&{stream}\nexit {code}\n'
    )
    path.chmod(0o755)


def test_the_cluster_is_asked(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    programs = tmp_path / "bin"
    program(programs, "sinfo", EMULATED)
    program(programs, "sacct", "")
    enforce = "AccountingStorageEnforce = associations,limits\n"
    program(programs, "scontrol", f"{enforce}AccountingStorageType   = accounting_storage/none\n")
    program(programs, "sacctmgr", "lab_a\nlab_b\nlab_a\n")
    monkeypatch.setenv("PATH", str(programs))
    assert cli.main(["init-profile", str(project)]) == 0
    out = capsys.readouterr().out
    assert (programs / "sinfo.asked").read_text().split() == ["-h", "-o", SINFO_FORMAT]
    assert "Mind: this cluster keeps no accounting" in out
    assert "(yours: lab_a, lab_b)" in out


@pytest.mark.parametrize(
    ("code", "text", "message"),
    [
        (None, "", "sinfo was not found on PATH. Remedy: run this on the cluster's login node"),
        (
            1,
            "slurm_load_partitions: Unable to contact slurm controller",
            "sinfo failed: slurm_load",
        ),
        (0, "PARTITION AVAIL TIMELIMIT\n", "sinfo -h -o .*, line 1: expected ten cells"),
        (0, "", "found none"),
    ],
)
def test_no_answer_is_an_error_with_the_remedy(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], code: int | None, text: str, message: str,
) -> None:  # fmt: skip
    (tmp_path / "bin").mkdir()
    if code is not None:
        program(tmp_path / "bin", "sinfo", text, code)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert cli.main(["init-profile", str(project)]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert (project / "slurm/config.yaml").read_text() == SHIPPED


def test_snakemake_reads_what_was_written(project: Path, captured: Path) -> None:
    from snakemake.profiles import ProfileConfigFileParser  # noqa: PLC0415

    assert cli.main(["init-profile", str(project), "--from-file", str(captured)]) == 0
    with (project / "slurm" / "config.yaml").open() as stream:
        read = ProfileConfigFileParser().parse(stream)
    assert "segment:slurm_partition=gpu" in read["set-resources"]
    assert (project / "slurm").samefile(project / "profiles/slurm")
