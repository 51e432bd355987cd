"""The dataset's files after a run in which some tomograms failed: made of those that finished.

The rules `combine` and `report_dataset` wait for all tomograms, so when one fails they are not
run. `refresh` then does their work, with their own code, from what is there, and names what
failed. The next run, when it mends the tomogram, runs the rules themselves again.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tomoline.errors import TomolineError
from tomoline.export.registry import dialect as dialect_of
from tomoline.io.jobs import HISTORY, last_record
from tomoline.io.sheet import SheetRow
from tomoline.log import get_logger, job_log
from tomoline.report import plots
from tomoline.stages import combine, report_dataset
from tomoline.stages.checks import Run
from tomoline.stages.status import EVALUATE, Pulse, stage_states

log = get_logger(__name__)

# Stages that a tomogram's particles do not need; the empty name is that of no fault.
_AFTER = ("", EVALUATE)
_NONE = {"stage": ""}


def refresh(run: Run, *, root: str | Path = ".") -> None:
    """Write every dataset's combined files and page from its finished tomograms.

    Called when a run has ended, so nothing is running. A dataset that cannot be summed up is
    logged and does not keep the others from it.
    """
    for name in run.datasets:
        folder = Path(root) / "results" / name
        # The log has the reason; where even that cannot be written, the run's own errors stand.
        with suppress(TomolineError, OSError), job_log(folder / "logs" / "summary.log"):
            _refresh_dataset(run, name, folder)


def _refresh_dataset(run: Run, name: str, folder: Path) -> None:
    faults = {row.tomogram: find_fault(run, row, folder) for row in run.rows[name]}
    failed = [fault for fault in faults.values() if fault is not None]
    for fault in failed:
        log.error("%(tomogram)s %(state)s in %(stage)s: %(reason)s", fault)
    # One that could only not be evaluated has particles like the others.
    rows = [row for row in run.rows[name] if (faults[row.tomogram] or _NONE)["stage"] in _AFTER]
    written: list[Path] = []
    if rows:
        written = _combine(run, name, folder, rows)
    finished = [row for row in run.rows[name] if faults[row.tomogram] is None]
    pages = {
        "page": folder / "report" / "summary.html",
        "table": folder / "report" / "summary.csv",
        "plots": folder / "report" / plots.BUNDLE,
        "folder": folder / "report" / "pages",
    }
    report_dataset.run(
        {
            "particles": [str(_particles(folder, row)) for row in finished],
            "cards": [str(path / "card.yaml") for path in run.models.values()],
        },
        pages,
        settings=run.config.report,
        dataset=name,
        failed=failed,
        refused=run.listed_only(name),
        config=run.config.model_dump(
            mode="json", exclude={"datasets", "simulate", "train", "envmodules"}
        ),
    )
    _date_back([*written, *pages.values()], [_particles(folder, row) for row in rows])
    log.info("%s: %d finished, %d not; the next run does only what is missing",
             name, len(finished), len(failed))  # fmt: skip


def _particles(folder: Path, row: SheetRow) -> Path:
    return folder / row.tomogram / "particles.csv"


def _date_back(written: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Make files look older than what they were made of.

    They stand for less than the rules would make, so the next run in which nothing is missing any
    more (the tomogram was mended, or taken out of the sheet) must not take them for up to date.
    """
    oldest = min((path.stat().st_mtime for path in inputs), default=0.0)
    for path in written:
        os.utime(path, (oldest - 1, oldest - 1))


def find_fault(run: Run, row: SheetRow, folder: Path) -> dict[str, str] | None:
    """Say why a tomogram is not finished, once a run has ended; None where it is.

    The result has `tomogram`, `state` (failed, interrupted or to do), `stage` and `reason`.
    """
    states = stage_states(
        folder / row.tomogram,
        truth=bool(row.truth),
        exports=[dialect_of(name).file_name for name in run.config.export.dialects],
        pulse=Pulse(now=math.inf),  # no log is recent
        job=last_record(folder / row.tomogram / HISTORY),
    )
    for wanted in ("failed", "interrupted", "to do"):
        for stage, status in states.items():
            if status.state == wanted:
                return {
                    "tomogram": row.tomogram,
                    "state": wanted,
                    "stage": stage,
                    "reason": status.reason,
                }
    return None


def _combine(run: Run, name: str, folder: Path, rows: Sequence[SheetRow]) -> list[Path]:
    """Write a dataset's files in every dialect; returns those that the rule names too."""
    dialects = {key: dialect_of(key) for key in run.config.export.dialects}
    outputs = {k: folder / "export" / k / d.combined_name for k, d in dialects.items()}
    if "relion5" in outputs:
        outputs["relion5_import_list"] = folder / "export" / "relion5" / "import.star"
    places = [folder / row.tomogram for row in rows]
    own = {
        key: [str(place / "export" / entry.file_name) for place in places]
        for key, entry in dialects.items()
    }
    combine.run(
        {
            "particles": [str(place / "particles.csv") for place in places],
            "transforms": [str(place / "prepared.json") for place in places],
            **own,
        },
        outputs,
        settings=run.config.export,
        dataset=run.dataset(name),
        tilt_series=[row.tilt_series for row in rows],
    )
    return list(outputs.values())
