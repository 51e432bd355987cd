"""STAR text: deterministic, and read back by `starfile` as it was."""

from pathlib import Path

import pandas as pd
import pytest
import starfile

from tomoline.errors import InputError
from tomoline.io.star import format_star, read_star, write_star

TABLE = pd.DataFrame(
    {
        "rlnTomoName": ["TS 1", "data_2", ""],
        "rlnCoordinateX": [1.5, -0.0, 1e-9],
        "rlnClassNumber": [1, 2, 30],
        "flag": [True, False, True],
    }
)


def test_text_is_exactly_this() -> None:
    table = pd.DataFrame({"rlnTomoName": ["a", "bc"], "rlnCoordinateX": [-0.0, 10.25]})
    assert format_star({"particles": table}, comment="version 50001") == (
        "# version 50001\n\ndata_particles\n\nloop_\n_rlnTomoName #1\n_rlnCoordinateX #2\n"
        " a  0.000000\nbc 10.250000\n\n"
    )


def test_starfile_reads_it_back(tmp_path: Path) -> None:
    path = tmp_path / "t.star"
    write_star(path, {"particles": TABLE, "optics": TABLE}, comment="version 50001")
    for block in starfile.read(path, always_dict=True).values():
        assert list(block["rlnTomoName"]) == ["TS 1", "data_2", ""]
        assert block["rlnCoordinateX"].tolist() == [1.5, 0, 0]
        assert block["rlnClassNumber"].tolist() == [1, 2, 30]
        assert block["flag"].tolist() == [1, 0, 1]


def test_empty_blocks_keep_their_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.star"
    write_star(path, {"particles": TABLE[:0], "optics": TABLE}, comment="version 50001")
    back = read_star(path)
    assert list(back["particles"].columns) == list(TABLE.columns)
    assert len(back["particles"]) == 0
    assert len(back["optics"]) == 3


def test_lines_end_as_relion_wants(tmp_path: Path) -> None:
    path = tmp_path / "t.star"
    write_star(path, {"": TABLE})
    assert b"\r" not in path.read_bytes()


def test_names_that_look_like_numbers_stay_names(tmp_path: Path) -> None:
    path = tmp_path / "t.star"
    write_star(path, {"p": pd.DataFrame({"rlnTomoName": ["4e10", "007"]})})
    assert list(read_star(path, text_columns=["rlnTomoName"])["p"]["rlnTomoName"]) == [
        "4e10",
        "007",
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 'a"b', "a\nb"])
def test_what_star_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="STAR cannot hold"):
        format_star({"p": pd.DataFrame({"x": [value]})})


def test_list_blocks_are_one_row(tmp_path: Path) -> None:
    path = tmp_path / "t.star"
    path.write_text("data_general\n\n_rlnA 3\n_rlnB word\n\n")
    assert read_star(path)["general"].to_dict("records") == [{"rlnA": 3, "rlnB": "word"}]


def test_bad_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_star(tmp_path / "none.star")
    (tmp_path / "no.star").write_text("hello\n")
    with pytest.raises(InputError, match="at least one data_ block"):
        read_star(tmp_path / "no.star")
    (tmp_path / "odd.star").write_text("data_p\n\nloop_\n_a #1\n_b #2\n1 2\n1 2 3\n")
    with pytest.raises(InputError, match="does not parse"):
        read_star(tmp_path / "odd.star")
