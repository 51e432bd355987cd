"""`tomoline adopt`: what a person decided about picks becomes labels of the data set.

Every row is checked before anything is written. `yes` and names of classes become particles, `no`
becomes a place where none is, which fine-tuning needs as much, and `unsure` is kept so that it is
not asked again and not learnt from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pandas as pd

from tomoline.contracts import BACKGROUND
from tomoline.errors import InputError
from tomoline.evaluation.questions import RANDOM, Share
from tomoline.io.annotations import (
    NO,
    PLACE_COLUMNS,
    UNSURE,
    YES,
    annotation_table,
    label_table,
    write_labels,
)
from tomoline.io.reviews import read_review
from tomoline.io.sheet import DATASETS_FOLDER, labels_file, load_dataset
from tomoline.io.tables import read_particles, table_classes
from tomoline.stages.importing import geometry_of
from tomoline.stages.labels import (
    Changes,
    check_class_names,
    joined,
    labels_of,
    same_place_vox,
)
from tomoline.stages.review import ASKED, ASKED_COLUMNS, read_asked

SAME_PICK_VOX = 0.05  # what rounding in a table may move a place
MOST_FAULTS = 10  # named in one message


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """What changed in each tomogram's file, and what the picks drawn at random say.

    `particles` is the share of the accepted ones that are particles, `lost` that of the rejected.
    """

    changes: dict[str, Changes]
    files: dict[str, Path]
    empty: int
    decisions: dict[str, int]
    particles: Share
    lost: Share


def adopt(
    dataset: str,
    path: Path,
    *,
    project: str | Path = ".",
    new_classes: Sequence[str] = (),
) -> Adopted:
    """Check a filled-in review and join it to the labels.

    Parameters
    ----------
    new_classes:
        Classes that decisions may name beside those of the models and the labels, so that a
        misspelt name makes no class.

    Raises
    ------
    InputError
        Naming rows and remedy: a tomogram that the data set has not, a pick that was never asked or
        found, a decision that is none, or one pick with two decisions. Nothing is written then.
    """
    project = Path(project)
    folder = project / DATASETS_FOLDER
    settings, rows = load_dataset(dataset, folder=folder)
    check_class_names(new_classes, "--new-class")
    table = read_review(path)
    sheet = {row.tomogram: row for row in rows}
    found = _tables(project / "results" / dataset, sheet)
    labels = [labels_of(labels_file(dataset, name, folder=folder)) for name in sheet]
    known = _known_classes(found.values(), labels, table["class"], new_classes)
    asked = _asked(project, dataset, path)
    picks = {name: _picks(asked[asked["tomogram"] == name], found.get(name)) for name in sheet}
    faults, verdicts = [], []
    for _, row in table.iterrows():
        verdict, fault = _verdict(row, known)
        fault = fault or (_unknown_pick(row, picks) if row["decision"] else "")
        verdicts.append(verdict)
        faults += [f"line {row['line']}: {fault}"] if fault else []
    table["verdict"] = [verdict for verdict, _ in verdicts]
    table["named"] = [name for _, name in verdicts]
    given = table[table["verdict"] != ""]
    faults += _twice(given)
    if faults:
        _refuse(path, faults, known)
    changes, files, whole = {}, {}, {}
    for tomogram, own in given.groupby("tomogram", sort=False):
        name = str(tomogram)
        geometry = geometry_of(sheet[name], settings)
        files[name] = labels_file(dataset, name, folder=folder)
        new = annotation_table(own[PLACE_COLUMNS].to_numpy(float), list(own["named"]))
        new = label_table(new.assign(verdict=list(own["verdict"])), source="review")
        within = same_place_vox(geometry.voxel_size_angstrom)
        whole[name], changes[name] = joined(labels_of(files[name]), new, within_vox=within)
    for name, labels_now in whole.items():  # when all are known to be good
        if changes[name].added or changes[name].replaced:
            write_labels(files[name], labels_now)
    return Adopted(
        changes=changes, files=files, empty=int((table["decision"] == "").sum()),
        decisions={str(k): int(n) for k, n in given["verdict"].value_counts().items()},
        particles=_share(given, "accepted"), lost=_share(given, "rejected"),
    )  # fmt: skip


def format_adopted(done: Adopted) -> str:
    """Say for people what was taken, what it replaced, and what the fair sample says."""
    words = {YES: "particles", NO: "no particle", UNSURE: "unsure"}
    counts = ", ".join(f"{done.decisions[v]} {words[v]}" for v in words if v in done.decisions)
    lines = [f"decisions: {counts or 'none'}"]
    for tomogram, change in done.changes.items():
        lines.append(f"{tomogram}: {change.added} new, {len(change.replaced)} changed, "
                     f"{change.unchanged} known already -> {done.files[tomogram]}")  # fmt: skip
        lines += [f"  replaced: {text}" for text in change.replaced]
    if done.empty:
        lines.append(f"{done.empty} rows have no decision and were left out")
    for share, what in ((done.particles, "accepted picks are particles"),
                        (done.lost, "rejected candidates are particles")):  # fmt: skip
        if share.count:
            low, high = share.interval
            lines.append(f"drawn at random: {share.right} of {share.count} {what} "
                         f"({share.value:.0%}; 95 % interval {low:.0%} to {high:.0%})")  # fmt: skip
    return "\n".join(lines) + "\n"


def _verdict(row: pd.Series, known: Mapping[str, str]) -> tuple[tuple[str, str], str]:
    """(verdict, class) of a row and what is wrong with it; empty where nothing was decided."""
    said = str(row["decision"])
    word = said.casefold()
    if not said:
        return ("", ""), ""
    if word in (NO, BACKGROUND):
        return (NO, ""), ""
    if word == UNSURE:
        return (UNSURE, ""), ""
    if word == YES:  # a particle of an unknown class is known to be a particle all the same
        return (YES, str(row["class"])), ""
    if word in known:
        return (YES, known[word]), ""
    near = get_close_matches(word, [*known, YES, NO, UNSURE], n=1)
    hint = f", did you mean {known.get(near[0], near[0])}?" if near else ""
    return ("", ""), f"decision {said!r} is no known class{hint}"


def _tables(results: Path, tomograms: Iterable[str]) -> dict[str, pd.DataFrame]:
    """The particle tables of the tomograms that are finished."""
    files = {name: results / name / "particles.csv" for name in tomograms}
    return {name: read_particles(file) for name, file in files.items() if file.is_file()}


def _known_classes(
    found: Iterable[pd.DataFrame],
    labels: Iterable[pd.DataFrame],
    proposed: Iterable[str],
    new_classes: Sequence[str],
) -> dict[str, str]:
    """Classes of the results, the labels and the user, by their names in small letters."""
    names = list(new_classes)
    for table in found:
        names += table_classes(table)
    for table in labels:
        names += [str(name) for name in table["class"]]
    names += [name for name in proposed if name]
    return {name.casefold(): name for name in reversed(names) if name}


def _asked(project: Path, dataset: str, path: Path) -> pd.DataFrame:
    """Picks of this and earlier reviews."""
    places = [project / "results" / dataset / "review" / ASKED, path.parent / ASKED]
    found = [read_asked(place) for place in dict.fromkeys(places) if place.is_file()]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=ASKED_COLUMNS)


def _picks(asked: pd.DataFrame, found: pd.DataFrame | None) -> dict[int, list[tuple[float, ...]]]:
    """Where the picks of a tomogram are or were, by their numbers."""
    picks: dict[int, list[tuple[float, ...]]] = {}
    for table in (asked, *([] if found is None else [found])):
        places = table[PLACE_COLUMNS].to_numpy(float)
        for number, place in zip(table["particle_id"], places, strict=True):
            picks.setdefault(int(number), []).append(tuple(place.tolist()))
    return picks


def _unknown_pick(
    row: pd.Series, picks: Mapping[str, Mapping[int, Sequence[tuple[float, ...]]]]
) -> str:
    """Why a row is of no pick of ours; empty where it is one."""
    tomogram, number = str(row["tomogram"]), int(row["particle_id"])
    if tomogram not in picks:
        near = get_close_matches(tomogram, list(picks), n=1)
        return f"no tomogram {tomogram!r}" + (f", did you mean {near[0]}?" if near else "")
    place = row[PLACE_COLUMNS].to_numpy(float)
    known = picks[tomogram].get(number)
    if not known:
        return f"{tomogram} has no particle {number}"
    if np.abs(np.array(known) - place).max(1).min() <= SAME_PICK_VOX:
        return ""
    return f"particle {number} of {tomogram} is not at {tuple(np.round(place[::-1], 1).tolist())}"


def _twice(given: pd.DataFrame) -> list[str]:
    """Picks that have two decisions which differ."""
    faults = []
    pick = ["tomogram", "particle_id", *PLACE_COLUMNS]
    for _, same in given[given.duplicated(pick, keep=False)].groupby(pick):
        if len(same[["verdict", "named"]].drop_duplicates()) > 1:
            lines = ", ".join(map(str, same["line"]))
            said = ", ".join(map(str, same["decision"]))
            faults.append(f"lines {lines}: one pick, and {said}")
    return faults


def _refuse(path: Path, faults: Sequence[str], known: Mapping[str, str]) -> None:
    shown = "; ".join(faults[:MOST_FAULTS])
    more = f"; and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
    names = ", ".join(sorted(known.values()))
    raise InputError(
        path,
        expected=f"picks that `tomoline review` asked about, with yes, no, unsure or one of the "
        f"classes {names or '(none known yet)'}",
        found=shown + more,
        remedy="correct these rows (nothing was taken); a class that is new is allowed with "
        "--new-class NAME",
    )


def _share(given: pd.DataFrame, status: str) -> Share:
    own = given[(given["why"] == RANDOM) & (given["status"] == status)]
    told = own[own["verdict"] != UNSURE]
    return Share(right=int((told["verdict"] == YES).sum()), count=len(told))
