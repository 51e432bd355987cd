#!/usr/bin/env bash
# The library itself goes beside its pinned dependencies; run by the workflow once an environment,
# in the folder of the run, where Snakefile is the repository's or a link to it (`tomoline init`).
set -euo pipefail
python -m pip install --no-deps --no-build-isolation "$(dirname "$(readlink -f Snakefile)")"
