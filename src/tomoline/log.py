"""One log set-up for every stage: to the job's file and to the terminal's error stream."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module, below the package's own."""
    return logging.getLogger(name if name.startswith("tomoline") else f"tomoline.{name}")


@contextmanager
def job_log(path: str | Path | None, *, level: int = logging.INFO) -> Iterator[logging.Logger]:
    """Send the package's messages to ``path`` (replaced, not appended) while the block runs.

    An exception is written to the log as its last line ("ERROR ...: message") and re-raised, so
    that `tomoline status` finds the reason there.
    """
    root = logging.getLogger("tomoline")
    root.setLevel(level)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(path, mode="w", encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(FORMAT))
        root.addHandler(handler)
    try:
        yield root
    except BaseException as error:
        root.debug("traceback", exc_info=True)
        root.error("%s: %s", type(error).__name__, error)
        raise
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
