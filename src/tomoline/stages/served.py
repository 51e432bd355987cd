"""Has a stage computed by a warm server, which keeps networks from one tomogram to the next.

Requests and answers are lines of JSON over a Unix socket. Nothing here loads torch: whoever asks
only waits, and shows what the server writes to the stage's log.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tomoline.io.warm_folder import VARIABLE, is_private, socket_path

# The stages that run a network.
SERVED = frozenset({"segment", "classify"})
LOOK_S = 0.5
# A server listens before it loads torch; there is no limit on computing, nor on waiting for others.
START_S, CONNECT_S = 60.0, 10.0
# A server may end (idle, a broken GPU) between two requests: the next is for a new one.
TRIES = 2
MOST_BYTES = 1 << 20


class ServerError(RuntimeError):
    """The server cannot be started, has died, or says what is no answer."""


class Answer(NamedTuple):
    """How a stage ended: the error in a line (empty: well), and whether its log has it."""

    failed: str
    logged: bool


def folder_for(stage: str, settings: Mapping[str, Any] | None) -> Path | None:
    """Where this stage's server is to be found; None where the stage runs by itself."""
    name = os.environ.get(VARIABLE, "")
    if not name or stage not in SERVED or (settings or {}).get("device") == "cpu":
        return None
    return Path(name)


def hand_over(folder: Path, request: Mapping[str, Any]) -> Answer:
    """Have a request (`execute`'s arguments) done; its log is shown meanwhile.

    Raises
    ------
    ServerError
        It was not done, or not to its end.
    """
    if not is_private(folder):
        raise ServerError(f"{folder} is not a folder of this user alone")
    log = request["log"]
    try:
        message = json.dumps({**request, "cwd": str(Path.cwd())}, default=os.fspath)
        if log is not None:  # `status` takes a stage whose log is there for one at work
            Path(log).parent.mkdir(parents=True, exist_ok=True)
            Path(log).unlink(missing_ok=True)
            Path(log).touch()
        for _ in range(TRIES):
            begun = False
            with _connected(folder) as connection, contextlib.suppress(ConnectionError):
                connection.sendall(message.encode() + b"\n")
                for said in _said(connection, _Tail(log)):
                    begun = True
                    if "failed" in said:
                        return Answer(str(said["failed"]), bool(said["logged"]))
            if begun:
                raise ServerError("it has ended in the midst of the work; for want of memory?")
        raise ServerError(f"it ended before the work began: {_last_line(folder)}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ServerError(f"{type(error).__name__}: {error}") from error


def _said(connection: socket.socket, tail: _Tail) -> Iterator[Mapping[str, Any]]:
    """What the server says until it closes the connection."""
    connection.settimeout(LOOK_S)
    text = b""
    while True:
        with contextlib.suppress(TimeoutError):
            data = connection.recv(65536)
            if not data:
                return
            *lines, text = (text + data).split(b"\n")
            tail.show()
            for line in lines:
                said = json.loads(line)
                if not isinstance(said, dict):
                    raise ServerError(f"it says {line[:80]!r}")
                yield said
        tail.show()


class _Tail:
    """Copies what is added to a log to the terminal's error stream."""

    def __init__(self, path: str | Path | None) -> None:
        self.path, self.shown = path, 0

    def show(self) -> None:
        """Show what is new."""
        if self.path is None:
            return
        with contextlib.suppress(FileNotFoundError), Path(self.path).open("rb") as file:
            file.seek(self.shown)
            data = file.read()
            data = data[: data.rfind(b"\n") + 1]  # the rest of a line comes soon
            self.shown += len(data)
            sys.stderr.write(data.decode("utf-8", errors="replace"))
            sys.stderr.flush()


def _connected(folder: Path) -> socket.socket:
    """A connection to the server, which is started if it is not there."""
    path = socket_path(folder)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # only one is started; whoever holds it has time limits
        connection = _connect(path)
        if connection is None:
            path.unlink(missing_ok=True)  # of one that was killed
            connection = _started(path)
    return connection


def _connect(path: Path) -> socket.socket | None:
    """A connection; None where nobody listens."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(CONNECT_S)
    try:
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except BaseException:
        connection.close()
        raise
    return connection


def _started(path: Path) -> socket.socket:
    """Start a server, in a session of its own: it outlives this process."""
    # -P: modules are not looked for in the folder where the user happens to be.
    command = [sys.executable, "-P", "-m", "tomoline.warm", str(path)]
    with path.with_suffix(".log").open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    limit = time.monotonic() + START_S
    while time.monotonic() < limit:
        connection = _connect(path)
        if connection is not None:
            return connection
        if process.poll() is not None:
            said = _last_line(path.parent)
            raise ServerError(f"it ended with {process.returncode} as it started: {said}")
        time.sleep(0.02)
    process.kill()
    process.wait()
    raise ServerError(f"it was not ready within {START_S:.0f} s")


def _last_line(folder: Path) -> str:
    """The last that the server has said."""
    try:
        text = socket_path(folder).with_suffix(".log").read_text(errors="replace")
    except OSError:
        return "no log"
    lines = text.strip().splitlines()
    return lines[-1] if lines else "without a word"


def receive(connection: socket.socket) -> dict[str, Any]:
    """A request, as the server reads it.

    Raises
    ------
    OSError, ValueError
        The other side is slow or gone, or sends something else.
    """
    connection.settimeout(CONNECT_S)
    data = b""
    while not data.endswith(b"\n"):
        more = connection.recv(65536)
        data += more
        if not more or len(data) > MOST_BYTES:
            raise ValueError("no request")
    connection.settimeout(None)
    request = json.loads(data)
    if not isinstance(request, dict):
        raise ValueError("no request")
    return request
