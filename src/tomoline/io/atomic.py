"""Outputs that are either whole or absent.

A job killed half way must leave nothing that the next run could take for a result, so every
file is written beside its name, brought to the disk, and renamed when it is complete. The
temporary name keeps the suffix, because several writers choose their format by it.
"""

import contextlib
import errno
import io
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from tomoline.errors import InputError

# A full disk, a spent quota, a file larger than `ulimit -f` or the file system allows.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def temporary_beside(path: str | os.PathLike[str]) -> Path:
    """Return the hidden name in the same folder, same suffix, that this process writes to.

    The machine's name is part of it, because jobs on several nodes may have the same number.
    """
    target = Path(path)
    return target.with_name(f".{target.name}.part-{_host()}-{os.getpid()}{target.suffix}")


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends without error.

    Parents are created. If the block raises, the temporary file (or folder) is removed and an
    earlier file at `path` is left as it was. A block that writes nothing is a programming error:
    FileNotFoundError.

    Raises
    ------
    InputError
        There is no room for the file: full disk, quota, limit of a file's size.
    """
    target = Path(path)
    temporary = temporary_beside(target)
    with _room_for(target), _removed_on_error(temporary):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        yield temporary
        _to_disk(temporary)
        temporary.replace(target)


class Stream(io.RawIOBase):
    """A new file, to read and write, that takes what follows its first failure for written.

    For libraries that break when a write fails (HDF5 ends the process by a signal where a disk is
    full while it closes a file). `check` raises what went wrong, so that work is not done in vain.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("w+b", buffering=0)
        self._failure: OSError | None = None

    def check(self) -> None:
        """Raise the OSError that has stopped the writing, if any."""
        if self._failure is not None:
            raise self._failure

    def fileno(self) -> int:
        """The file's descriptor."""
        return self._file.fileno()

    def seekable(self) -> bool:
        """Positions can be set."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """As of any file."""
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any, /) -> int:
        """As of any file; zeros after a failure."""
        if self._failure is None:
            return int(self._file.readinto(buffer) or 0)
        buffer[:] = bytes(len(buffer))
        return len(buffer)

    def write(self, data: Any, /) -> int:
        """Write all of `data`, or nothing once a write has failed."""
        view = memoryview(data).cast("B")
        done = 0
        while self._failure is None and done < len(view):
            with self._noted():
                done += self._file.write(view[done:]) or 0
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        """As of any file."""
        with self._noted():
            self._file.truncate(size)
        return size or 0

    def close(self) -> None:
        """Close the file; what failed before is for `check` to say."""
        with self._noted():
            self._file.close()
        super().close()

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._failure = self._failure or error


@contextlib.contextmanager
def atomic_stream(path: str | os.PathLike[str]) -> Iterator[Stream]:
    """Yield an open file that becomes `path`, as `atomic_path` does, for `h5py.File(stream, "w")`.

    Close what writes to it within the block.
    """
    with atomic_path(path) as temporary, contextlib.closing(Stream(temporary)) as stream:
        yield stream
        stream.close()
        stream.check()


def remove_unfinished(path: str | os.PathLike[str]) -> list[str]:
    """Remove what killed processes have left of their writing `path`; returns the names.

    For a job that is about to write `path`. Of a process of this machine it is known whether it
    lives; one of another machine is taken for dead, as a workflow gives `path` to one job only.
    """
    target = Path(path)
    left = re.compile(rf"\.+{re.escape(target.name)}\.part-([A-Za-z0-9]*)-(\d+)")
    removed = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for file in sorted(target.parent.iterdir()):
            writer = left.match(file.name)
            if writer and not (writer[1] == _host() and _is_writing(int(writer[2]), file)):
                with contextlib.suppress(FileNotFoundError):
                    _remove(file)
                removed.append(file.name)
    return removed


@contextlib.contextmanager
def scratch_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder on the disk of `path`, which goes when the block ends.

    What a killed process leaves of it, `remove_unfinished(path)` finds.
    """
    target = Path(path)
    folder = target.with_name(f"{temporary_beside(target).name}.scratch")
    with _room_for(target):
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def allocate(path: str | os.PathLike[str], size_bytes: int) -> None:
    """Make a file whose bytes, all zero, the disk has set aside; for a memory map to write to.

    A map over a file with holes ends the process by a signal (bus error), without a word, where
    the disk is full.

    Raises
    ------
    InputError
        There is no room for it.
    """
    with _room_for(Path(path)), Path(path).open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, size_bytes)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 with line feeds on every platform, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON with a final line feed, atomically.

    NaN and infinity are not JSON: ValueError. Key order is kept, so equal input gives equal bytes.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def _to_disk(path: Path) -> None:
    """Wait until the file's bytes (or those of a folder's files) are on the disk.

    Otherwise a machine that loses power may keep the new name and lose what is in the file. Disks
    across a network also report only here that there was no room.
    """
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def _removed_on_error(temporary: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # what went wrong first is what is told
            _remove(temporary)
        raise


@contextlib.contextmanager
def _room_for(target: Path) -> Iterator[None]:
    """Say what is to be done where `target` cannot be written for want of room: InputError."""
    try:
        yield
    except Exception as error:
        found = _no_room(error)
        if not found:
            raise
        free = shutil.disk_usage(_existing(target)).free
        raise InputError(
            target,
            expected="room to write this file",
            found=f"{found}; {free / 1e6:.0f} MB are free there",
            remedy="free space or have the limit raised (`df -h`, `quota`, `ulimit -f`), "
            "then give the same command again",
        ) from error


def _no_room(error: BaseException) -> str:
    """Return the system's words for "no room" where an error, or one before it, comes of that.

    HDF5 and safetensors pass the system's words on, but not always its number.
    """
    link: BaseException | None = error
    while link is not None:
        for number in _NO_ROOM:
            words = os.strerror(number)
            if getattr(link, "errno", None) == number or words in str(link):
                return words.lower()
        link = link.__cause__ or link.__context__
    return ""


def _existing(path: Path) -> Path:
    return next(folder for folder in path.absolute().parents if folder.exists())


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "", socket.gethostname().partition(".")[0])


def _is_writing(pid: int, file: Path) -> bool:
    """Whether the process lives and is not a later one that was given the same number."""
    try:
        process = psutil.Process(pid)
        # The file's time may be rounded, and the process's is: by a hundredth of a second.
        old_enough = bool(process.create_time() <= file.stat().st_mtime + 1.0)
        return old_enough and bool(process.status() != psutil.STATUS_ZOMBIE)
    except (psutil.NoSuchProcess, FileNotFoundError):
        return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
