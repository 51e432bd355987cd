"""Writes the pins of envs/*.yaml: what pyproject.toml asks for, what that needs, as locked.

`make lock` runs it with the Python that the lock was made of, and a test compares. What stands
above the pins is written by hand and stays.
"""

from __future__ import annotations

import tomllib
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
ABOVE = "  - pip:\n"


def locked(root: Path = ROOT) -> dict[str, str]:
    """Lines of requirements.lock by the packages' names in their normal form."""
    lines = (root / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(line.split("==")[0]): line for line in pins}


def needed(root: Path = ROOT) -> set[str]:
    """Locked packages that the library and the workflow need, directly or not.

    Those of torch's CUDA build are not locked: torch itself names their versions exactly.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    asked = project["project"]["dependencies"] + project["build-system"]["requires"]
    pending = [Requirement(text) for text in asked]
    known, seen = locked(root), set()
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if name in known and (name, extra) not in seen:
                seen.add((name, extra))
                pending += _wanted(name, extra)
    return {name for name, _ in seen}


def renewed(text: str, root: Path = ROOT) -> str:
    """Return an environment file's text with its list of pins made anew."""
    head, above, _ = text.partition(ABOVE)
    assert above, "an environment file ends with its list of pip's packages"
    pins = locked(root)
    return head + above + "".join(f"      - {pins[name]}\n" for name in sorted(needed(root)))


def _wanted(name: str, extra: str) -> list[Requirement]:
    found = [Requirement(text) for text in requires(name) or []]
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": extra})]


if __name__ == "__main__":
    for file in sorted((ROOT / "envs").glob("*.yaml")):
        file.write_text(renewed(file.read_text(encoding="utf-8")), encoding="utf-8")
        print(file)
