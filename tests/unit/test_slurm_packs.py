"""Which jobs share a submission, what it asks for, and the folder through which it answers."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_jobs import FakeGroup, FakeJob
from hypothesis import given
from hypothesis import strategies as st

from tomoline_slurm.packs import OLD_S, PACKS, Pack, bundled, limit, read_plan, remove_old, task_of

BUNDLE = {"bundle": 4, "mem_mb": 1000, "runtime": 10}


def job(tomogram: str = "TS_01", *, bundle: int = 4, **changes: Any) -> FakeJob:
    known = {key: changes.pop(key) for key in ("name", "dataset", "threads", "attempt", "group")
             if key in changes}  # fmt: skip
    return FakeJob(tomogram=tomogram, wanted={**BUNDLE, "bundle": bundle, **changes}, **known)


def group(*rules: str, bundles: Sequence[int] = ()) -> FakeGroup:
    members = [
        job("TS_07", name=rule, group="network", bundle=bundle)
        for rule, bundle in zip(rules, bundles or [4] * len(rules), strict=True)
    ]
    return FakeGroup(members, wanted=dict(BUNDLE))


def test_what_a_job_is_about() -> None:
    task = task_of(job("TS/03", name="prepare", dataset="night", attempt=2))
    assert (task.name, task.rules, task.attempt) == ("prepare", ("prepare",), 2)
    assert task.label == "prepare_night_TS_03"
    assert task.history == Path("results/night/TS/03/logs/slurm.jsonl")


def test_what_a_group_is_about() -> None:
    task = task_of(group("vote", "tile", "segment"))
    assert (task.name, task.rules) == ("network", ("segment", "tile", "vote"))
    assert (task.dataset, task.tomogram) == ("d", "TS_07")


def test_a_group_may_have_no_name_and_a_job_no_tomogram() -> None:
    alone = FakeGroup([job("", name="train", dataset="")], wanted=dict(BUNDLE))
    assert task_of(alone).label == "train"


@pytest.mark.parametrize(
    "other",
    [
        {"name": "export"},
        {"dataset": "other"},
        {"threads": 2},
        {"slurm_partition": "gpu"},
        {"gpu": 1},
        {"attempt": 2},
        {"bundle": 1},
    ],
)
def test_what_may_not_share_a_submission(other: dict[str, Any]) -> None:
    alike, different = job("a"), job("b", **other)
    assert sorted(map(len, bundled([alike, different]))) == [1, 1]


@pytest.mark.parametrize(
    "other", [{}, {"mem_mb": 9000}, {"runtime": 99}, {"disk_mb": 7}, {"tmpdir": "/scratch"}]
)
def test_what_may_share_one(other: dict[str, Any]) -> None:
    assert [len(members) for members in bundled([job("a"), job("b", **other)])] == [2]


def test_two_that_are_tried_again_do_not_share() -> None:
    again = [job("a", attempt=2), job("b", attempt=2)]
    assert [len(members) for members in bundled(again)] == [1, 1]


def test_groups_of_one_name_share() -> None:
    pair = [group("tile", "segment"), group("tile", "segment")]
    assert list(bundled(pair)) == [pair]
    other = group("tile", "segment", "merge")  # a tomogram that has a part of its results
    assert sorted(len(m) for m in bundled([*pair, other])) == [1, 2]


def test_small_tomograms_are_not_held_back_by_large_ones() -> None:
    limits = [2, 4, 2, 4, 4, 4]
    sizes = [[limit(j) for j in members] for members in bundled([job(bundle=n) for n in limits])]
    assert sizes == [[4, 4, 4, 4], [2, 2]]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 3)), max_size=30))
def test_bundles_hold_each_job_once_and_keep_every_limit(drawn: list[tuple[int, int]]) -> None:
    jobs = [job(bundle=bundle, attempt=attempt) for bundle, attempt in drawn]
    bundles = list(bundled(jobs))
    assert sorted(id(j) for members in bundles for j in members) == sorted(map(id, jobs))
    for members in bundles:
        assert len(members) <= min(map(limit, members))
        assert len(members) == 1 or {j.attempt for j in members} == {1}


@pytest.mark.parametrize(("bundles", "least"), [((16, 3, 8), 3), ((16, 0, 8), 1), ((5, -1, 5), 1)])
def test_the_least_of_a_groups_rules_limits_it(bundles: tuple[int, ...], least: int) -> None:
    assert limit(group("tile", "segment", "merge", bundles=bundles)) == least


def test_a_job_that_says_nothing_has_a_submission_of_its_own() -> None:
    assert limit(FakeJob(wanted={"mem_mb": 100})) == 1


def test_one_job_asks_for_what_it_needs() -> None:
    single = Pack.of([job(threads=6, mem_mb=5000, runtime=30, slurm_partition="gpu", gpu=1,
                          bundle_processes=3)])  # fmt: skip
    request = single.request
    assert dict(request.resources) == {
        "mem_mb": 5000, "runtime": 30, "slurm_partition": "gpu", "gpu": 1,
    }  # fmt: skip
    assert (request.threads, request.name, single.processes) == (6, "prepare", 1)


def test_several_ask_for_the_largest_of_them_and_for_each_round() -> None:
    sizes = [(1000, 10), (3000, 8), (2000, 20), (500, 1), (500, 1)]
    jobs = [job(mem_mb=m, runtime=t, threads=2, bundle_processes=2) for m, t in sizes]
    request = Pack.of(jobs).request
    assert request.resources.mem_mb == 2 * 3000
    assert request.resources.runtime == 40  # three rounds: 20 minutes * (1 + 3) / 2
    assert request.threads == 2 * 2
    assert not {"bundle", "bundle_processes"} & set(request.resources)


def test_one_round_takes_no_longer_than_its_longest_member() -> None:
    jobs = [job(runtime=7), job(runtime=9)]
    assert Pack.of(jobs).request.resources.runtime == 9


@pytest.mark.parametrize(("gpu", "threads", "asked"), [(1, 4, 8), (1, 1, 4), (0, 4, 16)])
def test_processes_on_a_gpu_share_processors(gpu: int, threads: int, asked: int) -> None:
    jobs = [job(threads=threads, gpu=gpu) for _ in range(4)]
    assert Pack.of(jobs).request.threads == asked


def test_what_is_not_given_is_not_asked_for() -> None:
    jobs = [FakeJob(wanted={"bundle": 2}) for _ in range(2)]
    assert not any(Pack.of(jobs).request.resources.values())  # nothing, or a 0 that is left out


@pytest.mark.parametrize(("wanted", "jobs", "processes"), [(None, 9, 4), (3, 9, 3), (8, 2, 2)])
def test_how_many_work_at_a_time(wanted: int | None, jobs: int, processes: int) -> None:
    said: dict[str, Any] = {} if wanted is None else {"bundle_processes": wanted}
    assert Pack.of([job(**said) for _ in range(jobs)]).processes == processes


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pack:
    monkeypatch.chdir(tmp_path)
    pack = Pack.of([job("a"), job("b")])
    pack.save(["echo 'a'", "echo b"], [Path("logs/a/%j.log"), Path("logs/b/%j.log")])
    return pack


def test_the_plan_that_the_runner_reads(pack: Pack) -> None:
    assert read_plan(pack.folder) == {
        "processes": 2,
        "members": [
            {"command": "echo 'a'", "log": "logs/a/%j.log", "label": "prepare_d_a"},
            {"command": "echo b", "log": "logs/b/%j.log", "label": "prepare_d_b"},
        ],
    }


def test_each_pack_has_a_folder_of_its_own(pack: Pack) -> None:
    assert pack.folder.parent == PACKS
    assert Pack.of(pack.jobs).folder != pack.folder


def test_exit_codes_are_read_when_they_are_there(pack: Pack) -> None:
    assert (pack.exit_codes(), pack.exit_code(1)) == ({}, None)
    (pack.folder / "1.rc").write_text("137")
    assert (pack.exit_codes(), pack.exit_code(1)) == ({1: 137}, 137)
    (pack.folder / "0.rc").write_text("0")
    assert pack.exit_codes() == {0: 0, 1: 137}


def test_half_an_exit_code_is_none(pack: Pack) -> None:
    (pack.folder / "0.rc").write_text("")
    (pack.folder / ".1.rc.part-host-7.rc").write_text("0")
    (pack.folder / "x.rc").write_text("0")
    assert (pack.exit_codes(), pack.exit_code(0)) == ({}, None)


def test_a_pack_that_is_removed_has_no_exit_codes(pack: Pack) -> None:
    (pack.folder / "0.rc").write_text("0")
    pack.remove()
    assert not pack.folder.exists()
    assert (pack.exit_codes(), pack.exit_code(0)) == ({}, None)
    pack.remove()


def test_only_old_packs_are_removed(pack: Pack) -> None:
    old = Pack.of(pack.jobs)
    old.save(["a", "b"], [Path("a"), Path("b")])
    long_ago = time.time() - OLD_S - 60.0
    os.utime(old.folder, (long_ago, long_ago))
    remove_old()
    assert [folder.name for folder in PACKS.iterdir()] == [pack.folder.name]


def test_there_may_be_no_old_packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    remove_old()
    assert list(tmp_path.iterdir()) == []
