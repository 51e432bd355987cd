"""Where every tomogram of every dataset stands, read from files alone.

Nothing is asked of the workflow manager: a stage is done when its own output or a later stage's
exists (intermediate files vanish after use), failed when its log ends in an ERROR that is newer
than any such output, running when its log has begun and a run is under way. On a cluster the
executor notes what became of each job (`tomoline.io.jobs`): a stage whose job was ended from
outside has failed too, and one whose job waits is queued.
"""

from __future__ import annotations

import csv
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from tomoline.contracts import DOMAIN, STAGES
from tomoline.errors import InputError
from tomoline.export.registry import DIALECTS
from tomoline.io.jobs import HISTORY, WAITING, WORKING, JobRecord, last_record
from tomoline.io.micrograph_sheet import MICROGRAPHS, load_micrographs
from tomoline.io.sheet import SheetRow, kind_of, list_datasets, load_dataset
from tomoline.settings import ExportSettings
from tomoline.stages.checks import is_run

State = Literal["done", "failed", "running", "queued", "interrupted", "to do", "-"]

EVALUATE, REPORT = "evaluate", "report"
PICK = "pick"  # the stage of a micrograph
COLUMNS = (*STAGES, EVALUATE, REPORT)

# What proves a stage done, below results/<dataset>/<tomogram>/; segment and export are counted.
_OUTPUTS: dict[str, tuple[str, ...]] = {
    "prepare": ("prepared.json",),
    "tile": ("plan.json",),
    "merge": ("mask.mrc",),
    "cluster": ("candidates.csv",),
    "extract": ("subtomograms.h5",),
    "classify": ("classes.h5",),
    "vote": ("particles.csv",),
    EVALUATE: ("evaluation.json",),
    REPORT: ("report/tomogram.html",),
    PICK: ("picks.csv", "micrograph.json", "micrograph.png", "picks.star", "picks.box"),
}
_STAGE_OF_RULE = {"report_tomogram": REPORT}
_LOG_LINE = re.compile(r"^\d{4}-\d\d-\d\d [\d:,.]+ ([A-Z]+)\s+\S+: (.*)$")
_SHARD = re.compile(r"(\d+)-of-(\d+)")
_TAIL_BYTES = 65536
# A log that changed this recently belongs to a run that is alive, even one without a lock.
_RECENT_SECONDS = 600.0


@dataclass(frozen=True)
class Pulse:
    """The time (s since the epoch), and whether the workflow holds its lock."""

    now: float
    locked: bool = False

    def beats(self, changed: float) -> bool:
        """Whether a log that last changed at `changed` belongs to a job that is running."""
        return self.locked or self.now - changed < _RECENT_SECONDS


@dataclass(frozen=True)
class StageStatus:
    """The state of one stage of one tomogram; why, and where its log is, where it failed."""

    state: State
    reason: str = ""
    log: str = ""


@dataclass(frozen=True, kw_only=True)
class TomogramStatus:
    """One row: the tomogram, its verdict in the sheet, its stages, its accepted particles."""

    tomogram: str
    use: bool
    verdict: str
    reason: str
    stages: dict[str, StageStatus] = field(default_factory=dict)
    particles: int | None = None
    job: JobRecord | None = None
    in_domain: str = ""  # yes, doubtful, no, unknown; empty before the stage cluster
    domain_reason: str = ""

    @property
    def summary(self) -> str:
        """The whole row in a word: finished, failed, running, queued, to do, refused, unused."""
        if not self.use:
            return "refused" if self.verdict == "refused" else "unused"
        states = [stage.state for stage in self.stages.values() if stage.state != "-"]
        for state in ("failed", "running", "queued", "interrupted"):
            if state in states:
                return state
        return "finished" if all(state == "done" for state in states) else "to do"


@dataclass(frozen=True, kw_only=True)
class DatasetStatus:
    """All tomograms, or micrographs, of a dataset; `problem` where its files cannot be read."""

    name: str
    kind: Literal["tomograms", "micrographs"] = "tomograms"
    tomograms: tuple[TomogramStatus, ...] = ()
    left_over: tuple[str, ...] = ()
    problem: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """How many tomograms are in each summary state, and the accepted particles."""
        words = [row.summary for row in self.tomograms]
        counts = {word: words.count(word) for word in dict.fromkeys(words)}
        return {"tomograms": len(words), **counts, "particles": self.particles}

    @property
    def particles(self) -> int:
        """Accepted particles of all its tomograms."""
        return sum(row.particles or 0 for row in self.tomograms)


def collect_status(
    project: str | Path = ".", *, dataset: str | None = None, now: float | None = None
) -> list[DatasetStatus]:
    """Read the state of one dataset, or of all that were onboarded in `project`.

    Parameters
    ----------
    project:
        Folder with config/ and results/.
    now:
        Time (seconds since the epoch) that "recently" is measured from; default: the present.

    Raises
    ------
    InputError
        The dataset asked for is not there or cannot be read. When all are listed, such a dataset
        gets a `problem` instead, so that it does not hide the others.
    """
    project = Path(project)
    folder = project / "config" / "datasets"
    now = time.time() if now is None else now
    if dataset is not None:
        return [_dataset_status(project, dataset, now=now)]
    found = []
    for name in list_datasets(folder):
        try:
            found.append(_dataset_status(project, name, now=now))
        except InputError as error:
            found.append(DatasetStatus(name=name, problem=str(error)))
    return found


def format_status(datasets: Sequence[DatasetStatus]) -> str:
    """Lay the tables out for a terminal; reasons of failures and refusals below each."""
    if not datasets:
        return (
            "No dataset has been onboarded here yet. Next: tomoline onboard PATH... --name NAME\n"
        )
    return "\n".join(_format_dataset(dataset) for dataset in datasets)


def status_json(datasets: Sequence[DatasetStatus]) -> str:
    """Return the same as JSON text."""
    value: list[dict[str, Any]] = []
    for dataset in datasets:
        rows = [{**asdict(row), "summary": row.summary} for row in dataset.tomograms]
        value.append({**asdict(dataset), "tomograms": rows, "counts": dataset.counts})
    return json.dumps({"datasets": value}, indent=2, ensure_ascii=False) + "\n"


def last_error(log: str | Path) -> str | None:
    """Return the message of the ERROR that a stage's log ends in, or None where it does not.

    A message may go on over several lines; what follows the last dated line belongs to it.
    """
    with Path(log).open("rb") as handle:
        size = handle.seek(0, 2)
        handle.seek(max(0, size - _TAIL_BYTES))
        lines = handle.read().decode("utf-8", errors="replace").splitlines()
    level, message = "", [""]
    for line in lines:
        match = _LOG_LINE.match(line)
        if match:
            level, message = match[1], [match[2]]
        elif line.strip():
            message.append(line.strip())
    return " ".join(message) if level in ("ERROR", "CRITICAL") else None


def stage_states(
    folder: str | Path,
    *,
    truth: bool = False,
    exports: Sequence[str],
    pulse: Pulse,
    job: JobRecord | None = None,
) -> dict[str, StageStatus]:
    """Read the state of each stage from a tomogram's results folder.

    Parameters
    ----------
    folder:
        results/<dataset>/<tomogram>; it need not exist.
    truth:
        Whether the tomogram has a truth to be evaluated against.
    exports:
        Names of the files that there are to be in its folder export/.
    pulse:
        The present time and whether a run is known to be under way.
    job:
        The last that is known of its last job on a cluster.
    """
    folder = Path(folder)
    evidence = {stage: _evidence(folder, stage, exports=exports) for stage in COLUMNS}
    states: dict[str, StageStatus] = {}
    for number, stage in enumerate(STAGES):
        later = [evidence[name] for name in STAGES[number + 1 :]]
        if number <= STAGES.index("vote"):  # these follow vote, not export
            later += [evidence[EVALUATE], evidence[REPORT]]
        known = [when for when in later if when is not None]
        states[stage] = _one_stage(
            folder, stage, own=evidence[stage], later=max(known, default=None), pulse=pulse
        )
    for stage in (EVALUATE, REPORT):
        own = evidence[stage]
        states[stage] = _one_stage(folder, stage, own=own, later=None, pulse=pulse)
    if not truth:
        states[EVALUATE] = StageStatus("-")
    return states if job is None else _with_job(states, job, pulse)


def pick_states(
    folder: str | Path, *, pulse: Pulse, job: JobRecord | None = None
) -> dict[str, StageStatus]:
    """Read the state of a micrograph's only stage from its results folder, as `stage_states`."""
    folder = Path(folder)
    own = _evidence(folder, PICK, exports=())
    states = {PICK: _one_stage(folder, PICK, own=own, later=None, pulse=pulse)}
    return states if job is None else _with_job(states, job, pulse)


def _with_job(
    states: dict[str, StageStatus], job: JobRecord, pulse: Pulse
) -> dict[str, StageStatus]:
    """Add what the cluster knows: which stage's job waits, or was ended from outside."""
    rules = {_STAGE_OF_RULE.get(rule, rule) for rule in job.rules}
    for name, status in states.items():
        if name not in rules or status.state not in ("to do", "running", "interrupted"):
            continue
        if job.failed:
            reason = f"{job.reason}; " if job.reason and job.job else ""
            return states | {name: StageStatus("failed", f"{reason}{job.text}", job.log)}
        if status.state == "to do" and pulse.beats(job.changed):
            if job.state in WAITING:
                return states | {name: StageStatus("queued", job.text)}
            if job.state in WORKING:
                return states | {name: StageStatus("running")}
        break
    return states


def accepted_particles(table: str | Path) -> int | None:
    """Count the accepted rows of a particles.csv; None where there is none."""
    path = Path(table)
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as handle:
        return sum(1 for row in csv.DictReader(handle) if row.get("status") == "accepted")


def read_domain(folder: str | Path) -> dict[str, Any]:
    """Whether the model can judge a tomogram, from its results folder; empty where not known."""
    try:
        value = json.loads((Path(folder) / DOMAIN).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


def _micrographs_status(project: Path, name: str, *, now: float) -> DatasetStatus:
    _, rows = load_micrographs(name, folder=project / "config" / "datasets")
    results = project / "results" / name
    pulse = Pulse(now, locked=any((project / ".snakemake" / "locks").glob("*")))
    found = []
    for row in rows:
        folder = results / row.micrograph
        job = last_record(folder / HISTORY) if row.wanted else None
        found.append(
            TomogramStatus(
                tomogram=row.micrograph,
                use=row.wanted,
                verdict=row.verdict,
                reason=row.reason,
                stages=pick_states(folder, pulse=pulse, job=job) if row.wanted else {},
                particles=accepted_particles(folder / "picks.csv") if row.wanted else None,
                job=job,
            )
        )
    known = {row.micrograph for row in rows}
    return DatasetStatus(
        name=name, kind="micrographs", tomograms=tuple(found),
        left_over=tuple(_left_over(results, known=known)),
    )  # fmt: skip


def _dataset_status(project: Path, name: str, *, now: float) -> DatasetStatus:
    if kind_of(name, folder=project / "config" / "datasets") == MICROGRAPHS:
        return _micrographs_status(project, name, now=now)
    _, rows = load_dataset(name, folder=project / "config" / "datasets")
    results = project / "results" / name
    pulse = Pulse(now, locked=any((project / ".snakemake" / "locks").glob("*")))
    exports = _export_files(project)
    tomograms = []
    for row in rows:
        folder = results / row.tomogram
        states: dict[str, StageStatus] = {}
        particles, job = None, None
        if is_run(row):
            job = last_record(folder / HISTORY)
            states = stage_states(
                folder, truth=bool(row.truth), exports=exports, pulse=pulse, job=job
            )
            particles = accepted_particles(folder / "particles.csv")
        domain = read_domain(folder) if is_run(row) else {}
        tomograms.append(_tomogram(row, states, particles, job, domain))
    return DatasetStatus(
        name=name,
        tomograms=tuple(tomograms),
        left_over=tuple(_left_over(results, known={row.tomogram for row in rows})),
    )


def _tomogram(
    row: SheetRow,
    stages: dict[str, StageStatus],
    particles: int | None,
    job: JobRecord | None,
    domain: Mapping[str, Any],
) -> TomogramStatus:
    return TomogramStatus(
        tomogram=row.tomogram,
        use=is_run(row),
        verdict=row.verdict,
        reason=row.reason,
        stages=stages,
        particles=particles,
        job=job,
        in_domain=str(domain.get("in_domain", "")),
        domain_reason=str(domain.get("reason", "")),
    )


def _left_over(results: Path, *, known: set[str]) -> list[str]:
    # a tomogram's folder has logs; export/ and report/ of the dataset have none
    return sorted(
        path.name
        for path in results.glob("*")
        if path.name not in known and (path / "logs").is_dir()
    )


def _export_files(project: Path) -> list[str]:
    """Names of the files each tomogram is exported to; the default ones where config is silent.

    Whether config.yaml is right is for the workflow to say, before its first job.
    """
    names = ExportSettings().dialects
    with suppress(OSError, yaml.YAMLError, KeyError, TypeError):
        raw = yaml.safe_load((project / "config" / "config.yaml").read_text(encoding="utf-8"))
        names = [str(name) for name in raw["export"]["dialects"]]
    return [DIALECTS[name].file_name for name in names if name in DIALECTS]


def _evidence(folder: Path, stage: str, *, exports: Sequence[str]) -> float | None:
    """Time (s) of a stage's complete output, or None."""
    if stage == "segment":
        shards = [path for path in (folder / "segment").glob("*.h5") if _SHARD.search(path.stem)]
        wanted = _shards_wanted(folder, shards)
        return _newest(shards) if shards and len(shards) >= wanted else None
    names = [f"export/{name}" for name in exports] if stage == "export" else _OUTPUTS[stage]
    paths = [folder / name for name in names]
    return _newest(paths) if paths and all(path.exists() for path in paths) else None


def _shards_wanted(folder: Path, shards: Iterable[Path]) -> int:
    names = [path.stem for path in shards]
    names += [path.stem for path in (folder / "logs").glob("segment_*.log")]
    totals = [int(match[2]) for match in map(_SHARD.search, names) if match]
    return max(totals, default=1)


def _newest(paths: Iterable[Path]) -> float:
    return max(path.stat().st_mtime for path in paths)


def _logs(folder: Path, stage: str) -> list[Path]:
    logs = folder / "logs"
    if stage == REPORT:
        stage = "report_tomogram"
    return sorted([*logs.glob(f"{stage}.log"), *logs.glob(f"{stage}_*.log")])


def _one_stage(
    folder: Path, stage: str, *, own: float | None, later: float | None, pulse: Pulse
) -> StageStatus:
    if own is not None:
        return StageStatus("done")
    # Only logs newer than what later stages made speak of the present: older ones belong to the
    # run whose intermediate files have since been removed.
    logs = [log for log in _logs(folder, stage) if later is None or log.stat().st_mtime > later]
    errors = {str(log): reason for log in logs if (reason := last_error(log)) is not None}
    if errors:
        reasons = "; ".join(dict.fromkeys(errors.values()))
        return StageStatus("failed", reasons, ", ".join(errors))
    if logs and pulse.beats(_newest(logs)):
        return StageStatus("running")
    if later is not None:
        return StageStatus("done")
    if not logs:
        return StageStatus("to do")
    return StageStatus("interrupted", "its log ends without an error: the job was killed")


def _format_dataset(dataset: DatasetStatus) -> str:
    lines = [f"Dataset {dataset.name}"]
    if dataset.problem:
        return "\n".join([*lines, f"  cannot be read: {dataset.problem}", ""])
    columns = [name for name in COLUMNS if name != EVALUATE or _evaluated(dataset)]
    if dataset.kind == MICROGRAPHS:
        columns = [PICK]
    jobs = {row.tomogram: _live_job(row) for row in dataset.tomograms}
    table = [
        [dataset.kind[:-1], *columns, *(["SLURM job"] if any(jobs.values()) else []), "particles"]
    ]
    for row in dataset.tomograms:
        if row.use:
            cells = [str(row.stages[name].state) for name in columns]
            count = "" if row.particles is None else str(row.particles)
        else:
            cells, count = [row.summary, *[""] * (len(columns) - 1)], ""
        job = [jobs[row.tomogram]] if any(jobs.values()) else []
        table.append([row.tomogram, *cells, *job, count])
    lines += layout(table)
    lines += _notes(dataset)
    counts = [f"{n} {word}" for word, n in dataset.counts.items() if word != "tomograms"]
    counts[-1] = f"{dataset.particles} accepted particles"
    lines.append(f"  {len(dataset.tomograms)} {dataset.kind}: " + ", ".join(counts))
    return "\n".join([*lines, ""])


def _live_job(row: TomogramStatus) -> str:
    """Number and state of the cluster job that a tomogram is in or waits for; else empty."""
    live = row.job is not None and row.summary in ("queued", "running") and not row.job.failed
    return f"{row.job.job} {row.job.state}" if live and row.job is not None else ""


def _evaluated(dataset: DatasetStatus) -> bool:
    return any(
        row.stages[EVALUATE].state != "-" for row in dataset.tomograms if EVALUATE in row.stages
    )


def _notes(dataset: DatasetStatus) -> list[str]:
    notes = []
    for row in dataset.tomograms:
        if not row.use and row.reason:
            notes.append(f"  {row.tomogram}: {row.summary}: {row.reason}")
        for name, stage in row.stages.items():
            if stage.reason:
                notes.append(f"  {row.tomogram}: {name} {stage.state}: {stage.reason}")
                notes += [f"    {line}" for line in _where_to_look(row, stage)]
        if row.in_domain in ("doubtful", "no"):
            notes.append(f"  {row.tomogram}: {row.domain_reason}")
    notes += [
        f"  results of {name} are there, but it is not in the sheet" for name in dataset.left_over
    ]
    return notes


def _where_to_look(row: TomogramStatus, stage: StageStatus) -> list[str]:
    """The files that say more about a failure."""
    if stage.state != "failed":
        return []
    lines = [f"log {stage.log}"] if stage.log and stage.log not in stage.reason else []
    if row.job is not None and row.job.failed and row.job.text not in stage.reason:
        lines.append(row.job.text)
    return lines


def layout(table: Sequence[Sequence[str]], *, indent: str = "  ") -> list[str]:
    """Set a table of texts in columns, the last one flush right."""
    widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
    lines = []
    for row in table:
        cells = [text.ljust(width) for text, width in zip(row[:-1], widths[:-1], strict=True)]
        lines.append((indent + "  ".join([*cells, row[-1].rjust(widths[-1])])).rstrip())
    return lines
