"""Onboarding micrographs: rows, verdicts with reasons, truth and masks that lie beside them."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest
from PIL import Image

from tomoline.cli import main
from tomoline.errors import InputError
from tomoline.io.micrograph_sheet import load_micrographs, read_micrograph_sheet
from tomoline.io.sheet import DATASETS_FOLDER, kind_of
from tomoline.settings import Config
from tomoline.stages.micrograph_run import check_micrographs
from tomoline.stages.onboard_micrographs import MicrographRequest, onboard_micrographs
from tomoline.stages.status import collect_status, format_status


def mrc(path: Path, pixel: float = 2.0, shape: tuple[int, ...] = (120, 100)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
        file.voxel_size = pixel


@pytest.fixture
def project(tmp_path: Path) -> Path:
    mrc(tmp_path / "m" / "b.mrc")
    mrc(tmp_path / "m" / "a.mrc")
    (tmp_path / "m" / "a_picks.csv").write_text("x_px,y_px\n4,5\n")
    Image.fromarray(np.zeros((120, 100), np.uint8)).save(tmp_path / "m" / "a_contamination.png")
    mrc(tmp_path / "m" / "no_size.mrc", pixel=0.0)
    mrc(tmp_path / "m" / "movie.mrc", shape=(3, 40, 40))
    mrc(tmp_path / "m" / "small.mrc", shape=(30, 30))
    (tmp_path / "m" / "notes.txt").write_text("no micrograph")
    return tmp_path


def request(project: Path, **changes: object) -> MicrographRequest:
    given = {"name": "set", "paths": (project / "m",), "diameter_angstrom": 40.0, **changes}
    return MicrographRequest(**given)  # type: ignore[arg-type]


def test_rows_with_a_verdict_and_a_reason(project: Path) -> None:
    outcome = onboard_micrographs(request(project), project=project)
    rows = {row.micrograph: row for row in outcome.rows}
    assert list(rows) == ["a", "b", "movie", "no_size", "small"]
    assert (rows["a"].verdict, rows["a"].truth, rows["a"].mask) == (
        "ok", "m/a_picks.csv", "m/a_contamination.png"
    )  # fmt: skip
    assert (rows["b"].ny, rows["b"].nx, rows["b"].pixel_size_angstrom) == (120, 100, 2.0)
    assert "3 sections" in rows["movie"].reason
    assert "--pixel-size" in rows["no_size"].reason
    assert "30 x 30" in rows["small"].reason
    assert outcome.usable == 2
    dataset, read = load_micrographs("set", folder=project / DATASETS_FOLDER)
    assert dataset.particle_diameter_angstrom == 40
    assert read == list(outcome.rows)
    assert kind_of("set", folder=project / DATASETS_FOLDER) == "micrographs"


def test_again_it_adds_what_is_new_and_keeps_what_a_human_wrote(project: Path) -> None:
    first = onboard_micrographs(request(project), project=project)
    sheet = first.sheet_file
    sheet.write_text(sheet.read_text().replace("b\tm/b.mrc\tyes", "b\tm/b.mrc\tno"))
    mrc(project / "m" / "c.mrc")
    (project / "m" / "a.mrc").unlink()
    again = onboard_micrographs(
        request(project, diameter_angstrom=None, pixel_size_angstrom=2.5), project=project
    )
    rows = {row.micrograph: row for row in again.rows}
    assert again.added == ("c",)
    assert rows["b"].use == "no"
    assert rows["a"].reason == "the file is gone"
    assert rows["no_size"].verdict == "ok"  # a pixel size was given
    assert "the data set 2.5, which is used" in rows["c"].reason
    assert again.dataset.particle_diameter_angstrom == 40


def test_two_files_of_one_name(project: Path) -> None:
    mrc(project / "other" / "a.mrc")
    paths = (project / "m", project / "other")
    outcome = onboard_micrographs(request(project, paths=paths), project=project)
    second = outcome.rows[-1]
    assert second.verdict == "refused"
    assert "duplicate name" in second.reason


def test_names_cannot_leave_their_folder(project: Path) -> None:
    onboard_micrographs(request(project), project=project)
    sheet = project / DATASETS_FOLDER / "set.tsv"
    good = sheet.read_text()
    for bad in ("../up", "report", ".hidden", "a b"):
        sheet.write_text(good.replace("b\tm/b.mrc", f"{bad}\tm/b.mrc"))
        with pytest.raises(InputError, match="safe name"):
            read_micrograph_sheet(sheet)
    with pytest.raises(InputError, match="dataset name"):
        onboard_micrographs(request(project, name="../x"), project=project)


def test_what_is_asked_for_must_make_sense(project: Path) -> None:
    with pytest.raises(InputError, match="--diameter"):
        onboard_micrographs(request(project, diameter_angstrom=None), project=project)
    with pytest.raises(InputError, match="no such file"):
        onboard_micrographs(request(project, paths=(project / "none",)), project=project)
    (project / DATASETS_FOLDER).mkdir(parents=True, exist_ok=True)
    (project / DATASETS_FOLDER / "set.yaml").write_text("name: set\nsheet: set.tsv\n")
    with pytest.raises(InputError, match="one of tomograms"):
        onboard_micrographs(request(project), project=project)


def test_the_command_and_the_status(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--project", str(project), "--name", "set"]
    code = main(["onboard", str(project / "m"), *common, "--type", "micrographs",
                 "--pixel-size", "2", "--diameter", "40"])  # fmt: skip
    told = capsys.readouterr().out
    assert code == 0
    assert "snakemake --cores all" in told
    assert "[set]" in told
    own = project / "results" / "set" / "a"
    (own / "logs").mkdir(parents=True)
    (own / "logs" / "pick.log").write_text(
        "2026-01-01 00:00:00,000 ERROR   tomoline: InputError: it is damaged\n"
    )
    text = format_status(collect_status(project, dataset="set"))
    assert "micrograph  pick" in text
    assert "a: pick failed: InputError: it is damaged" in text
    assert main(["onboard", str(project / "m"), *common, "--diameter", "40"]) == 2


def test_a_run_is_checked_before_its_first_job(project: Path) -> None:
    onboard_micrographs(request(project), project=project)
    config = Config(datasets=["set"])
    with pytest.raises(InputError, match="a picker's card"):
        check_micrographs(
            Config(datasets=["set"], micrographs={"model": "none"}), root=project
        )  # fmt: skip
    (project / "m" / "a_picks.csv").unlink()
    with pytest.raises(InputError, match="column truth"):
        check_micrographs(config, root=project)
    sheet = project / DATASETS_FOLDER / "set.tsv"
    sheet.write_text(sheet.read_text().replace("\tyes\t", "\tno\t"))
    with pytest.raises(InputError, match="at least one micrograph"):
        check_micrographs(config, root=project)
    assert check_micrographs(Config(datasets=["demo"]), root=project).rows == {}
