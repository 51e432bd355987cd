"""Stage report_dataset: one page and one table on all tomograms of a data set.

The page must be had of a failed run too, when Snakemake does not run the rule: `from_results`
makes it from the files alone.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from tomoline.contracts import DOMAIN, VolumeTransform
from tomoline.errors import InputError
from tomoline.export.dialect import LISTING
from tomoline.io.atomic import atomic_path, write_text
from tomoline.log import get_logger
from tomoline.report import plots
from tomoline.report.dataset import (
    STATE_WORDS,
    DatasetResult,
    TomogramRow,
    dataset_page,
    summary_table,
)
from tomoline.report.sources import (
    read_json,
    read_jsonl,
    read_outcome,
    read_timings,
    read_yaml,
    versions,
)
from tomoline.settings import ModelsSettings, ReportSettings
from tomoline.stages.report_tomogram import benchmark_files
from tomoline.stages.status import TomogramStatus, collect_status

SETTINGS = ReportSettings
THUMBNAIL_EDGE = 160
log = get_logger(__name__)


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    settings: ReportSettings,
    dataset: Mapping[str, Any] | str,
    failed: Sequence[Mapping[str, Any]] = (),
    refused: Sequence[Mapping[str, Any]] = (),
    config: Mapping[str, Any] | None = None,
) -> None:
    """Write the page of a data set whose tomograms in `inputs` have all finished.

    Parameters
    ----------
    inputs:
        `particles`: the finished tomograms' particles.csv; what lies in the same folder
        (prepared.json, domain.json, evaluation.json, middle.png, benchmarks/,
        report/tomogram.html) is read where it is there, so `transforms`, `evaluations` and `pages`
        need only be named for the order of jobs. `cards`: the models' card.yaml (curves.jsonl
        beside a card is used).
    outputs:
        `page` (one HTML file) and `table` (CSV, one row a tomogram); optionally `plots` (the script
        that draws the tomograms' plots, beside the page) and `folder` (the report to hand out).
    dataset:
        Its name, or its settings as a mapping.
    failed, refused:
        Tomograms that did not finish or were never run: mappings with `tomogram`, `reason` and
        for a failed one `stage`; `state` may be given (a key of `STATE_WORDS`).
    config:
        All settings of the run, to be shown.

    Raises
    ------
    InputError
        A file is there but cannot be read.
    """
    page = Path(outputs["page"])
    folders = [Path(path).parent for path in _paths(inputs.get("particles"))]
    rows = [_finished_row(folder.name, folder, page=page) for folder in folders]
    rows += [_given_row(entry, "failed", page=page) for entry in failed]
    rows += [_given_row(entry, "refused", page=page) for entry in refused]
    name = dataset if isinstance(dataset, str) else str(dataset.get("name", ""))
    cards = [Path(path) for path in _paths(inputs.get("cards"))]
    root = folders[0].parent if folders else page.parent.parent
    _write(_result(name, rows, root=root, cards=cards, config=config or {}), outputs)


def from_results(
    folder: str | Path,
    dataset: str,
    *,
    project: str | Path | None = None,
    page: str | Path | None = None,
    table: str | Path | None = None,
) -> Path:
    """Write the page and table of a data set from whatever a run has left behind.

    Parameters
    ----------
    folder:
        results/<dataset>; it need not exist.
    dataset:
        Its name, as in config/datasets of `project`.
    project:
        Folder with config/, resources/ and results/; default: two above `folder`.
    page, table:
        Where to write; default: report/summary.html and report/summary.csv in `folder`.

    Returns
    -------
    Path
        The page.
    """
    folder = Path(folder)
    project = folder.parent.parent if project is None else Path(project)
    page = Path(page) if page is not None else folder / "report" / "summary.html"
    table = Path(table) if table is not None else folder / "report" / "summary.csv"
    outputs = {"page": page, "table": table, "plots": page.with_name(plots.BUNDLE),
               "folder": page.with_name("pages")}  # fmt: skip
    rows, problem = [], ""
    try:
        for status in collect_status(project, dataset=dataset)[0].tomograms:
            rows.append(_status_row(status, folder / status.tomogram, page=page))
    except InputError as error:
        problem = f"The list of tomograms cannot be read, so only results are shown: {error}"
        found = sorted(path.parent for path in folder.glob("*/particles.csv"))
        rows = [_finished_row(path.name, path, page=page) for path in found]
    config = _read_config(project)
    result = _result(
        dataset, rows, root=folder, cards=_cards(project, config), config=config, problem=problem
    )
    _write(result, outputs)
    return page


def _result(name: str, rows: Sequence[TomogramRow], *, root: Path, cards: Sequence[Path],
            config: Mapping[str, Any], problem: str = "") -> DatasetResult:  # fmt: skip
    read = [read_yaml(path) for path in cards]
    curves = {
        str(card.get("name", "")): read_jsonl(path.with_name("curves.jsonl"))
        for path, card in zip(cards, read, strict=True)
    }
    files = [path for path in (root / "export").rglob("*") if path.is_file()]
    return DatasetResult(
        dataset=name,
        rows=rows,
        cards=[card for card in read if card],
        curves=curves,
        exports=sorted(
            Path(root.parent.name, path.relative_to(root.parent)).as_posix()
            for path in files
            if not path.name.startswith(".") and path.name != LISTING
        ),
        versions=versions(),
        config=config,
        problem=problem,
    )


def _write(result: DatasetResult, outputs: Mapping[str, Any]) -> None:
    write_text(outputs["page"], dataset_page(result))
    with atomic_path(outputs["table"]) as path:
        summary_table(result).to_csv(path, index=False, lineterminator="\n")
    if outputs.get("plots"):
        write_text(outputs["plots"], plots.bundle())
    if outputs.get("folder"):
        _write_folder(result, outputs)
    log.info("%s: %d tomograms on the page", result.dataset, len(result.rows))


def _write_folder(result: DatasetResult, outputs: Mapping[str, Any]) -> None:
    """Write the folder that a facility hands out: all pages, and nothing else of the results.

    It has the names of the results' folder (report/summary.html, <tomogram>/report/tomogram.html)
    so that every link holds, and index.html that opens the first page. Pages are linked, not
    copied, where the disk can.
    """
    page, folder = Path(outputs["page"]), Path(outputs["folder"])
    root = page.parent.parent
    with atomic_path(folder) as target:
        target.mkdir(parents=True)
        files = [page, Path(outputs["table"])]
        files += [Path(outputs["plots"])] if outputs.get("plots") else []
        places = {path: Path("report", path.name) for path in files}
        for row in result.rows:
            path = root / row.tomogram / "report" / "tomogram.html"
            if row.link and path.is_file():
                places[path] = path.relative_to(root)
        for source, place in places.items():
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(source, target / place)
        title = f"Tomoline: data set {result.dataset}"
        (target / "index.html").write_text(
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta http-equiv="refresh" content="0; url=report/summary.html">'
            f"<title>{escape(title)}</title></head>"
            f'<body><p><a href="report/summary.html">{escape(title)}</a></p></body></html>\n',
            encoding="utf-8",
        )
        shutil.rmtree(folder, ignore_errors=True)  # a folder cannot be renamed onto another


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def _status_row(status: TomogramStatus, folder: Path, *, page: Path) -> TomogramRow:
    """A row from the state of its stages; a failed tomogram keeps what it had got so far."""
    state, stage, reason = status.summary, "", status.reason
    bad = [(name, s) for name, s in status.stages.items() if s.state in ("failed", "interrupted")]
    if bad:
        stage, reason = bad[0][0], bad[0][1].reason
    elif state in ("finished", "to do", "running"):
        reason = ""
    if not status.use or state not in STATE_WORDS:
        return TomogramRow(
            tomogram=status.tomogram, state=state if state in STATE_WORDS else "to do",
            reason=reason,
        )  # fmt: skip
    return _finished_row(
        status.tomogram, folder, page=page, state=state, stage=stage, reason=reason
    )


def _finished_row(tomogram: str, folder: Path, *, page: Path, state: str = "finished",
                  stage: str = "", reason: str = "") -> TomogramRow:  # fmt: skip
    transform = _read_transform(folder / "prepared.json")
    more: dict[str, Any] = {}
    if transform is not None:
        nz, ny, nx = transform.given_shape_zyx
        more = {
            "size_xyz": (nx, ny, nz),
            "voxel_size_angstrom": transform.given_voxel_size_angstrom,
            "warnings": transform.warnings,
        }
    if (folder / "particles.csv").is_file():
        more["particles"], more["class_names"] = read_outcome(folder / "particles.csv")
    domain = read_json(folder / DOMAIN)
    return TomogramRow(
        tomogram=tomogram,
        state=state,
        stage=stage,
        reason=reason,
        in_domain=str(domain.get("in_domain", "")),
        domain_reason=str(domain.get("reason", "")),
        evaluation=read_json(folder / "evaluation.json"),
        timings=read_timings(benchmark_files(folder / "benchmarks")),
        link=_link(folder / "report" / "tomogram.html", page),
        thumbnail_jpeg=_thumbnail(folder / "middle.png"),
        **more,
    )


def _given_row(entry: Mapping[str, Any], state: str, *, page: Path) -> TomogramRow:
    """A row that the caller tells of, with what lies in its folder beside the page's, if any."""
    name = str(entry.get("tomogram", ""))
    stage, reason = (str(entry.get(key) or "") for key in ("stage", "reason"))
    state = str(entry.get("state") or state)
    state = state if state in STATE_WORDS else "unused"
    if state in ("refused", "unused"):
        return TomogramRow(tomogram=name, state=state, stage=stage, reason=reason)
    folder = page.parent.parent / name
    return _finished_row(name, folder, page=page, state=state, stage=stage, reason=reason)


def _read_transform(path: Path) -> VolumeTransform | None:
    return VolumeTransform.load(path) if path.is_file() else None


def _link(target: Path, page: Path) -> str:
    """Return the address of a tomogram's page as seen from this one; nothing if it is not there."""
    if not target.is_file():
        return ""
    return Path(os.path.relpath(target, page.parent)).as_posix()


def _thumbnail(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with Image.open(path) as picture:
        grey = picture.convert("L")
    grey.thumbnail((THUMBNAIL_EDGE, THUMBNAIL_EDGE))
    target = io.BytesIO()
    grey.save(target, "JPEG", quality=75, optimize=True)
    return target.getvalue()


def _read_config(project: Path) -> dict[str, Any]:
    """The run's settings; empty where they cannot be read, since the page must be made anyway."""
    try:
        return read_yaml(project / "config" / "config.yaml")
    except (InputError, OSError, yaml.YAMLError) as error:
        log.warning("settings left out of the page: %s", error)
        return {}


def _cards(project: Path, config: Mapping[str, Any]) -> list[Path]:
    """The cards of the run's models that are there."""
    given = config.get("models")
    known = {k: v for k, v in given.items() if v} if isinstance(given, Mapping) else {}
    models = ModelsSettings().model_dump() | known
    folder = project / str(models.pop("folder"))
    cards = [folder / str(name) / "card.yaml" for name in models.values()]
    return [path for path in cards if path.is_file()]


def _paths(value: Any) -> Iterable[str]:
    if not value:
        return []
    return [str(value)] if isinstance(value, str | Path) else [str(item) for item in value]
