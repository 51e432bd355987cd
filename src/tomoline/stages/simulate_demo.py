"""The demo's two tomograms, as they are shipped in `resources/demo`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tomoline.stages.simulate import DEMO_CONDITIONS, make_demo, write_demo

SETTINGS = None


def run(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
    """Write both tomograms with truth into the folder of the outputs.

    Input `densities` (folder); outputs `demo_01` and `demo_02` (the `.mrc` files).
    """
    for name in DEMO_CONDITIONS:
        write_demo(Path(outputs[name]).parent, name, make_demo(Path(inputs["densities"]), name))
