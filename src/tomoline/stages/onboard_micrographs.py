"""`tomoline onboard --type micrographs`: from micrographs to a data set's settings and sheet.

Run again it adds what is new and looks again at what changed; `micrograph`, `use`, `truth`, `mask`
and further columns are a human's. Truth and masks are found where they lie beside the micrographs:
`<stem>_picks.csv`, `<stem>.box`, `<stem>_autopick.star`; `<stem>_contamination.png`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tomoline.errors import InputError
from tomoline.io.micrograph_sheet import (
    MICROGRAPHS,
    MicrographRow,
    load_micrographs,
    read_micrograph_sheet,
    write_micrograph_sheet,
)
from tomoline.io.micrographs import MRC_SUFFIXES, is_micrograph_name, read_facts
from tomoline.io.sheet import DATASETS_FOLDER, change_keys, check_name, kind_of, write_dataset
from tomoline.ops.micrographs import EXTENT_PX
from tomoline.settings import MicrographDatasetSettings
from tomoline.stages.names import safe_name
from tomoline.stages.status import layout

GONE = "the file is gone"
TRUTH_ENDINGS = ("_picks.csv", ".box", "_autopick.star")
MASK_ENDING = "_contamination.png"
# Beside micrographs, pictures of these names are no micrographs.
NOT_MICROGRAPHS = ("_mask", "_contamination")
# Fewer pixels across a particle hold too little of it.
LEAST_DIAMETER_PX = 8.0


@dataclass(frozen=True, kw_only=True)
class MicrographRequest:
    """What the user asked for; None leaves the data set's own value."""

    name: str
    paths: tuple[Path, ...]
    pixel_size_angstrom: float | None = None
    diameter_angstrom: float | None = None
    contrast: Literal["dark", "bright"] | None = None
    pattern: str | None = None


@dataclass(frozen=True, kw_only=True)
class MicrographOutcome:
    """What onboarding found and wrote."""

    dataset: MicrographDatasetSettings
    rows: tuple[MicrographRow, ...]
    added: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sheet_file: Path = field(default_factory=Path)

    @property
    def usable(self) -> int:
        """How many micrographs the workflow will run."""
        return sum(row.wanted for row in self.rows)


def onboard_micrographs(
    request: MicrographRequest, *, project: str | Path = "."
) -> MicrographOutcome:
    """Look at the files and write `config/datasets/<name>.yaml` and `.tsv`.

    Raises
    ------
    InputError
        An unsafe name, a path that is not there, no micrograph, no diameter, or a data set of
        tomograms of that name. A bad micrograph is no error: its row says so.
    """
    check_name(request.name, what="dataset name")
    root = Path(project)
    dataset, old, notes = _open(request, root)
    known = {_absolute(root, row.path): row for row in old}
    files = list(dict.fromkeys(_files(request, root)))
    taken = {row.micrograph.casefold() for row in old}
    rows = [_again(row, path, dataset) for path, row in known.items()]
    added = []
    for path in files:
        if path not in known:
            row = _new(path, root, dataset, taken)
            taken.add(row.micrograph.casefold())
            rows.append(row)
            added.append(row.micrograph)
    folder = root / DATASETS_FOLDER
    write_micrograph_sheet(folder / dataset.sheet, rows)
    return MicrographOutcome(
        dataset=dataset, rows=tuple(rows), added=tuple(added), notes=tuple(notes),
        sheet_file=folder / dataset.sheet,
    )  # fmt: skip


def format_micrographs(outcome: MicrographOutcome, *, command: str) -> str:
    """Lay the table out, with a line for every reason, and end with the next command."""
    table = [["", "micrograph", "verdict", "size (x y)", "pixel", "truth", "mask", ""]]
    for row in outcome.rows:
        pixel = outcome.dataset.pixel_size_angstrom or row.pixel_size_angstrom
        table.append([
            "+" if row.micrograph in outcome.added else " ", row.micrograph,
            row.verdict if row.use == "yes" or row.verdict == "refused" else "not used",
            f"{row.nx} {row.ny}" if row.nx else "?", f"{pixel:g} A" if pixel else "?",
            "yes" if row.truth else "", "yes" if row.mask else "", "",
        ])  # fmt: skip
    laid = layout(table)
    lines = [laid[0]]
    for row, text in zip(outcome.rows, laid[1:], strict=True):
        lines += [text, *([f"      {row.reason}"] if row.reason else [])]
    counts = Counter(row.verdict for row in outcome.rows)
    words = ", ".join(f"{counts[word]} {word}" for word in ("ok", "warning", "refused"))
    lines += ["", f"{len(outcome.rows)} micrographs ({words}); {len(outcome.added)} new, "
              f"{outcome.usable} to be run", *outcome.notes]  # fmt: skip
    if outcome.usable:
        lines += ["", "Look at the sheet, then run:", f"  {command}"]
    else:
        lines += ["", "There is nothing to run yet: mend what is refused and onboard it again."]
    return "\n".join(lines) + "\n"


def diameter_in_px(dataset: MicrographDatasetSettings, row: MicrographRow) -> float | None:
    """The particle's diameter in a micrograph's pixels; None where no pixel size is known."""
    pixel = dataset.pixel_size_angstrom or row.pixel_size_angstrom
    return dataset.particle_diameter_angstrom / pixel if pixel else None


def _open(
    request: MicrographRequest, root: Path
) -> tuple[MicrographDatasetSettings, list[MicrographRow], list[str]]:
    """The data set as it is, or a new one, with what the command line changes in it."""
    folder = root / DATASETS_FOLDER
    path = folder / f"{request.name}.yaml"
    given = {
        "pixel_size_angstrom": request.pixel_size_angstrom,
        "particle_diameter_angstrom": request.diameter_angstrom, "contrast": request.contrast,
    }  # fmt: skip
    wanted = {key: value for key, value in given.items() if value is not None}
    if not path.exists():
        if request.diameter_angstrom is None:
            raise InputError(
                "--diameter", expected="the particles' diameter in angstrom", found="none",
                remedy="give it; it sets the scale at which particles are looked for",
            )  # fmt: skip
        dataset = MicrographDatasetSettings.model_validate(
            {"name": request.name, "sheet": f"{request.name}.tsv", **wanted}
        )
        write_dataset(path, dataset)
        dark = ["contrast: dark is assumed, as --contrast was not given"]
        return dataset, [], [] if request.contrast else dark
    if kind_of(request.name, folder=folder) != MICROGRAPHS:
        raise InputError(
            path, expected="a data set of micrographs", found="one of tomograms",
            remedy="choose another --name",
        )  # fmt: skip
    dataset, _ = load_micrographs(request.name, folder=folder)
    changes = {key: value for key, value in wanted.items() if getattr(dataset, key) != value}
    notes = [f"{key}: {getattr(dataset, key)} becomes {value}" for key, value in changes.items()]
    if changes:
        change_keys(path, changes)
        dataset = dataset.model_copy(update=changes)
    return dataset, read_micrograph_sheet(folder / dataset.sheet), notes


def _files(request: MicrographRequest, root: Path) -> Iterator[Path]:
    """The files to onboard, sorted within each argument."""
    any_found = False
    for given in request.paths:
        path = _absolute(root, given if given.is_absolute() else Path.cwd() / given)
        if not path.exists():
            raise InputError(
                given, expected="a micrograph, or a folder of micrographs",
                found="no such file or folder", remedy="check the path",
            )  # fmt: skip
        below = sorted(path.glob(request.pattern or "*")) if path.is_dir() else [path]
        for file in below:
            if file.is_file() and (not path.is_dir() or _looks_like_one(file, request.pattern)):
                if not str(file).isprintable():
                    raise InputError(
                        repr(str(file)), expected="a path that fits in a line of the sheet",
                        found="a control character in it", remedy="rename the file or folder",
                    )  # fmt: skip
                any_found = True
                yield file
    if not any_found:
        raise InputError(
            ", ".join(map(str, request.paths)),
            expected="files ending in .mrc, .tif, .png or .jpg", found="none",
            remedy="check the path and --pattern",
        )  # fmt: skip


def _looks_like_one(path: Path, pattern: str | None) -> bool:
    stem = path.stem.lower()
    aside = not pattern and (stem.endswith(NOT_MICROGRAPHS) or path.name.startswith("."))
    return is_micrograph_name(path.name) and not aside


def _new(
    path: Path, root: Path, dataset: MicrographDatasetSettings, taken: set[str]
) -> MicrographRow:
    name = safe_name(_stem(path))
    row = MicrographRow(
        micrograph=name, path=_written(root, path), use="yes", verdict="ok",
        truth=_beside(root, path, TRUTH_ENDINGS), mask=_beside(root, path, (MASK_ENDING,)),
    )  # fmt: skip
    row = _judged(row, path, dataset)
    if name.casefold() in taken and row.verdict != "refused":
        return row.model_copy(update={
            "verdict": "refused", "use": "no", "reason": f"duplicate name {name}: give this one "
            "another in the column micrograph, set use to yes, and onboard again",
        })  # fmt: skip
    return row


def _again(row: MicrographRow, path: Path, dataset: MicrographDatasetSettings) -> MicrographRow:
    if not path.exists():
        return row.model_copy(update={"verdict": "refused", "reason": GONE, "use": "no"})
    if row.reason.startswith("duplicate name") and row.use == "no":
        return row
    use = "yes" if row.verdict == "refused" else row.use
    return _judged(row.model_copy(update={"use": use}), path, dataset)


def _judged(row: MicrographRow, path: Path, dataset: MicrographDatasetSettings) -> MicrographRow:
    """Fill in what the file says, and the verdict."""
    stat = path.stat()
    changes: dict[str, Any] = {"file_bytes": stat.st_size, "file_mtime_ns": stat.st_mtime_ns}
    try:
        facts = read_facts(path)
    except InputError as error:
        reason = f"expected {error.expected}; found {error.found}. {error.remedy}"
        changes |= {"verdict": "refused", "use": "no", "reason": reason}
        return row.model_copy(update=changes)
    changes |= {
        "pixel_size_angstrom": facts.pixel_size_angstrom, "ny": facts.shape_yx[0],
        "nx": facts.shape_yx[1], "kind": facts.kind,
    }  # fmt: skip
    row = row.model_copy(update=changes)
    verdict, reasons = _verdict(row, dataset, facts.warnings)
    use = "no" if verdict == "refused" else row.use
    return row.model_copy(update={"verdict": verdict, "reason": "; ".join(reasons), "use": use})


def _verdict(
    row: MicrographRow, dataset: MicrographDatasetSettings, warnings: Sequence[str]
) -> tuple[str, list[str]]:
    diameter = diameter_in_px(dataset, row)
    if diameter is None:
        return "refused", ["no pixel size in the file: give --pixel-size"]
    if diameter < LEAST_DIAMETER_PX:
        return "refused", [
            f"a particle is {diameter:.1f} pixels wide, less than {LEAST_DIAMETER_PX:g}: check "
            "pixel size and diameter"
        ]
    assert row.ny is not None
    assert row.nx is not None
    if min(row.ny, row.nx) < 2 * diameter:
        return "refused", [
            f"a particle is {diameter:.0f} pixels wide and the micrograph {row.nx} x {row.ny}: "
            "check pixel size and diameter"
        ]
    reasons = list(warnings)
    own, given = row.pixel_size_angstrom, dataset.pixel_size_angstrom
    if own and given and abs(own / given - 1) > 0.01:
        reasons.append(f"the header says {own:g} A a pixel, the data set {given:g}, which is used")
    if diameter < EXTENT_PX / 1.5:
        reasons.append(f"a particle is only {diameter:.1f} pixels wide; small ones are missed")
    return ("warning" if reasons else "ok"), reasons


def _beside(root: Path, path: Path, endings: Sequence[str]) -> str:
    found = (path.with_name(_stem(path) + ending) for ending in endings)
    return next((_written(root, file) for file in found if file.is_file()), "")


def _stem(path: Path) -> str:
    ending = next((e for e in MRC_SUFFIXES[::-1] if path.name.lower().endswith(e)), path.suffix)
    return path.name[: len(path.name) - len(ending)]


def _absolute(root: Path, path: str | Path) -> Path:
    return Path(os.path.normpath(root.resolve() / path))


def _written(root: Path, path: Path) -> str:
    base = root.resolve()
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path)
