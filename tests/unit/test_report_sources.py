"""What a run leaves behind, read with what may be missing or broken."""

import json
import math

import pandas as pd
import pytest

from tomoline.errors import InputError
from tomoline.report import sources


def test_shards_add_up_in_time_and_not_in_memory(tmp_path) -> None:
    for n, (seconds, memory) in enumerate([(60.0, 900.0), (50.0, 1000.0)], start=1):
        record = {"s": seconds, "max_rss": memory, "cpu_time": 2 * seconds, "threads": 2}
        (tmp_path / f"segment_{n}-of-2.jsonl").write_text(json.dumps(record) + "\n")
    (tmp_path / "prepare.jsonl").write_text('{"s": 1.5, "max_rss": "NA", "cpu_time": "NA"}\n')
    prepare, segment = sources.read_timings(tmp_path.glob("*.jsonl"))
    assert (prepare.stage, prepare.seconds) == ("prepare", 1.5)
    assert math.isnan(prepare.memory_mb)
    assert (segment.jobs, segment.seconds, segment.cpu_seconds) == (2, 110, 220)
    assert segment.memory_mb == 1000


def test_a_repeated_job_counts_once_and_a_table_reads_too(tmp_path) -> None:
    (tmp_path / "merge.jsonl").write_text('{"s": 9}\n{"s": 4}\n')
    (tmp_path / "vote.tsv").write_text("s\th:m:s\tmax_rss\n2.5\t0:00:02\t300.1\n")
    (tmp_path / "tile.jsonl").write_text("")
    timings = sources.read_timings(tmp_path.iterdir())
    assert [(t.stage, t.seconds) for t in timings] == [("merge", 4), ("vote", 2.5)]


def test_dialects_of_export_are_one_stage_and_stages_are_in_order(tmp_path) -> None:
    for name in ("export_relion5", "export_csv", "cluster", "evaluate"):
        (tmp_path / f"{name}.jsonl").write_text('{"s": 1}\n')
    timings = sources.read_timings(tmp_path.iterdir())
    assert [(t.stage, t.jobs) for t in timings] == [("cluster", 1), ("export", 2), ("evaluate", 1)]


def test_like_reasons_count_together() -> None:
    table = pd.DataFrame(
        {
            "status": ["rejected"] * 5 + ["accepted"],
            "reason": ["2 voxels", "3 voxels", "score below 0.5", "score below 0.5", "", ""],
        }
    )
    assert sources.count_reasons(table) == {
        "score below 0.5": 2, "… voxels": 2, "no reason given": 1,
    }  # fmt: skip


def test_missing_files_are_empty_and_broken_ones_are_named(tmp_path) -> None:
    assert sources.read_json(tmp_path / "none.json") == {}
    assert sources.read_jsonl(None) == []
    assert sources.read_table(tmp_path / "none.csv").empty
    broken = tmp_path / "evaluation.json"
    broken.write_text("{")
    with pytest.raises(InputError, match=r"evaluation\.json"):
        sources.read_json(broken)


def test_curves_of_a_killed_training_lose_only_the_last_line(tmp_path) -> None:
    path = tmp_path / "curves.jsonl"
    path.write_text('{"epoch": 0, "loss": 1.0}\n{"epoch": 1, "lo')
    assert sources.read_jsonl(path) == [{"epoch": 0, "loss": 1.0}]
    path.write_text('{"epoch": 0, "lo\n{"epoch": 1, "loss": 1.0}\n')
    with pytest.raises(InputError, match=r"curves\.jsonl"):
        sources.read_jsonl(path)


def test_versions_name_this_package() -> None:
    assert "tomoline" in sources.versions() and "Python" in sources.versions()


def test_outcome_of_a_table_keeps_a_class_named_none(tmp_path) -> None:
    path = tmp_path / "particles.csv"
    path.write_text(
        "id,status,class,score,p_None,p_b\n1,accepted,None,0.5,1,0\n2,rejected,,0,0,0\n"
    )
    table, names = sources.read_outcome(path)
    assert table["class"].tolist() == ["None", ""]
    assert names == ("None", "b")
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"particles\.csv"):
        sources.read_outcome(path)
