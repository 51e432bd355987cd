"""Outputs that are either whole or absent.

A job killed half way must leave nothing that the next run could take for a result, so every
file is written beside its name and renamed when it is complete. The temporary name keeps the
suffix, because several writers choose their format by it.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def temporary_beside(path: str | os.PathLike[str]) -> Path:
    """Return the hidden name in the same folder, same suffix, that this process writes to."""
    target = Path(path)
    return target.with_name(f".{target.name}.part{os.getpid()}{target.suffix}")


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends without error.

    Parents are created. If the block raises, the temporary file (or folder) is removed and an
    earlier file at `path` is left as it was. A block that writes nothing is a programming error:
    FileNotFoundError.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(target)
    _remove(temporary)
    try:
        yield temporary
        temporary.replace(target)
    except BaseException:
        _remove(temporary)
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 with line feeds on every platform, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON with a final line feed, atomically.

    NaN and infinity are not JSON: ValueError. Key order is kept, so equal input gives equal bytes.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
