"""Jobs that need no torch do not load it; a tomogram takes ten of them."""

import json
import subprocess
import sys

import pytest

LIGHT = ["prepare", "tile", "merge", "cluster", "extract", "vote", "export", "combine", "evaluate",
         "report_tomogram", "report_dataset"]  # fmt: skip
CODE = (
    "import sys, json, importlib\n"
    "from tomoline.stages import execute\n"
    "for name in sys.argv[1:]: importlib.import_module('tomoline.stages.' + name)\n"
    "print(json.dumps([m for m in ('torch', 'numba', 'snakemake') if m in sys.modules]))"
)


def _loaded(*stages):
    done = subprocess.run(
        [sys.executable, "-c", CODE, *stages], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_stages_without_networks_load_no_torch():
    assert _loaded(*LIGHT) == []


@pytest.mark.parametrize("stage", ["segment", "classify"])
def test_stages_with_networks_do(stage):
    assert "torch" in _loaded(stage)
