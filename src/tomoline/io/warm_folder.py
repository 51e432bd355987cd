"""The private folder of an allocation through which its members find a warm server.

Whoever runs the members makes it, and holds a lock in it for as long as it lives, however it ends;
servers (`tomoline.warm`) hold another. Their sockets lie in it, so that nobody else reaches them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import tomoline

# The folder, for the members of an allocation; empty: no server, and none is wanted.
VARIABLE = "TOMOLINE_WARM"
# How long servers may take to end, which look for the lock several times a second.
END_S = 5.0
_SUFFIX, _RUNNER, _SERVERS = ".socket", "runner", "servers"
# What the system allows for a socket's path, on any Unix, and what comes after a folder's name.
_MOST_BYTES, _NAME_BYTES = 103, 16 + len(_SUFFIX) + 1


@contextlib.contextmanager
def warm_folder() -> Iterator[Path]:
    """Make the folder; at the end its servers end, are waited for, and it is removed.

    Raises
    ------
    OSError
        No folder for temporary files can be written to.
    """
    folder = _new_folder()
    try:
        with (folder / _SERVERS).open("w") as servers:
            with (folder / _RUNNER).open("w") as runner:
                fcntl.flock(runner, fcntl.LOCK_EX)
                yield folder
            # The next job may need the GPU for itself.
            limit = time.monotonic() + END_S
            while not _free(servers) and time.monotonic() < limit:
                time.sleep(0.02)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _new_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="tomoline-"))
    if len(os.fsencode(folder)) + _NAME_BYTES > _MOST_BYTES:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="tomoline-", dir="/tmp"))
    return folder


def is_over(folder: Path) -> bool:
    """Whether the folder is gone, or whoever made it."""
    try:
        with (folder / _RUNNER).open() as runner:
            return _free(runner)
    except FileNotFoundError:
        return True
    except OSError:  # not for want of the file: asked again
        return False


def hold(folder: Path) -> IO[str]:
    """Show that a server lives, until the file is closed."""
    handle = (folder / _SERVERS).open()
    fcntl.flock(handle, fcntl.LOCK_SH)
    return handle


def is_private(folder: Path) -> bool:
    """Whether it is a folder that only this user can enter."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    own = status.st_uid == os.getuid() and not status.st_mode & 0o077
    return own and stat.S_ISDIR(status.st_mode)


def socket_path(folder: Path) -> Path:
    """Where the server of this Python, this installation and these GPUs is to be reached."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    place = (sys.executable, devices, tomoline.__version__, str(tomoline.__file__))
    return folder / (hashlib.sha256("\0".join(place).encode()).hexdigest()[:16] + _SUFFIX)


def _free(handle: IO[str]) -> bool:
    """Whether nobody holds a lock of this file that excludes this one's."""
    how = fcntl.LOCK_EX if handle.writable() else fcntl.LOCK_SH
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
