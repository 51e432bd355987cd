"""Outputs are whole or absent."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from tomoline.errors import InputError
from tomoline.io.atomic import (
    atomic_path,
    atomic_stream,
    remove_unfinished,
    scratch_beside,
    temporary_beside,
    write_json,
    write_text,
)


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


# --- no room ----------------------------------------------------------------------------------


def no_room(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room_names_the_file_and_what_to_do(tmp_path: Path, number: int) -> None:
    target = tmp_path / "volume.mrc"
    with pytest.raises(InputError) as caught, atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise no_room(number)
    assert caught.value.source == str(target)
    assert os.strerror(number).lower() in caught.value.found
    assert "MB are free" in caught.value.found
    assert "same command again" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_no_room_is_seen_behind_another_error(tmp_path: Path) -> None:
    def close() -> None:
        try:
            raise no_room(errno.ENOSPC)
        except OSError:
            raise RuntimeError("can't close file") from None

    with pytest.raises(InputError, match="no space left on device"), atomic_path(tmp_path / "a"):
        close()
    text = "Can't write data (errno = 28, error message = 'No space left on device')"
    with pytest.raises(InputError, match=r"a\.h5: .*no space"), atomic_path(tmp_path / "a.h5"):
        raise RuntimeError(text)
    with pytest.raises(OSError, match="Permission"), atomic_path(tmp_path / "a"):
        raise OSError(errno.EACCES, "Permission denied")


WRITERS = {
    "text": "from pathlib import Path; from tomoline.io.atomic import write_text;"
    "write_text('{path}', 'x' * 400_000)",
    "volume": "import numpy as np; from tomoline.io.mrc import write_volume;"
    "write_volume('{path}', np.ones((40, 50, 50), np.float32), 10.0)",
    "hdf5": "import h5py, numpy as np; from tomoline.io.atomic import atomic_stream\n"
    "with atomic_stream('{path}') as s, h5py.File(s, 'w') as f:\n"
    "    for k in range(40): f.create_dataset(str(k), data=np.ones(2500, np.float32))",
    "weights": "import numpy as np; from safetensors.numpy import save_file;"
    "from tomoline.io.atomic import atomic_path\n"
    "with atomic_path('{path}') as p: save_file(dict(a=np.ones(100_000, np.float32)), p)",
    "scratch": "from tomoline.io.atomic import allocate, scratch_beside\n"
    "with scratch_beside('{path}') as folder: allocate(folder / 'a', 400_000)",
}


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_a_file_beyond_the_limit_of_the_shell_is_told_and_leaves_nothing(
    tmp_path: Path, kind: str
) -> None:
    program = WRITERS[kind].format(path=tmp_path / "output")
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 200; exec "$@"', "bash", sys.executable, "-c", program],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "InputError" in done.stderr.splitlines()[-1]
    assert "file too large" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_stream_holds_what_hdf5_wrote_and_tells_of_a_failure_at_once(tmp_path: Path) -> None:
    values = np.arange(5000.0)
    with atomic_stream(tmp_path / "a.h5") as stream, h5py.File(stream, "w") as file:
        for name in "abc":
            file.create_dataset(name, data=values, chunks=(500,), compression="gzip")
            stream.check()
    with h5py.File(tmp_path / "a.h5", "r") as file:
        assert all(np.array_equal(file[name], values) for name in "abc")
    with (
        pytest.raises(InputError, match=r"b\.h5: .*room"),
        Path("/dev/full").open("wb", buffering=0) as full,
        atomic_stream(tmp_path / "b.h5") as stream,
    ):
        os.dup2(full.fileno(), stream.fileno())  # from here on the disk is full
        assert stream.write(b"lost") == 4
        stream.check()
        raise AssertionError("check says so")
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


# --- power ------------------------------------------------------------------------------------


def test_bytes_are_on_the_disk_before_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, done = tmp_path / "a.txt", []

    def fsync(descriptor: int) -> None:
        done.append((Path(f"/proc/self/fd/{descriptor}").readlink(), target.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(target, "whole")
    assert done == [(temporary_beside(target), False)]
    done.clear()
    with atomic_path(tmp_path / "folder") as temporary:
        (temporary / "inner").mkdir(parents=True)
        (temporary / "a").write_text("a")
        (temporary / "inner" / "b").write_text("b")
    assert [path.name for path, _ in done] == ["a", "b"]


# --- what killed processes leave --------------------------------------------------------------


def of_process(target: Path, pid: int, host: str | None = None) -> Path:
    name = temporary_beside(target).name.replace(f"-{os.getpid()}", f"-{pid}")
    own = name.split(".part-")[1].split("-")[0]
    return target.with_name(name.replace(f".part-{own}-", f".part-{host or own}-"))


def ended() -> int:
    """The number of a process that is no more."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def test_what_dead_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "mask.mrc.gz"
    dead, elsewhere = of_process(target, ended()), of_process(target, os.getpid(), "node7")
    inner = dead.with_name(f".{dead.name}.part-node7-12.mrc")  # a writer within a writer
    for path in (dead, elsewhere, inner):
        path.write_bytes(b"half")
    with scratch_beside(target) as folder:
        scratch = folder.rename(f"{dead}.scratch")
        (scratch / "volume").write_bytes(b"half")
    left = sorted(path.name for path in tmp_path.iterdir())
    others = [tmp_path / "mask.mrc.gz", tmp_path / ".hidden", of_process(tmp_path / "a.csv", 1)]
    for path in others:
        path.write_bytes(b"other")
    assert remove_unfinished(target) == left
    assert sorted(tmp_path.iterdir()) == sorted(others)
    assert remove_unfinished(tmp_path / "no" / "such" / "folder") == []


def test_what_a_living_process_of_this_machine_writes_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "a.csv"
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        assert remove_unfinished(target) == []
        os.utime(temporary, (1e9, 1e9))  # older than the process: an earlier one had its number
        assert remove_unfinished(target) == [temporary.name]
        temporary.write_text("whole")
    assert target.read_text() == "whole"
