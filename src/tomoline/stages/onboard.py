"""`tomoline onboard`: from files to a dataset's settings and its sheet of tomograms.

Run again it adds what is new, tells what changed and what has gone, and leaves every cell alone
that a human may have edited (tomogram, use, axes, tilt_series, truth, occupancy, further columns).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from tomoline.errors import InputError
from tomoline.io.atomic import atomic_path
from tomoline.io.sheet import (
    DATASETS_FOLDER,
    SheetRow,
    check_name,
    read_dataset,
    read_sheet,
    update_dataset,
    write_dataset,
    write_sheet,
)
from tomoline.io.shrec import PAPER_SPLIT, ShrecModel, shrec_model
from tomoline.settings import DatasetSettings
from tomoline.stages.checks import is_run
from tomoline.stages.names import (
    find_truth,
    is_tomogram_name,
    is_truth_volume,
    natural_name,
    safe_name,
    tilt_series_name,
)
from tomoline.stages.status import layout
from tomoline.stages.verdicts import (
    Expectations,
    Facts,
    grey_picture,
    judge,
    survey,
)

GONE = "the file is gone"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for; None leaves the dataset's own value (at first: its default).

    `again` looks at every file of the dataset again, as after an edit of its settings by hand.
    `kind` shrec takes the tomograms of SHREC folders only, and refuses folders without one.
    """

    name: str
    paths: tuple[Path, ...]
    voxel_size_angstrom: float | None = None
    contrast: Literal["dark", "bright"] | None = None
    pattern: str | None = None
    axes: Literal["auto", "xyz", "xzy"] = "auto"
    truth: tuple[str, ...] = ()
    voxel_range_angstrom: tuple[float, float] | None = None
    rescaled: bool = True
    again: bool = False
    kind: Literal["auto", "shrec"] = "auto"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What onboarding found and wrote; names are those of the column `tomogram`."""

    dataset: DatasetSettings
    rows: tuple[SheetRow, ...]
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    judged_again: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    skipped: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    settings_file: Path = Path()
    sheet_file: Path = Path()

    @property
    def usable(self) -> int:
        """How many tomograms the workflow will run."""
        return sum(map(is_run, self.rows))


@dataclass
class _Work:
    """State of one onboarding: the sheet as it was, and what was learned."""

    request: Request
    project: Path
    dataset: DatasetSettings
    old: list[SheetRow]
    changes: dict[str, Any] = field(default_factory=dict)  # to the settings file
    facts: dict[Path, Facts] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    shrec: dict[Path, ShrecModel] = field(default_factory=dict)

    @property
    def judge_all(self) -> bool:
        return bool(self.changes) or self.request.again

    @property
    def folder(self) -> Path:
        return self.project / DATASETS_FOLDER

    def absolute(self, path: str | Path) -> Path:
        """Absolute path without `..`; links are kept, they may be the user's names for things."""
        return Path(os.path.normpath(self.project.resolve() / path))

    def written(self, path: Path) -> str:
        """Return a path as it stands in the sheet: relative where below the project."""
        root = self.project.resolve()
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def onboard(request: Request, *, project: str | Path = ".") -> Outcome:
    """Survey the files, and write `config/datasets/<name>.yaml`, `.tsv` and the thumbnails.

    Raises
    ------
    InputError
        An unsafe dataset name, a path that is not there, no file that fits, an existing dataset
        that cannot be read, or truth for a tomogram that is not there. A bad tomogram is no
        error: its row says so.
    """
    check_name(request.name, what="dataset name")
    work = _open(request, Path(project))
    files, skipped = _find_files(work)
    work.shrec = _shrec_models(work, files)
    old = {work.absolute(row.path): row for row in work.old}
    if len(old) < len(work.old):
        raise InputError(
            work.folder / work.dataset.sheet,
            expected="one row a file",
            found="a file that is listed twice",
            remedy="remove one of its rows",
        )
    candidates = dict.fromkeys(files)
    if work.judge_all:  # what changed may change any row's verdict
        candidates |= dict.fromkeys(path for path in old if path.exists())
    due = [path for path in candidates if _is_due(work, old.get(path), path)]
    work.facts = {path: _survey(work, old.get(path), path) for path in due}
    rows = _rows(work, files, old)
    rows = _with_truth(work, rows)
    rows = _with_split(work, rows)
    rows = _mark_gone(work, rows)
    _write(work, rows)
    if not work.old and request.contrast is None:
        work.notes.append(_assumed_contrast(work))
    changed = [path for path in due if path in old and _differs(old[path], path)]
    by_path = {work.absolute(row.path): row for row in rows}
    return Outcome(
        dataset=work.dataset,
        rows=tuple(rows),
        added=tuple(by_path[path].tomogram for path in files if path not in old),
        changed=tuple(by_path[path].tomogram for path in changed),
        judged_again=tuple(
            by_path[path].tomogram for path in due if path in old and path not in changed
        ),
        gone=tuple(row.tomogram for row in rows if row.reason == GONE),
        skipped=tuple(skipped),
        notes=tuple(work.notes),
        settings_file=work.folder / f"{request.name}.yaml",
        sheet_file=work.folder / work.dataset.sheet,
    )


def format_outcome(outcome: Outcome, *, command: str) -> str:
    """Lay the table out, with a line for every reason, and end with the next command."""
    table = [["", "tomogram", "verdict", "size (x y z)", "voxel", "axes", "truth"]]
    lines: list[str] = []
    for row in outcome.rows:
        table.append(_table_row(row, outcome.dataset, new=row.tomogram in outcome.added))
    laid = layout([[*cells, ""] for cells in table])
    lines.append(laid[0])
    for row, text in zip(outcome.rows, laid[1:], strict=True):
        lines.append(text)
        lines += [f"      {reason}" for reason in row.reason.split(" | ") if reason]
    lines += ["", *_summary(outcome)]
    if outcome.usable:
        lines += ["", "Look at the pictures and the sheet, then run:", f"  {command}"]
    else:
        lines += ["", "There is nothing to run yet: mend what is refused and onboard it again."]
    return "\n".join(lines) + "\n"


def thumbnail_path(project: str | Path, dataset: str, tomogram: str) -> Path:
    """Return where the middle slice's picture of an onboarded tomogram lies."""
    return Path(project) / DATASETS_FOLDER / f"{dataset}_thumbnails" / f"{tomogram}.png"


def _open(request: Request, project: Path) -> _Work:
    """Read the dataset as it is, or make it, with what the command line changes in it."""
    path = project / DATASETS_FOLDER / f"{request.name}.yaml"
    wanted: dict[str, Any] = {}
    if request.voxel_size_angstrom is not None:
        wanted["voxel_size_angstrom"] = request.voxel_size_angstrom
    if request.contrast is not None:
        wanted["contrast"] = request.contrast
    if not path.exists():
        dataset = DatasetSettings(name=request.name, sheet=f"{request.name}.tsv", **wanted)
        work = _Work(request, project, dataset, [])
        return work
    dataset = read_dataset(path)
    sheet = path.parent / dataset.sheet
    rows = read_sheet(sheet) if sheet.exists() else []
    changes = {key: value for key, value in wanted.items() if getattr(dataset, key) != value}
    work = _Work(request, project, dataset.model_copy(update=changes), rows, changes)
    work.notes += [
        f"{key}: {getattr(dataset, key)} becomes {value}" for key, value in changes.items()
    ]
    if request.axes != "auto" and rows:
        work.notes.append("--axes acts on new tomograms; for others edit the sheet's column axes")
    return work


def _find_files(work: _Work) -> tuple[list[Path], list[Path]]:
    """Return the files to onboard, sorted within each argument, and those left out by name."""
    found: dict[Path, None] = {}
    skipped: list[Path] = []
    for given in work.request.paths:
        path = work.absolute(given if given.is_absolute() else Path.cwd() / given)
        if not path.exists():
            raise InputError(
                given,
                expected="a tomogram, or a folder of tomograms",
                found="no such file or folder",
                remedy="check the path",
            )
        for file in _below(path, work.request.pattern):
            known = work.request.kind == "auto" or shrec_model(file) is not None
            if path.is_dir() and (is_truth_volume(file) or not known):
                skipped.append(file)
            else:
                found[file] = None
    for file in found:
        if not str(file).isprintable():
            raise InputError(
                repr(str(file)),
                expected="a path that fits in a line of the sheet",
                found="a tab, line break or other control character in it",
                remedy="rename the file or folder, or leave it out with --pattern",
            )
    if not found:
        raise InputError(
            ", ".join(map(str, work.request.paths)),
            expected="SHREC's folders, reconstruction*.mrc beside particle_locations*.txt"
            if work.request.kind == "shrec"
            else "files ending in .mrc, .rec or .map (also .gz, .bz2)"
            + (f" that fit {work.request.pattern}" if work.request.pattern else ""),
            found="none",
            remedy="name the files, or give another --pattern",
        )
    return list(found), skipped


def _below(path: Path, pattern: str | None) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    try:
        files = sorted(path.rglob(pattern or "*"), key=_natural)
    except (NotImplementedError, ValueError) as error:
        raise InputError(
            f"--pattern {pattern}",
            expected="a pattern such as '*_rec.mrc'",
            found=str(error),
            remedy="correct it; it is taken below the folders named",
        ) from error
    for file in files:
        # a pattern says what is wanted; without one, only what is called like a volume
        if file.is_file() and (pattern or is_tomogram_name(file)):
            yield file


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort key that puts TS_2 before TS_10."""
    parts: list[tuple[int, int, str]] = []
    digits, text = "", ""
    for char in f"{path}\0":
        if char.isdigit() and char.isascii():
            if text:
                parts.append((1, 0, text))
                text = ""
            digits += char
        else:
            if digits:
                parts.append((0, int(digits), digits))
                digits = ""
            text += char
    return [*parts, (1, 0, text)]


def _differs(row: SheetRow, path: Path) -> bool:
    stat = path.stat()
    return (row.file_bytes, row.file_mtime_ns) != (stat.st_size, stat.st_mtime_ns)


def _is_due(work: _Work, row: SheetRow | None, path: Path) -> bool:
    """Whether a file has to be looked at: new, changed, refused so far, or judged differently."""
    if row is None or work.judge_all or row.verdict == "refused":
        return True
    picture = thumbnail_path(work.project, work.dataset.name, row.tomogram)
    return _differs(row, path) or not picture.exists()


def _survey(work: _Work, row: SheetRow | None, path: Path) -> Facts:
    if work.dataset.axes != "auto":
        return survey(path, axes=work.dataset.axes)  # it overrides the sheet
    if row is None or _never_read(row):
        return survey(path, axes=work.request.axes)
    facts = survey(path)
    if row.axes != facts.axes and facts.header is not None:
        # a human decided otherwise, and is not told again
        facts = replace(survey(path, axes=row.axes), axes_notes=())
    return facts


def _never_read(row: SheetRow) -> bool:
    return row.nx is None


def _rows(work: _Work, files: Sequence[Path], old: Mapping[Path, SheetRow]) -> list[SheetRow]:
    """Rows of the sheet: the old ones in their order, then the new ones."""
    expected = Expectations(
        voxel_size_angstrom=work.dataset.voxel_size_angstrom,
        usual_voxel_size_angstrom=_usual_voxel_size(work),
        voxel_range_angstrom=work.request.voxel_range_angstrom,
        rescaled=work.request.rescaled,
        contrast=work.dataset.contrast,
    )
    # Rows in use hold their names first, so that no newer row ousts an older one.
    taken = {row.tomogram.casefold(): row for row in work.old if row.wanted}
    rows: list[SheetRow] = []
    for path in [*old, *(path for path in files if path not in old)]:
        row = old.get(path)
        if path in work.facts:
            facts = work.facts[path]
            row = _new_row(work, facts) if row is None else _measured_again(row, facts)
            row = _judged(row, facts, expected, taken=taken, before=rows)
            if row.wanted:
                taken.setdefault(row.tomogram.casefold(), row)
        assert row is not None
        rows.append(row)
    return rows


def _usual_voxel_size(work: _Work) -> float | None:
    """The most frequent voxel size of the dataset's headers, the first one where equal."""
    sizes = [row.voxel_size_angstrom for row in work.old if is_run(row)]
    sizes += [
        facts.header.voxel_size_angstrom
        for facts in work.facts.values()
        if facts.header is not None and not facts.header.anisotropic
    ]
    counts = Counter(round(size, 3) for size in sizes if size)
    return counts.most_common(1)[0][0] if counts else None


def _assumed_contrast(work: _Work) -> str:
    """Say that dark was assumed, and what the pictures say to it."""
    looks = [facts.look.contrast for facts in work.facts.values() if facts.look is not None]
    text = (
        f"contrast: dark is assumed, as --contrast was not given; {looks.count('dark')} of "
        f"{len(looks)} pictures look dark, {looks.count('bright')} bright"
    )
    if looks.count("bright"):
        text += ". Nothing was turned over: for bright particles add --contrast bright"
        if looks.count("dark"):
            text += ", and onboard the two kinds as two datasets"
    return text


def _measured(facts: Facts) -> dict[str, Any]:
    """The columns that belong to the file, not to the human."""
    values: dict[str, Any] = {
        "file_bytes": facts.file_bytes,
        "file_mtime_ns": facts.file_mtime_ns,
        "voxel_size_angstrom": None,
        "nz": None,
        "ny": None,
        "nx": None,
        "mode": None,
    }
    if facts.header is not None:
        nz, ny, nx = facts.header.file_shape
        values |= {"nz": nz, "ny": ny, "nx": nx, "mode": facts.header.mode}
        values["voxel_size_angstrom"] = facts.header.voxel_size_xyz[0]
    return values


def _new_row(work: _Work, facts: Facts) -> SheetRow:
    """Row of a file that was not known, not judged yet."""
    name = safe_name(natural_name(facts.path))
    return SheetRow(
        tomogram=name,
        path=work.written(facts.path),
        use="yes",
        verdict="ok",
        axes=facts.axes,
        tilt_series=tilt_series_name(name),
        **_measured(facts),
    )


def _measured_again(row: SheetRow, facts: Facts) -> SheetRow:
    """Row of a known file: what belongs to the file is new, what a human may have set is kept."""
    changes = _measured(facts)
    if _never_read(row):
        changes["axes"] = facts.axes
    return row.model_copy(update=changes)


def _judged(
    row: SheetRow,
    facts: Facts,
    expected: Expectations,
    *,
    taken: Mapping[str, SheetRow],
    before: Sequence[SheetRow],
) -> SheetRow:
    """Give a row its verdict: the file's own, and what follows from the other rows."""
    verdict, reasons = judge(facts, expected)
    other = taken.get(row.tomogram.casefold())
    if verdict != "refused" and other is not None and other.path != row.path:
        verdict, reasons = "refused", [_duplicate(row.tomogram, other), *reasons]
    notes = []
    natural = natural_name(facts.path)
    if row.tomogram == safe_name(natural) != natural:
        notes.append(f"named {row.tomogram}, because {natural!r} cannot be a folder's name")
    # Two tomograms under one name would put its particles twice into the combined exports.
    series = tilt_series_name(row.tomogram)
    sisters = [r.tomogram for r in before if is_run(r) and r.tilt_series == series]
    if sisters and verdict != "refused" and row.tilt_series in (series, row.tomogram):
        row = row.model_copy(update={"tilt_series": row.tomogram})
        notes.append(
            f"of the same tilt series ({series}) as {', '.join(sisters)}, so it is exported as "
            f"{row.tomogram}; set use of one to no, or correct tilt_series"
        )
    if notes and verdict == "ok":
        verdict = "warning"
    use = row.use
    if row.verdict != "refused" and verdict == "refused":
        use = "no"
    elif row.verdict == "refused" and verdict != "refused":
        use = "yes"  # it was we who left it out, not a human
    reason = " | ".join([*reasons, *notes])
    return row.model_copy(update={"verdict": verdict, "reason": reason, "use": use})


def _duplicate(name: str, other: SheetRow) -> str:
    return (
        f"duplicate name: {other.path} is {name} already; if they are different tomograms, give "
        "this one another name in the sheet's column tomogram and onboard again"
    )


def _with_truth(work: _Work, rows: Sequence[SheetRow]) -> list[SheetRow]:
    """Fill in truth: what was given for a tomogram, else, for new rows, what lies beside it."""
    given = _given_truth(work, rows)
    known = {row.path for row in work.old}
    filled = []
    for row in rows:
        if row.tomogram in given and (row.wanted or row.path not in known):
            truth, occupancy = given[row.tomogram]
        elif row.path not in known and work.request.truth != ("none",):
            model = work.shrec.get(work.absolute(row.path))
            if model is not None and model.locations is not None:
                truth, occupancy = model.locations, model.occupancy
            else:
                truth, occupancy = find_truth(work.absolute(row.path))
        else:
            filled.append(row)
            continue
        changes = {
            "truth": work.written(truth) if truth else "",
            "occupancy": work.written(occupancy) if occupancy else "",
        }
        filled.append(row.model_copy(update=changes))
    return filled


def _shrec_models(work: _Work, files: Sequence[Path]) -> dict[Path, ShrecModel]:
    """Find what belongs to SHREC's tomograms, and note how their truth is to be read.

    The dataset gets format and offset of the truth where all its tomograms agree; else, and where
    a human has set them, each is read as its own files say.
    """
    models = {path: model for path in files if (model := shrec_model(path)) is not None}
    if not models or len(models) < len(files):
        return models
    found: dict[str, Any] = {}
    layouts = {model.layout for model in models.values()}
    if len(layouts) == 1:
        found["truth_format"] = layouts.pop()
    offsets = {model.z_offset_vox() for model in models.values()} - {None}
    if len(offsets) == 1:
        found["truth_z_offset_vox"] = float(offsets.pop() or 0)
    if not work.old:
        work.dataset = work.dataset.model_copy(update=found)
    work.notes.append(
        f"SHREC's folders: {len(models)} tomograms, "
        f"{sum(m.locations is not None for m in models.values())} with particles, "
        f"{sum(m.occupancy is not None for m in models.values())} with their numbers; the truth "
        + ("counts z from section " + f"{found['truth_z_offset_vox']:g}"
           if "truth_z_offset_vox" in found else "has no volume or no common offset in z")
    )  # fmt: skip
    return models


def _with_split(work: _Work, rows: Sequence[SheetRow]) -> list[SheetRow]:
    """Fill the column `split` of SHREC's tomograms: train, validation or test.

    As `conditions.json` beside a simulated one says, else as the paper has it. What a human wrote
    stays; the workflow does not read it.
    """
    if not work.shrec:
        return list(rows)
    filled = []
    for row in rows:
        model = work.shrec.get(work.absolute(row.path))
        if model is None or (row.model_extra or {}).get("split"):
            filled.append(row)
            continue
        own = model.reconstruction.parent / "conditions.json"
        if own.is_file():
            role = str(json.loads(own.read_text(encoding="utf-8")).get("split", ""))
        else:
            role = PAPER_SPLIT.get(model.number, "") if model.number is not None else ""
        filled.append(SheetRow(**{**row.model_dump(), "split": role}))
    return filled


def _given_truth(
    work: _Work, rows: Sequence[SheetRow]
) -> dict[str, tuple[Path | None, Path | None]]:
    """Read `--truth TOMOGRAM=FILE[,OCCUPANCY]`, or `--truth FILE` where there is one tomogram."""
    found: dict[str, tuple[Path | None, Path | None]] = {}
    names = [row.tomogram for row in rows]
    for text in work.request.truth:
        if text == "none":
            continue
        name, mark, files = text.partition("=")
        if not mark and len(names) == 1:
            name, files = names[0], text
        if name not in names or not files:
            raise InputError(
                f"--truth {text}",
                expected="TOMOGRAM=FILE[,OCCUPANCY], TOMOGRAM being one of " + ", ".join(names),
                found=f"{name!r}" if mark else "no tomogram",
                remedy="name the tomogram before the equals sign",
            )
        paths = [work.absolute(Path.cwd() / part) for part in files.split(",", 1)]
        for path in paths:
            if not path.is_file():
                raise InputError(
                    path, expected="a file with the truth", found="no such file",
                    remedy="check --truth",
                )  # fmt: skip
        found[name] = (paths[0], paths[1] if len(paths) > 1 else None)
    return found


def _mark_gone(work: _Work, rows: Iterable[SheetRow]) -> list[SheetRow]:
    return [
        row
        if work.absolute(row.path).exists()
        else row.model_copy(update={"verdict": "refused", "reason": GONE, "use": "no"})
        for row in rows
    ]


def _write(work: _Work, rows: Sequence[SheetRow]) -> None:
    by_path = {work.absolute(row.path): row for row in rows}
    named = Counter(row.tomogram.casefold() for row in rows)
    for path, facts in work.facts.items():
        row = by_path[path]
        if facts.look is not None and (is_run(row) or named[row.tomogram.casefold()] == 1):
            target = thumbnail_path(work.project, work.dataset.name, row.tomogram)
            with atomic_path(target) as temporary:
                Image.fromarray(grey_picture(facts.look.picture)).save(temporary, "PNG")
    write_sheet(work.folder / work.dataset.sheet, rows)
    settings = work.folder / f"{work.dataset.name}.yaml"
    if not settings.exists():
        write_dataset(settings, work.dataset)
    elif work.changes:
        update_dataset(settings, work.changes)


def _table_row(row: SheetRow, dataset: DatasetSettings, *, new: bool) -> list[str]:
    size = f"{row.nx} {row.ny} {row.nz}" if row.nx is not None else "?"
    voxel = dataset.voxel_size_angstrom or row.voxel_size_angstrom
    return [
        "+" if new else " ",
        row.tomogram,
        row.verdict if row.wanted or row.verdict == "refused" else f"{row.verdict}, not used",
        size,
        f"{voxel:g} A" if voxel else "?",
        row.axes,
        "yes" if row.truth else "",
    ]


def _summary(outcome: Outcome) -> list[str]:
    counts = Counter(row.verdict for row in outcome.rows)
    verdicts = ", ".join(f"{counts[word]} {word}" for word in ("ok", "warning", "refused"))
    lines = [
        f"{len(outcome.rows)} tomograms ({verdicts}); {len(outcome.added)} new, "
        f"{outcome.usable} to be run"
    ]
    for names, text in (
        (outcome.changed, "changed since they were onboarded"),
        (outcome.judged_again, "judged again"),
        (outcome.gone, "gone from where they were; not used"),
    ):
        if names:
            lines.append(f"{text}: {', '.join(names)}")
    if outcome.skipped:
        lines.append(
            "left out, as truth that lies beside tomograms: "
            + ", ".join(f"{path.parent.name}/{path.name}" for path in outcome.skipped[:8])
            + (", ..." if len(outcome.skipped) > 8 else "")
        )
    lines += outcome.notes
    pictures = outcome.settings_file.with_name(f"{outcome.dataset.name}_thumbnails")
    lines.append(f"settings {outcome.settings_file}, sheet {outcome.sheet_file.name}, "
                 f"pictures {pictures.name}/")  # fmt: skip
    return lines
