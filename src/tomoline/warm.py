"""The warm server of an allocation's GPU: `python -m tomoline.warm SOCKET`.

Loading torch, opening the GPU, and loading and trying a network take longer than a small tomogram.
This process does it once and computes the stages handed to it (`tomoline.stages.served`), one at a
time. It ends with its folder and whoever made that, when idle, and when the GPU has failed. When a
client has gone it ends at once, as computing cannot be stopped otherwise; what is left of a file is
removed by the next attempt, as that of any process that was killed.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import select
import shutil
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tomoline.io.warm_folder import hold, is_over, socket_path
from tomoline.stages import Failure, attempt
from tomoline.stages.served import receive

IDLE_S = 600.0
LOOK_S = 0.25
QUEUE = 64


class Server:
    """One process that computes, and a thread that ends it when nobody waits for it any more."""

    def __init__(self, listener: socket.socket, folder: Path) -> None:
        self.listener, self.folder = listener, folder
        self.client: socket.socket | None = None
        self.gate = threading.Lock()

    def watch(self) -> None:
        """Wait until the allocation's work is over or the client has gone, and end the process."""
        while not is_over(self.folder):
            time.sleep(LOOK_S)
            with self.gate:
                if self.client is not None and _has_gone(self.client):
                    os._exit(0)
        shutil.rmtree(self.folder, ignore_errors=True)  # a runner that was killed has left it
        os._exit(0)

    def serve(self) -> None:
        """Serve one client after another, until idle or unable to."""
        # Only now, so that clients are not kept waiting before they can even be told.
        from tomoline import infer  # noqa: PLC0415

        infer.KEPT = {}
        self.listener.settimeout(IDLE_S)
        usable = True
        while usable:
            try:
                connection, _ = self.listener.accept()
            except TimeoutError:
                return
            with connection, contextlib.suppress(OSError, ValueError):
                request = receive(connection)
                if not _has_gone(connection):
                    usable = self._answer(connection, request)

    def _answer(self, connection: socket.socket, request: Mapping[str, Any]) -> bool:
        """Do what a client asks for; False where this process can do no more."""
        connection.sendall(b'{"begun": true}\n')
        with self.gate:
            self.client = connection
        answer, usable = _done(request)
        with self.gate:
            self.client = None
        with contextlib.suppress(OSError):
            connection.sendall(json.dumps(answer).encode() + b"\n")
        return usable and _tidied()


def _done(request: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Compute a stage; its answer, and whether the GPU can still be used."""
    failure: Failure | None
    try:
        os.chdir(request["cwd"])
        failure = attempt(**{key: value for key, value in request.items() if key != "cwd"})
    except Exception as error:  # a folder that is gone, a request that lacks something
        failure = Failure(error, logged=False)
    finally:
        os.chdir("/")
        logging.getLogger("tomoline").handlers.clear()
    if failure is None:
        return {"failed": "", "logged": True}, True
    return {"failed": failure.text, "logged": failure.logged}, not _is_of_the_gpu(failure.error)


def _is_of_the_gpu(error: BaseException) -> bool:
    """Whether an error says that the GPU, or this process's access to it, is broken."""
    import torch  # noqa: PLC0415

    link: BaseException | None = error
    while link is not None:
        text = str(link)
        if isinstance(link, torch.AcceleratorError) or "CUDA error" in text or "[CUDA]" in text:
            return True
        link = link.__cause__ or link.__context__
    return False


def _tidied() -> bool:
    """Give memory back; False where the GPU does not answer any more."""
    import torch  # noqa: PLC0415

    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError as error:
            print(f"ends: {error}", file=sys.stderr, flush=True)
            return False
    return True


def _has_gone(connection: socket.socket) -> bool:
    """Whether the other side, which has nothing more to say, has closed the connection."""
    return bool(select.select([connection], [], [], 0)[0])


def main(place: str) -> int:
    """Serve at a socket."""
    path = Path(place)
    if socket_path(path.parent) != path:
        print("this Python finds another installation of Tomoline", file=sys.stderr)
        return 1
    with socket.socket(socket.AF_UNIX) as listener, hold(path.parent):
        listener.bind(place)
        listener.listen(QUEUE)
        server = Server(listener, path.parent)
        threading.Thread(target=server.watch, daemon=True).start()
        server.serve()
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1])
    sys.stderr.flush()
    os._exit(status)  # a broken GPU can keep Python from ending in its own way
