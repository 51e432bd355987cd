"""`tomoline review`: picks of a data set that a person should look at, with pictures.

Written to results/<dataset>/review/: review.csv to fill in, review.html with pictures and buttons,
a copick project, a README, and asked.csv, the notes of what was ever asked, by which `tomoline
adopt` knows its picks again after further runs. Which picks: `tomoline.evaluation.questions`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tomoline.contracts import EXPECTED_PRECISION, VolumeTransform
from tomoline.errors import InputError
from tomoline.evaluation.questions import RANDOM_SHARE, choose, cut_between
from tomoline.export.copick import write_review as write_copick
from tomoline.export.dialect import TomogramParticles
from tomoline.export.geometry import TomogramGeometry
from tomoline.io.annotations import PLACE_COLUMNS
from tomoline.io.atomic import write_text
from tomoline.io.mrc import open_volume
from tomoline.io.reviews import README, REVIEW_COLUMNS, cells_of, read_review, write_review
from tomoline.io.sheet import DATASETS_FOLDER, SheetRow, labels_file, load_dataset
from tomoline.io.tables import (
    ACCEPTED,
    probability_columns,
    read_particles,
    table_classes,
)
from tomoline.ops.patches import cut_patches
from tomoline.ops.votes import BACKGROUND_LIKE
from tomoline.report.contact import Shown, contact_sheet, three_views
from tomoline.settings import DatasetSettings
from tomoline.stages.checks import is_run
from tomoline.stages.labels import labels_of, same_place_vox

EDGE_ANGSTROM = 440.0  # of a picture: a ribosome and a third more to each side
ASKED, SHEET, TABLE = "asked.csv", "review.html", "review.csv"
ASKED_COLUMNS = ["tomogram", "particle_id", *PLACE_COLUMNS]


@dataclass(frozen=True, kw_only=True)
class Review:
    """What was written: the folder, the rows of review.csv, and tomograms that are not finished."""

    dataset: str
    folder: Path
    table: pd.DataFrame
    unfinished: tuple[str, ...]
    decided: int


@dataclass(frozen=True, kw_only=True)
class _Done:
    """A finished tomogram: its row of the sheet, table of candidates, and results' folder."""

    row: SheetRow
    particles: pd.DataFrame
    folder: Path


def review(
    dataset: str,
    *,
    project: str | Path = ".",
    number: int = 100,
    folder: Path | None = None,
    seed: int = 1,
    random_share: float = RANDOM_SHARE,
) -> Review:
    """Choose picks over all finished tomograms and write them.

    Picks that a person has decided about already are not asked again. The same results give the
    same review.

    Raises
    ------
    InputError
        An unknown data set, no finished tomogram, nothing left to ask, or a tomogram whose prepared
        volume is no longer there.
    """
    project = Path(project)
    settings, rows = load_dataset(dataset, folder=project / DATASETS_FOLDER)
    results = project / "results" / dataset
    done, unfinished = _finished(rows, results)
    if not done:
        raise InputError(
            results, expected="a tomogram with particles.csv", found="none",
            remedy=f"run the workflow first: snakemake --config datasets='[{dataset}]'",
        )  # fmt: skip
    whole = pd.concat([_pool(one) for one in done], ignore_index=True)
    known = _decided(whole, dataset, project)
    pool = whole[~known]
    if not len(pool):
        raise InputError(
            results, expected="candidates that nobody has decided about",
            found=f"{len(whole)} candidates, all decided" if len(whole) else "no candidates",
            remedy="nothing is left to ask here",
        )  # fmt: skip
    calibrated = bool(whole["calibrated"].all())
    cut = cut_between(
        whole["probability"].to_numpy(float), whole["accepted"].to_numpy(bool),
        whole["sifted"].to_numpy(bool), calibrated=calibrated,
    )  # fmt: skip
    chosen = choose(pool, number, cut=cut, seed=seed, random_share=random_share)
    table = _numbered(chosen)
    place = folder or results / "review"
    classes = list(dict.fromkeys(name for one in done for name in table_classes(one.particles)))
    place.mkdir(parents=True, exist_ok=True)
    _refuse_to_lose(place / TABLE, whole, dataset, project)
    picks, edge_nm = _pictures(table, done)
    write_text(
        place / SHEET,
        contact_sheet(picks, columns=REVIEW_COLUMNS, classes=classes, dataset=dataset,
                      edge_nm=edge_nm),
    )  # fmt: skip
    write_copick(list(_projects(chosen, done, settings)), place / "copick")
    listed = ", ".join(classes) or "a class"
    text = README.format(count=len(table), dataset=dataset, classes=listed)
    write_text(place / "README.txt", text)
    for notes in dict.fromkeys((place, results / "review")):  # adopt looks here whatever the folder
        _note(notes / ASKED, table)
    write_review(place / TABLE, table)  # last, as the mark that all is there
    return Review(
        dataset=dataset, folder=place, table=table, unfinished=unfinished, decided=int(known.sum())
    )


def format_review(done: Review) -> str:
    """Say for people what was chosen and what to do with it."""
    reasons = done.table["why"].value_counts().sort_index()
    kinds = ", ".join(f"{count} {why}" for why, count in reasons.items())
    lines = [f"{len(done.table)} picks of {done.table['tomogram'].nunique()} tomograms: {kinds}"]
    if done.decided:
        lines.append(f"{done.decided} candidates were decided before and are not asked again")
    if done.unfinished:
        lines.append(f"not finished, left out: {', '.join(done.unfinished)}")
    lines += [
        f"  {done.folder / SHEET}   open it in a browser and decide",
        f"  {done.folder / TABLE}   or fill in the column `decision`",
        f"  {done.folder / 'copick'}   or look in ChimeraX or napari",
        f"Then: tomoline adopt {done.dataset} review.csv",
    ]
    return "\n".join(lines) + "\n"


def _finished(rows: Sequence[SheetRow], results: Path) -> tuple[list[_Done], tuple[str, ...]]:
    done, unfinished = [], []
    for row in filter(is_run, rows):
        folder = results / row.tomogram
        if (folder / "particles.csv").is_file() and (folder / "prepared.json").is_file():
            table = read_particles(folder / "particles.csv")
            done.append(_Done(row=row, particles=table, folder=folder))
        else:
            unfinished.append(row.tomogram)
    return done, tuple(unfinished)


def _pool(one: _Done) -> pd.DataFrame:
    """A tomogram's candidates in the words of `questions.choose`."""
    table = one.particles
    classes = table_classes(table)
    p = table[probability_columns(classes)].to_numpy(float).reshape(len(table), len(classes))
    best = np.array([classes[k] for k in p.argmax(1)], object) if len(p) else np.empty(0, object)
    accepted = (table["status"] == ACCEPTED).to_numpy(bool)
    proposed = np.where(accepted, table["class"], np.where(p.sum(1) > 0, best, ""))
    column = EXPECTED_PRECISION if EXPECTED_PRECISION in table else "score"
    return pd.DataFrame({
        "tomogram": one.row.tomogram, "particle_id": table["particle_id"],
        **{name: table[name] for name in PLACE_COLUMNS}, "status": table["status"],
        "accepted": accepted, "sifted": (table["reason"] == BACKGROUND_LIKE).to_numpy(bool),
        "proposed": proposed, "probability": table[column], "margin": table["margin"],
        "calibrated": EXPECTED_PRECISION in table, "voxel": table["voxel_size_angstrom"],
    })  # fmt: skip


def _decided(pool: pd.DataFrame, dataset: str, project: Path) -> NDArray[np.bool_]:
    """Which candidates lie at a label of any kind."""
    known = np.zeros(len(pool), bool)
    for tomogram, part in pool.groupby("tomogram"):
        file = labels_file(dataset, str(tomogram), folder=project / DATASETS_FOLDER)
        labels = labels_of(file)
        if not len(labels):
            continue
        near = same_place_vox(float(part["voxel"].iloc[0]))
        tree = cKDTree(labels[PLACE_COLUMNS].to_numpy(float))
        distance, _ = tree.query(part[PLACE_COLUMNS].to_numpy(float))
        known[part.index.to_numpy()] = distance <= near
    return known


def _numbered(chosen: pd.DataFrame) -> pd.DataFrame:
    table = chosen.rename(columns={"proposed": "class", "probability": "score"})
    table["number"] = np.arange(1, len(table) + 1)
    table["decision"] = ""
    return table[list(REVIEW_COLUMNS)]


def _refuse_to_lose(path: Path, pool: pd.DataFrame, dataset: str, project: Path) -> None:
    """Leave a review alone that somebody has filled in and that was not adopted."""
    if not path.is_file():
        return
    table = read_review(path)
    filled = table[table["decision"] != ""].reset_index(drop=True)
    voxel = dict(zip(pool["tomogram"], pool["voxel"], strict=True))
    filled["voxel"] = [voxel.get(name, 1.0) for name in filled["tomogram"]]
    lost = int((~_decided(filled, dataset, project)).sum())
    if lost:
        raise InputError(
            path, expected="a review whose decisions were adopted", found=f"{lost} that were not",
            remedy=f"tomoline adopt {dataset} {path}, or give another --output",
        )  # fmt: skip


def _pictures(table: pd.DataFrame, done: Sequence[_Done]) -> tuple[list[Shown], float]:
    """The rows with their pictures, and the pictures' edge in nm."""
    jpegs: dict[int, bytes] = {}
    edge_nm = EDGE_ANGSTROM / 10
    for one in done:
        own = table[table["tomogram"] == one.row.tomogram]
        if not len(own):
            continue
        volume = one.folder / "prepared.mrc"
        if not volume.is_file():
            raise InputError(
                volume, expected="the prepared volume, for the pictures", found="no such file",
                remedy="add `prepared` to `keep` in config.yaml and run the workflow again",
            )  # fmt: skip
        transform = VolumeTransform.load(one.folder / "prepared.json")
        size = transform.prepared_voxel_size_angstrom
        edge = max(round(EDGE_ANGSTROM / size), 8)
        edge_nm = edge * size / 10
        places = transform.to_prepared(own[PLACE_COLUMNS].to_numpy(float))
        patches = cut_patches(open_volume(volume), places, box_vox=edge, fill=0.0)
        for number, patch in zip(own["number"], patches, strict=True):
            jpegs[int(number)] = three_views(patch.values, size)
    return [
        Shown(cells=tuple(cells_of(row)), jpeg=jpegs[int(row["number"])])
        for _, row in table.iterrows()
    ], edge_nm


def _projects(
    chosen: pd.DataFrame, done: Sequence[_Done], dataset: DatasetSettings
) -> Iterator[TomogramParticles]:
    """The chosen picks of each tomogram, with the class proposed, for copick."""
    for one in done:
        own = chosen[chosen["tomogram"] == one.row.tomogram]
        rows = one.particles[one.particles["particle_id"].isin(own["particle_id"])].copy()
        proposed = dict(zip(own["particle_id"], own["proposed"], strict=True))
        rows["class"] = [proposed[number] for number in rows["particle_id"]]
        transform = VolumeTransform.load(one.folder / "prepared.json")
        yield TomogramParticles(
            tilt_series=one.row.tilt_series,
            particles=rows.reset_index(drop=True),
            geometry=TomogramGeometry.of(transform, dataset),
            dataset=dataset,
        )


def read_asked(path: Path) -> pd.DataFrame:
    """Read the notes of what was asked; InputError where the file is none."""
    try:
        # Names such as `NA` are names.
        own = pd.read_csv(path, dtype={"tomogram": str}, keep_default_na=False)
        return own[ASKED_COLUMNS].astype(
            {"particle_id": int, **dict.fromkeys(PLACE_COLUMNS, float)}
        )
    except (ValueError, KeyError) as error:
        raise InputError(
            path, expected="the program's notes of picks that were asked about", found=str(error),
            remedy="delete the file; picks of the last run are known without it",
        ) from error  # fmt: skip


def _note(path: Path, table: pd.DataFrame) -> None:
    """Add what is asked to the notes of what ever was."""
    new = table[ASKED_COLUMNS].round(3)
    if path.is_file():
        new = pd.concat([read_asked(path), new]).drop_duplicates()
    text = new.to_csv(index=False, float_format="%.3f", lineterminator="\n")
    write_text(path, text)
