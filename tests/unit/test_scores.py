"""The table of scores says what evaluation.json holds."""

import json
from pathlib import Path

import pytest

from tomoline.cli import main
from tomoline.errors import InputError
from tomoline.stages.scores import read_scores

SCORE = {
    "predictions": 4,
    "particles": 5,
    "hit_distance_vox": 5.0,
    "one_to_one": {
        "precision": 0.75, "recall": 0.6, "f1": 2 / 3, "ad_vox": 0.5, "mean_class_accuracy": None,
    },
    "shrec": None,
    "dog": {"one_to_one": {"f1": 0.5}, "shrec": None},
}  # fmt: skip


def test_table_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "results" / "set" / "tomo_1"
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps(SCORE))
    (folder.parent / "report").mkdir()
    (folder.parent / "report" / "summary.html").write_text("page")
    assert main(["scores", "set", "--project", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if line.strip().startswith("tomo_1"))
    assert row.split() == ["tomo_1", "5", "4", "0.750", "0.600", "0.667", "0.500", "-", "-",
                           "0.500"]  # fmt: skip
    assert "within 5 voxels" in text
    assert "report/summary.html" in text
    assert "particles.star" not in text


def test_without_any_evaluation_it_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="column truth"):
        read_scores(tmp_path)
