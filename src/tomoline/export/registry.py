"""The dialects by name. A new one is one file and one line here."""

from __future__ import annotations

from tomoline.errors import InputError
from tomoline.export import (
    copick,
    csv,
    dynamo,
    eman2,
    imod,
    portal,
    relion3,
    relion4,
    relion5,
    warp,
)
from tomoline.export.dialect import Dialect

DIALECTS: dict[str, Dialect] = {
    "relion5": relion5.DIALECT,
    "relion4": relion4.DIALECT,
    "relion3": relion3.DIALECT,
    "warp": warp.DIALECT,
    "dynamo": dynamo.DIALECT,
    "imod": imod.DIALECT,
    "eman2": eman2.DIALECT,
    "copick": copick.DIALECT,
    "portal": portal.DIALECT,
    "csv": csv.DIALECT,
}


def dialect(name: str) -> Dialect:
    """Return a dialect by its name; InputError listing the known ones."""
    if name not in DIALECTS:
        raise InputError(
            "export.dialects",
            expected=f"names among {', '.join(DIALECTS)}",
            found=name,
            remedy="correct the name in config.yaml",
        )
    return DIALECTS[name]
