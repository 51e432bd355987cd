"""Data sets of micrographs in a run: what is checked before the first job, and what is summed up.

Beside `tomoline.stages.checks` and `summary`, which do the same for tomograms.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tomoline.errors import InputError, TomolineError
from tomoline.io.jobs import HISTORY, last_record
from tomoline.io.micrograph_sheet import MICROGRAPHS, MicrographRow, load_micrographs
from tomoline.io.sheet import DATASETS_FOLDER, kind_of
from tomoline.log import get_logger, job_log
from tomoline.networks.cards import CARD, load_card, verify_weights
from tomoline.settings import Config, MicrographDatasetSettings, model_path
from tomoline.stages import combine_picks, report_micrographs
from tomoline.stages.status import Pulse, pick_states

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class MicrographRun:
    """The data sets of micrographs that are run, with their rows and those left out."""

    config: Config
    model: Path
    datasets: dict[str, MicrographDatasetSettings]
    rows: dict[str, list[MicrographRow]]
    left_out: dict[str, list[MicrographRow]]

    def row(self, dataset: str, micrograph: str) -> MicrographRow:
        """Return a micrograph's row; KeyError where it is not run."""
        return self._by_name[dataset, micrograph]

    @property
    def _by_name(self) -> dict[tuple[str, str], MicrographRow]:
        known: dict[tuple[str, str], MicrographRow] | None = self.__dict__.get("_known")
        if known is None:
            known = {(n, row.micrograph): row for n, rows in self.rows.items() for row in rows}
            self.__dict__["_known"] = known
        return known

    def dataset(self, name: str) -> dict[str, Any]:
        """Return what a data set's file says other than the defaults, as plain values."""
        return self.datasets[name].model_dump(mode="json", exclude_defaults=True)

    def truths(self, name: str) -> dict[str, str]:
        """The files with known particles, by micrograph."""
        return {row.micrograph: row.truth for row in self.rows[name] if row.truth}

    def listed_only(self, name: str) -> list[dict[str, str]]:
        """The rows that are not run, each with `state` and `reason`."""
        return [
            {
                "micrograph": row.micrograph,
                "state": "refused" if row.verdict == "refused" else "unused",
                "reason": row.reason,
            }
            for row in self.left_out[name]
        ]


def check_micrographs(
    config: Config, *, root: str | Path = ".", thorough: bool = True
) -> MicrographRun:
    """Check the data sets of micrographs among `datasets`, and the picker where there are some.

    Raises
    ------
    InputError
        A data set without a micrograph to run, a mask or truth that is not there, no such picker,
        weights that are not its card's, or a head that it does not have.
    """
    root = Path(root)
    folder = root / DATASETS_FOLDER
    names = names_of_micrographs(config, root=root)
    loaded = {name: load_micrographs(name, folder=folder) for name in names}
    for name, (dataset, rows) in loaded.items():
        _check_rows(folder / dataset.sheet, name, rows, root)
    model = model_path(config.micrographs.model, config.models.folder)
    if loaded:
        _check_picker(root / model, config, thorough=thorough)
        if config.micrographs.mask_model:
            segmenter = model_path(config.micrographs.mask_model, config.models.folder)
            _check_segmenter(root / segmenter, thorough=thorough)
    return MicrographRun(
        config=config,
        model=model,
        datasets={name: dataset for name, (dataset, _) in loaded.items()},
        rows={name: [row for row in rows if row.wanted] for name, (_, rows) in loaded.items()},
        left_out={
            name: [row for row in rows if not row.wanted] for name, (_, rows) in loaded.items()
        },
    )


def refresh_micrographs(run: MicrographRun, *, root: str | Path = ".") -> None:
    """Write each data set's files and page of what has been picked, after a run with failures."""
    for name in run.datasets:
        folder = Path(root) / "results" / name
        with suppress(TomolineError, OSError), job_log(folder / "logs" / "summary.log"):
            _refresh(run, name, folder)


def _refresh(run: MicrographRun, name: str, folder: Path) -> None:
    failed, done = [], []
    for row in run.rows[name]:
        place = folder / row.micrograph
        state = pick_states(place, pulse=Pulse(now=math.inf), job=last_record(place / HISTORY))
        own = next(iter(state.values()))
        if own.state == "done":
            done.append(row)
        else:
            failed.append(
                {"micrograph": row.micrograph, "state": str(own.state), "reason": own.reason}
            )
            log.error("%s %s: %s", row.micrograph, own.state, own.reason)
    files = {
        key: [str(folder / row.micrograph / file) for row in done]
        for key, file in (("picks", "picks.csv"), ("facts", "micrograph.json"),
                          ("stars", "picks.star"), ("pictures", "micrograph.png"))
    }  # fmt: skip
    written: list[Path] = []
    if done:
        combined = combined_outputs(folder, run.config.micrographs.dialects)
        combine_picks.run(
            files, combined, settings=run.config.micrographs, dataset=run.dataset(name)
        )
        written += list(combined.values())
    pages = {
        "page": folder / "report" / "summary.html", "table": folder / "report" / "summary.csv",
        "evaluation": folder / "report" / "evaluation.json",
    }  # fmt: skip
    report_micrographs.run(
        files, pages, settings=run.config.micrographs, dataset=run.dataset(name),
        truths=run.truths(name), left_out=run.listed_only(name), failed=failed,
    )  # fmt: skip
    # They stand for less than the rules would make, so they must look older than what they are of.
    oldest = min((Path(path).stat().st_mtime for path in files["picks"]), default=0.0)
    for path in [*written, *pages.values()]:
        os.utime(path, (oldest - 1, oldest - 1))
    log.info("%s: %d picked, %d not; the next run does only what is missing", name, len(done),
             len(failed))  # fmt: skip


def combined_outputs(folder: str | Path, dialects: list[Any]) -> dict[str, Path]:
    """A data set's files by dialect, below its folder of results."""
    export = Path(folder) / "export"
    names = {
        "relion": {"relion": "relion/particles.star", "relion_list": "relion/autopick.star"},
        "cryosparc": {"cryosparc": "cryosparc/particles.star"},
        "eman": {"eman": "eman"},
        "csv": {"csv": "csv/particles.csv"},
    }
    return {key: export / file for d in dialects for key, file in names[d].items()}


def _check_rows(sheet: Path, name: str, rows: list[MicrographRow], root: Path) -> None:
    if not any(row.wanted for row in rows):
        raise InputError(
            sheet,
            expected="at least one micrograph with use yes and a verdict other than refused",
            found="none",
            remedy="see the column reason, mend the files and run `tomoline onboard` again, or "
            f"take {name} out of `datasets`",
        )
    for row in rows:
        for column, file in (("truth", row.truth), ("mask", row.mask)):
            if row.wanted and file and not (root / file).is_file():
                raise InputError(
                    f"{sheet}, micrograph {row.micrograph}", expected=f"a file in column {column}",
                    found=f"no such file: {file}", remedy="correct the cell, or leave it empty",
                )  # fmt: skip


def _check_picker(folder: Path, config: Config, *, thorough: bool) -> None:
    # torch takes a second to import, which a run without micrographs should not pay for
    from tomoline.networks.pickers import load_picker_card, verify_picker  # noqa: PLC0415

    card = verify_picker(folder) if thorough else load_picker_card(folder / CARD)
    card.head(config.micrographs.head)


def _check_segmenter(folder: Path, *, thorough: bool) -> None:
    card = verify_weights(folder) if thorough else load_card(folder)
    if card.role != "segmenter":
        raise InputError(
            "micrographs.mask_model", expected="a segmenter of images",
            found=f"{folder.name}, a {card.role}", remedy="name another model, or none",
        )  # fmt: skip


def names_of_micrographs(config: Config, *, root: str | Path = ".") -> list[str]:
    """Names of those data sets of a run that are of micrographs."""
    folder = Path(root) / DATASETS_FOLDER
    return [n for n in dict.fromkeys(config.datasets) if kind_of(n, folder=folder) == MICROGRAPHS]
