"""Pickers of micrographs compared: the tables of the HydraPicker paper in our numbers.

    python benchmarks/picking.py zero-shot

Tables: specialised (1), zero-shot (2), few-shot (3), single-head (4). Each is written below
--output as JSON and Markdown, and printed. What is trained on and what is scored the configuration
says. The shipped picker has the heads of real sets only; for table 1 of the simulated ones too,
name what `make weights-picker` leaves:

    python benchmarks/picking.py specialised --model results/models/hydrapicker
"""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from tomoline.log import job_log
from tomoline.settings import PickingBenchmark, validated
from tomoline.stages.picking_tables import TABLES, write_table

CONFIG = Path("config/benchmarks/pickers/micrographs.yaml")


def main() -> None:
    """Read the arguments, compute the tables, print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="+", choices=TABLES)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks/micrographs"))
    parser.add_argument("--model", help="another picker than the configuration's: a folder")
    given = parser.parse_args()
    raw = yaml.safe_load(given.config.read_text(encoding="utf-8"))
    raw["model"] = given.model or raw["model"]
    settings = validated(PickingBenchmark, raw, source=given.config)
    with job_log(None):
        for name in given.tables:
            print(f"\n{name}\n\n{write_table(name, settings, given.output)}")


if __name__ == "__main__":
    main()
