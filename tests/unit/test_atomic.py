"""Outputs are whole or absent."""

import os
from pathlib import Path

import pytest

from tomoline.io.atomic import atomic_path, write_json, write_text


def test_the_file_appears_only_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "volume.mrc"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        assert not target.exists()
        assert temporary.parent == target.parent
        assert temporary.suffix == ".mrc"
        assert str(os.getpid()) in temporary.name
    assert target.read_bytes() == b"half"
    assert [p.name for p in target.parent.iterdir()] == ["volume.mrc"]


def test_a_failure_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_a_failed_folder_is_removed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "a").write_text("a")
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "nothing.txt"):
        pass


def test_text_and_json_have_fixed_bytes(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "Ångström\n")
    assert (tmp_path / "a.txt").read_bytes() == "Ångström\n".encode()
    write_json(tmp_path / "a.json", {"b": 1, "a": [1.5, None]})
    expected = '{\n  "b": 1,\n  "a": [\n    1.5,\n    null\n  ]\n}\n'
    assert (tmp_path / "a.json").read_text() == expected
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", {"a": float("nan")})
    assert not (tmp_path / "b.json").exists()
