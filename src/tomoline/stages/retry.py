"""`tomoline retry`: forget what a stage made of chosen tomograms, so that the next run makes it.

Only files that the workflow itself writes below results/<dataset>/<tomogram> are removed, by name.
The records of jobs (logs/slurm.jsonl) stay: they are history, not results.
"""

from __future__ import annotations

import difflib
import glob
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from tomoline.errors import InputError
from tomoline.export.registry import DIALECTS
from tomoline.io.jobs import FORGOTTEN, HISTORY, append
from tomoline.io.sheet import list_datasets
from tomoline.stages.status import COLUMNS, DatasetStatus, TomogramStatus, collect_status

_EXPORTS = tuple(f"export/{entry.file_name}" for entry in DIALECTS.values())

# What each stage makes of a tomogram, below results/<dataset>/<tomogram>/ ...
MADE: dict[str, tuple[str, ...]] = {
    "prepare": ("prepared.mrc", "prepared.json", "middle.png"),
    "tile": ("plan.json",),
    "segment": ("segment/*.h5",),
    "merge": ("probability.mrc", "mask.mrc"),
    "cluster": ("candidates.csv", "domain.json"),
    "extract": ("subtomograms.h5",),
    "classify": ("classes.h5",),
    "vote": ("particles.csv", "segmentation.mrc.gz"),
    "export": _EXPORTS,
    "evaluate": ("evaluation.json", "evaluation_classes.csv", "confusion.csv"),
    "report": ("report/tomogram.html", "report/slices.png"),
}
# ... and what it reads of what others made. Both follow the rules; a test compares them.
READ: dict[str, tuple[str, ...]] = {
    "prepare": (),
    "tile": ("prepared.json",),
    "segment": ("prepared.mrc", "plan.json"),
    "merge": ("prepared.mrc", "prepared.json", "plan.json", "segment/*.h5"),
    "cluster": ("probability.mrc", "mask.mrc", "prepared.mrc", "prepared.json"),
    "extract": ("candidates.csv", "prepared.mrc"),
    "classify": ("subtomograms.h5",),
    "vote": ("candidates.csv", "classes.h5", "prepared.json"),
    "export": ("particles.csv", "prepared.json"),
    "evaluate": ("particles.csv", "segmentation.mrc.gz", "prepared.json", "prepared.mrc"),
    "report": ("particles.csv", "prepared.json", "prepared.mrc", "evaluation.json", "domain.json"),
}
_MAKER = {name: stage for stage, names in MADE.items() for name in names}
_FOLDERS = ("segment", "export", "report", "logs", "benchmarks")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which tomograms, and from which stage on.

    `names` are tomograms or patterns; `failed` adds all that failed. `stage` None means the stages
    that failed, else the first one that is not done.
    """

    names: tuple[str, ...] = ()
    failed: bool = False
    dataset: str | None = None
    stage: str | None = None


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """What was (or would be) removed of one tomogram.

    `stages` are forgotten, `removed` are the files, below its folder, `again` the earlier stages
    that are done again because the files `missing` were intermediate and are no longer there.
    `skipped` says why nothing was done.
    """

    dataset: str
    tomogram: str
    stages: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    again: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    skipped: str = ""


@dataclass(frozen=True)
class _Chosen:
    dataset: str
    row: TomogramStatus


def retry(
    selection: Selection,
    *,
    project: str | Path = ".",
    dry_run: bool = False,
    force: bool = False,
) -> list[Forgotten]:
    """Forget the chosen stages, and those that follow from them, of the chosen tomograms.

    Parameters
    ----------
    dry_run:
        Only say what would be removed.
    force:
        Act although the workflow's lock is held.

    Raises
    ------
    InputError
        An unknown tomogram, stage or dataset; a name that several datasets have; a run that is
        under way; results that lie behind a link out of results/; a file that cannot be removed.
        All is checked before the first file goes.
    """
    project = Path(project)
    stage = _stage(selection.stage)
    chosen = _choose(selection, _datasets(project, selection.dataset))
    if not (dry_run or force):
        _check_idle(project)
    folders = [_checked_folder(project, one) for one in chosen]
    plans = [_plan(one, folder, stage) for one, folder in zip(chosen, folders, strict=True)]
    if not dry_run:
        for plan, folder in zip(plans, folders, strict=True):
            _remove(folder, plan.removed)
            if plan.removed and (folder / HISTORY).exists():
                with suppress(OSError):  # only a word for `tomoline status`
                    append(folder / HISTORY, run="", job="", state=FORGOTTEN, rules=plan.stages)
    return plans


def following(stage: str) -> tuple[str, ...]:
    """Return `stage` and all that read, directly or not, what it makes; in the line's order."""
    found = {stage}
    for name in COLUMNS:  # in their order, so one pass reaches all
        if any(_MAKER[file] in found for file in READ[name]):
            found.add(name)
    return tuple(name for name in COLUMNS if name in found)


def format_retry(done: Sequence[Forgotten], *, command: str, dry_run: bool = False) -> str:
    """Say per tomogram what went, and end with the next command."""
    lines: list[str] = []
    for one in done:
        name = f"{one.dataset}/{one.tomogram}"
        if one.skipped:
            lines.append(f"{name}: nothing to forget: {one.skipped}")
            continue
        verb = "would be forgotten" if dry_run else "forgotten"
        lines.append(f"{name}: {verb} from {one.stages[0]} on ({', '.join(one.stages)})")
        results = [file for file in one.removed if not file.startswith(("logs/", "benchmarks/"))]
        others = len(one.removed) - len(results)
        what = ", ".join(results) or "no results"
        lines.append(
            f"  {'to remove' if dry_run else 'removed'}: {what}; {others} logs and timings"
        )
        if one.again:
            lines.append(
                f"  also done again: {', '.join(one.again)}, because {', '.join(one.missing)} "
                "was an intermediate file and is not there any more (`keep` in config.yaml)"
            )
    forgotten = [one for one in done if not one.skipped]
    if not done:
        lines.append("No tomogram has failed.")
    if forgotten and dry_run:
        lines += ["", "Nothing was changed. Without --dry-run these are removed."]
    elif forgotten:
        lines += ["", "Next, the same command as before, such as:", f"  {command}"]
    return "\n".join(lines) + "\n"


def _stage(given: str | None) -> str | None:
    if given is None or given in COLUMNS:
        return given
    if given == "report_tomogram":  # the rule's name
        return "report"
    raise InputError(
        f"--from {given}",
        expected="a stage: " + ", ".join(COLUMNS),
        found=repr(given),
        remedy="name one of these",
    )


def _datasets(project: Path, name: str | None) -> list[DatasetStatus]:
    found = collect_status(project, dataset=name)
    if not found:
        raise InputError(
            project / "config" / "datasets",
            expected="an onboarded dataset",
            found="none; is this the project folder?",
            remedy="change to the project folder, or name it with --project",
        )
    broken = [one for one in found if one.problem]
    if broken:  # the tomogram meant may be one of its, so do not guess
        raise InputError(
            f"dataset {broken[0].name}",
            expected="a sheet that can be read",
            found=broken[0].problem,
            remedy="mend it, or name another one with --dataset",
        )
    return found


def _choose(selection: Selection, datasets: Sequence[DatasetStatus]) -> list[_Chosen]:
    known = [_Chosen(one.name, row) for one in datasets for row in one.tomograms]
    chosen: dict[tuple[str, str], _Chosen] = {}
    for name in selection.names:
        for one in _named(name, known):
            chosen[one.dataset, one.row.tomogram] = one
    if selection.failed:
        for one in known:
            if one.row.summary == "failed":
                chosen[one.dataset, one.row.tomogram] = one
    elif not selection.names:
        raise InputError(
            "tomoline retry",
            expected="names of tomograms, patterns such as '*_lamella3*', or --failed",
            found="none of these",
            remedy="tomoline status lists the tomograms",
        )
    return list(chosen.values())


def _named(name: str, known: Sequence[_Chosen]) -> list[_Chosen]:
    exact = [one for one in known if one.row.tomogram == name]
    # a name without wildcards is matched too, which finds nothing more
    found = exact or [one for one in known if fnmatchcase(one.row.tomogram, name)]
    if not found:
        raise _unknown(name, known)
    datasets = sorted({one.dataset for one in found})
    if len(datasets) > 1:
        raise InputError(
            name,
            expected="a name that one dataset has",
            found="it in the datasets " + ", ".join(datasets),
            remedy="say which with --dataset",
        )
    used = [one for one in found if one.row.use]
    return used or found


def _unknown(name: str, known: Sequence[_Chosen]) -> InputError:
    names = list(dict.fromkeys(one.row.tomogram for one in known))
    folded = {other.casefold(): other for other in names}
    near = difflib.get_close_matches(name.casefold(), folded, n=5, cutoff=0.5)
    listed = [folded[other] for other in near] or names[:5]
    word = "the nearest are" if near else "there are"
    more = ", ..." if not near and len(names) > len(listed) else ""
    return InputError(
        name,
        expected="a tomogram of " + ", ".join(sorted({one.dataset for one in known})),
        found=f"none that is called or matches so; {word}: {', '.join(listed) or 'none'}{more}",
        remedy="correct the name (`tomoline status` lists them), or use a pattern in quotes",
    )


def _check_idle(project: Path) -> None:
    if any((project / ".snakemake" / "locks").glob("*")):
        raise InputError(
            project / ".snakemake" / "locks",
            expected="no run under way in this folder, since it may be writing these files",
            found="the lock of one",
            remedy="wait until it has ended; if it was killed: `tomoline recover`, which also ends "
            "the SLURM jobs that it left; --force forgets all the same",
        )


def _checked_folder(project: Path, one: _Chosen) -> Path:
    """Return the tomogram's folder, once sure that it and those in it lie where they seem to.

    results/ itself may be a link, as to a larger disk; nothing below it may lead elsewhere.
    """
    results = project / "results"
    folder = results / one.dataset / one.row.tomogram
    expected = results.resolve() / one.dataset / one.row.tomogram
    for path, place in [(folder, expected), *((folder / n, expected / n) for n in _FOLDERS)]:
        if path.resolve() != place:
            raise InputError(
                path,
                expected="a folder of its own below results/",
                found=f"a link to {path.resolve()}",
                remedy="nothing behind a link is removed: remove it there by hand, or replace the "
                "link by the folder",
            )
    return folder


def _plan(one: _Chosen, folder: Path, stage: str | None) -> Forgotten:
    row = one.row
    if not row.use:
        why = f"it is not run ({row.reason})" if row.reason else "its `use` is no in the sheet"
        return Forgotten(dataset=one.dataset, tomogram=row.tomogram, skipped=why)
    first = (stage,) if stage else _to_mend(row)
    if not first:
        why = "it is finished; name a stage with --from"
        return Forgotten(dataset=one.dataset, tomogram=row.tomogram, skipped=why)
    wanted = {name for begin in first for name in following(begin)}
    possible = {name for name in COLUMNS if row.stages[name].state != "-"}
    stages = tuple(name for name in COLUMNS if name in wanted & possible) or first
    again, missing = _again(folder, stages, possible)
    files = [file for name in reversed(stages) for file in _results(folder, name)]
    # An earlier stage that must be done again although it once ended well would look killed.
    unmade = [name for name in again if not all(_there(folder, file) for file in MADE[name])]
    files += [file for name in (*stages, *unmade) for file in _logs(folder, name)]
    return Forgotten(
        dataset=one.dataset,
        tomogram=row.tomogram,
        stages=stages,
        removed=tuple(path.relative_to(folder).as_posix() for path in files),
        again=again,
        missing=missing,
    )


def _to_mend(row: TomogramStatus) -> tuple[str, ...]:
    """Stages that failed, else the first one that is not done."""
    failed = tuple(name for name in COLUMNS if row.stages[name].state == "failed")
    if failed:
        return failed
    waiting = [name for name in COLUMNS if row.stages[name].state not in ("done", "-")]
    return tuple(waiting[:1])


def _again(
    folder: Path, stages: Sequence[str], possible: set[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Other stages that have to be done again for these, and the missing files that make them.

    A stage whose file is wanted and gone is done again, and so is all that reads what is new.
    """
    redone, missing = set(stages), set[str]()
    while True:
        lacking = {
            file
            for name in redone
            for file in READ[name]
            if _MAKER[file] in possible - redone and not _there(folder, file)
        }
        new = {_MAKER[file] for file in lacking}
        new |= {name for begin in redone for name in following(begin)} & possible
        if new <= redone:
            break
        redone |= new
        missing |= lacking
    again = tuple(name for name in COLUMNS if name in redone and name not in stages)
    return again, tuple(file for file in _MAKER if file in missing)


def _there(folder: Path, name: str) -> bool:
    return any(folder.glob(name))


def _results(folder: Path, stage: str) -> Iterator[Path]:
    """Files of a stage, and what killed jobs left of them beside their names."""
    for name in MADE[stage]:
        yield from sorted(folder.glob(name))
        path = folder / name
        pattern = path.name if "*" in name else glob.escape(path.name)
        yield from sorted(path.parent.glob(f".{pattern}.part*"))


def _logs(folder: Path, stage: str) -> Iterator[Path]:
    name = "report_tomogram" if stage == "report" else stage
    for place, suffix in (("logs", "log"), ("benchmarks", "jsonl")):
        yield from sorted((folder / place).glob(f"{name}.{suffix}"))
        yield from sorted((folder / place).glob(f"{name}_*.{suffix}"))


def _remove(folder: Path, files: Iterable[str]) -> None:
    """Remove the files, the last stage's first, and folders that are empty then."""
    for name in files:
        path = folder / name
        try:
            path.unlink(missing_ok=True)  # of a link the link itself, never what it points to
        except OSError as error:
            raise InputError(
                path,
                expected="a file that can be removed",
                found=error.strerror or str(error),
                remedy="mend the cause (permissions, a full or read-only disk) and repeat the "
                "command; what it removed before is no harm",
            ) from error
    for name in ("segment", "export", "report"):
        with suppress(OSError):  # absent, or not empty
            (folder / name).rmdir()


def touched_datasets(done: Sequence[Forgotten], project: str | Path) -> list[str]:
    """Names of the datasets in which something was forgotten, in the project's order."""
    touched = {one.dataset for one in done if not one.skipped}
    return [
        name for name in list_datasets(Path(project) / "config" / "datasets") if name in touched
    ]
