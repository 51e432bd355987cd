"""Sheet and dataset file: what is written is read back, and what makes no sense is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tomoline.contracts import SHEET_COLUMNS
from tomoline.errors import InputError
from tomoline.io.sheet import (
    SheetRow,
    is_safe_name,
    list_datasets,
    load_dataset,
    read_dataset,
    read_sheet,
    update_dataset,
    write_dataset,
    write_sheet,
)
from tomoline.settings import DatasetSettings

ROW = SheetRow(
    tomogram="TS_01",
    path="/data/two  blanks/TS_01_rec.mrc",
    use="yes",
    verdict="warning",
    reason='thin; it\'s "odd"',
    voxel_size_angstrom=10.52,
    nz=36,
    ny=206,
    nx=94,
    mode=0,
    axes="xzy",
    tilt_series="TS_01",
    truth="t.csv",
    occupancy="",
    file_bytes=698128,
    file_mtime_ns=1795247630842413211,
)


def edited(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    path = tmp_path / "a.tsv"
    write_sheet(path, [ROW, ROW.model_copy(update={"tomogram": "TS_02", "nz": None})])
    return path


def test_round_trip(sheet: Path) -> None:
    first, second = read_sheet(sheet)
    assert first == ROW
    assert (second.tomogram, second.nz) == ("TS_02", None)
    assert sheet.read_text().splitlines()[0].split("\t") == list(SHEET_COLUMNS)
    before = sheet.read_bytes()
    write_sheet(sheet, [first, second])
    assert sheet.read_bytes() == before


@given(reason=st.text(), path=st.text(min_size=1))
def test_any_text_leaves_one_row(
    tmp_path_factory: pytest.TempPathFactory, reason: str, path: str
) -> None:
    target = tmp_path_factory.mktemp("any") / "a.tsv"
    encodable = f"x{path}".encode("utf-8", "replace").decode()
    row = ROW.model_copy(update={"reason": reason.encode("utf-8", "replace").decode(),
                                 "path": encodable})  # fmt: skip
    write_sheet(target, [row])
    (back,) = read_sheet(target)
    assert back.tomogram == row.tomogram
    assert back.use == "yes"


def test_what_a_spreadsheet_does_to_it_is_understood(sheet: Path) -> None:
    text = sheet.read_text().replace("\tyes\t", "\tYES\t").replace("\n", "\r\n")
    sheet.write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n\t\t\t\r\n")
    assert read_sheet(sheet)[0] == ROW


def test_extra_columns_are_kept(sheet: Path) -> None:
    lines = sheet.read_text().splitlines()
    sheet.write_text("\n".join([f"{lines[0]}\tgrid", f"{lines[1]}\tG7", f"{lines[2]}\t"]) + "\n")
    rows = read_sheet(sheet)
    assert rows[0].model_extra == {"grid": "G7"}
    before = sheet.read_text()
    write_sheet(sheet, rows)
    assert sheet.read_text() == before


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("\tyes\t", "\tmaybe\t", "use"),
        ("\txzy\t", "\tzxy\t", "axes"),
        ("\t36\t", "\tmany\t", "nz"),
        ("TS_02\t", "../TS_02\t", "safe name"),
        ("TS_02\t", "ts_01\t", "names both"),
        ("\taxes\t", "\taxis\t", "no column axes"),
        ("\tuse\t", "\tuse\tuse\t", "repeated column use"),
        ("/data/two  blanks/TS_01_rec.mrc", " ", "path is empty"),
    ],
)
def test_nonsense_is_refused(sheet: Path, old: str, new: str, words: str) -> None:
    edited(sheet, old, new)
    with pytest.raises(InputError, match=words) as caught:
        read_sheet(sheet)
    assert str(sheet) in str(caught.value)


def test_one_name_twice_is_allowed_where_one_is_not_used(sheet: Path) -> None:
    rows = read_sheet(sheet)
    write_sheet(sheet, [rows[0], rows[0].model_copy(update={"use": "no", "path": "b"})])
    assert len(read_sheet(sheet)) == 2


def test_missing_empty_and_binary_sheets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_sheet(tmp_path / "a.tsv")
    (tmp_path / "a.tsv").write_text("")
    with pytest.raises(InputError, match="no column tomogram"):
        read_sheet(tmp_path / "a.tsv")
    (tmp_path / "a.tsv").write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(InputError, match="not text"):
        read_sheet(tmp_path / "a.tsv")


def test_dataset_round_trip_with_every_key_explained(tmp_path: Path) -> None:
    dataset = DatasetSettings(name="a", sheet="a.tsv", contrast="bright", classes=["1bxn"])
    write_dataset(tmp_path / "a.yaml", dataset)
    assert read_dataset(tmp_path / "a.yaml") == dataset
    text = (tmp_path / "a.yaml").read_text()
    assert all(f"\n{key}: " in text for key in DatasetSettings.model_fields)
    assert max(map(len, text.splitlines())) <= 100


def test_update_touches_only_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("# mine\nname: a\nsheet: a.tsv # here\ncontrast: dark\n")
    update_dataset(path, {"contrast": "bright", "voxel_size_angstrom": 7.5})
    assert path.read_text() == (
        '# mine\nname: a\nsheet: a.tsv # here\ncontrast: "bright"\nvoxel_size_angstrom: 7.5\n'
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a\nsheet: a.tsv\ncontrats: dark\n", "did you mean `contrast`"),
        ("name: a\nsheet: a.tsv\ncontrast: grey\n", "contrast"),
        ("name: b\nsheet: a.tsv\n", "name: b"),
        ("name: [a\n", "YAML"),
        ("- a\n", "list"),
        ("", "NoneType"),
    ],
)
def test_bad_dataset_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=words):
        read_dataset(tmp_path / "a.yaml")


def test_load_dataset_names_what_there_is(tmp_path: Path, sheet: Path) -> None:
    write_dataset(tmp_path / "a.yaml", DatasetSettings(name="a", sheet="a.tsv"))
    assert list_datasets(tmp_path) == ["a"]
    dataset, rows = load_dataset("a", folder=tmp_path)
    assert (dataset.name, len(rows)) == ("a", 2)
    with pytest.raises(InputError, match="there are: a"):
        load_dataset("b", folder=tmp_path)
    with pytest.raises(InputError, match="dataset name"):
        load_dataset("../a", folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "safe"),
    [("TS_01", True), ("a.b-c", True), ("7", True), ("", False), (".", False), ("..", False),
     ("a/b", False), ("a\n", False), ("-a", False), ("a" * 101, False), ("ä", False)],
)  # fmt: skip
def test_safe_names(name: str, safe: bool) -> None:
    assert is_safe_name(name) is safe
