#!/usr/bin/env bash
# The library itself goes beside its pinned dependencies; run by the workflow once an environment.
set -euo pipefail
python -m pip install --no-deps --no-build-isolation .
