"""Tomograms with labels as fine-tuning takes them: what is learnt of each, and what is held out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tomoline.contracts import VolumeTransform
from tomoline.errors import InputError
from tomoline.evaluation.held_out import HIT_DISTANCE_VOX, Held
from tomoline.evaluation.matching import match_one_to_one
from tomoline.io.annotations import NO, PLACE_COLUMNS, RADIUS_COLUMN, UNSURE, YES
from tomoline.io.tables import ACCEPTED, read_candidates
from tomoline.networks.cards import ModelCard
from tomoline.settings import FinetuneSettings
from tomoline.simulation.densities import Density
from tomoline.stages.confidence import NO_PARTICLES, Found, Known
from tomoline.stages.extract import CENTRE_COLUMNS
from tomoline.training.points import Points

DEFAULT_RADIUS_VOX = 6.0  # of particles that only boxes are cut about
BESIDE_VOX = 4.5  # nearer to a particle a place shows it (`SubtomogramOptions.hit_vox`)


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """One tomogram: its prepared volume, candidates of the run, and labels learnt and held out.

    `held_from` is the first y (prepared voxels) of the part that is held out; 0: all, infinite:
    nothing. `truth` are the true particles held out, where the sheet names a complete list.
    `known (k, 3)` are all places that labels or the truth know, on both sides.
    """

    name: str
    volume: NDArray[Any]
    candidates: NDArray[np.float64]
    score: NDArray[np.float64]
    size_vox: NDArray[np.int64]
    contrast: NDArray[np.float64]
    learnt: Points
    held: Held
    held_from: float
    truth: Held | None
    known: NDArray[np.float64]

    @property
    def learnt_volume(self) -> NDArray[Any]:
        """The part that is learnt. What is cut from it sees the border as a face, so that nothing
        of the other part is learnt."""
        rows = self.volume.shape[1]
        return self.volume[:, : int(min(np.ceil(self.held_from), rows))]

    def is_held(self, centres: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which candidates `(n, 3)` are held out: those of particles that are, else those that lie
        in that part. A hit is not on the other side of the border from its particle."""
        hit = match_one_to_one(centres, self.known, HIT_DISTANCE_VOX).true_of_prediction
        places = np.where((hit >= 0)[:, None], self.known[hit], centres) if len(hit) and len(
            self.known) else centres  # fmt: skip
        return np.asarray(places[:, 1] >= self.held_from)

    def found(self, chosen: NDArray[np.bool_]) -> Found:
        """Some of its candidates, as the classifier's votes take them."""
        return found_of(self.volume, self.candidates[chosen], self.score[chosen],
                        self.size_vox[chosen], self.contrast[chosen])  # fmt: skip


def found_of(
    volume: NDArray[Any], centres: NDArray[np.float64], score: NDArray[np.float64],
    size_vox: NDArray[np.int64], contrast: NDArray[np.float64],
) -> Found:  # fmt: skip
    """Candidates of a volume as the votes take them; what they hit is not asked."""
    known = Known(name="", volume=volume, centres_zyx=np.empty((0, 3)), classes=[])
    return Found(known=known, statistics={}, centres=centres, score=score, size_vox=size_vox,
                 contrast=contrast, true=np.full(len(centres), -1))  # fmt: skip


def classes_of(card: ModelCard, tables: Iterable[pd.DataFrame]) -> list[str]:
    """The model's classes, and behind them those that only labels know, sorted."""
    known = {name.casefold() for name in card.classes}
    new: dict[str, str] = {}
    for table in tables:
        for name in table.loc[table["verdict"] == YES, "class"]:
            if name and name.casefold() not in known:
                new.setdefault(str(name).casefold(), str(name))
    return [*card.classes, *(new[key] for key in sorted(new))]


def radii_of(
    classes: Sequence[str], settings: FinetuneSettings,
    density_of: Callable[[str], Density | None], *, need: bool,
) -> dict[str, float]:  # fmt: skip
    """Radius of each class (in small letters) in angstrom, as far as it is known beside the labels;
    where none is needed, one that serves."""
    radii = {}
    given = {name.casefold(): radius for name, radius in settings.radius_angstrom.items()}
    for name in classes:
        density = density_of(name)
        if name.casefold() in given:
            radii[name.casefold()] = given[name.casefold()]
        elif density is not None:
            radii[name.casefold()] = 10 * density.radius_vox
        elif not need:
            radii[name.casefold()] = 10 * DEFAULT_RADIUS_VOX
    return radii


@dataclass(frozen=True, kw_only=True)
class Given:
    """A tomogram's files: its labels, how its prepared volume lies, that volume and candidates.csv;
    and its complete truth, where the sheet names one."""

    name: str
    table: pd.DataFrame
    transform: VolumeTransform
    volume: NDArray[Any]
    candidates: str | Path
    truth: Held | None


def labelled(
    given: Given, *, classes: list[str], radii: Mapping[str, float], settings: FinetuneSettings
) -> Labelled:
    """Divide a tomogram's labels into those that are learnt and those that are held out.

    By their centres. What is said to be none, but lies at a particle that is labelled, is left
    out: it would teach both.

    Raises
    ------
    InputError
        If a label lies outside the tomogram, or has no radius where one is needed.
    """
    table, transform, name, truth = given.table, given.transform, given.name, given.truth
    volume = given.volume
    places = transform.to_prepared(table[PLACE_COLUMNS].to_numpy(float))
    _check_inside(table, transform, name)
    if settings.held_out:
        held_from = 0.0 if name in settings.held_out else np.inf
    else:
        part = settings.held_out_part
        held_from = (1 - part) * volume.shape[1] if part else np.inf
    held = places[:, 1] >= held_from
    verdict, named = table["verdict"].to_numpy(), table["class"].astype(str).to_numpy()
    spelling = {own.casefold(): k for k, own in enumerate(classes)}
    none = verdict == NO
    near = match_one_to_one(places[none], places[verdict == YES], BESIDE_VOX)
    none[np.flatnonzero(none)[near.true_of_prediction >= 0]] = False
    yes = (verdict == YES) & ~held
    points = Points(
        centres=places[yes],
        labels=np.array([spelling.get(n.casefold(), -1) if n else -1 for n in named[yes]],
                        np.int64),
        radii=_radius_vox(table[yes], transform, radii, name),
        negatives=places[none & ~held],
        unsure=places[(verdict == UNSURE) & ~held],
        complete=settings.labels == "complete",
    )  # fmt: skip
    run_of = read_candidates(given.candidates)
    run_of = run_of[run_of["status"] == ACCEPTED]
    yes_held = (verdict == YES) & held
    known = places[verdict != UNSURE]
    if truth is not None:
        known = np.concatenate([known, truth.centres])
        own = truth.centres[:, 1] >= held_from
        kept = [n for n, keep in zip(truth.names, own, strict=True) if keep]
        truth = replace(truth, centres=truth.centres[own], names=kept)
    return Labelled(
        name=name, volume=volume, candidates=run_of[CENTRE_COLUMNS].to_numpy(float),
        score=run_of["score"].to_numpy(float), size_vox=run_of["size_vox"].to_numpy(np.int64),
        contrast=run_of["contrast"].to_numpy(float),
        learnt=points, held_from=float(held_from), truth=truth, known=known,
        held=Held(centres=places[yes_held], names=list(named[yes_held]),
                  negatives=places[none & held]),
    )  # fmt: skip


def _check_inside(table: pd.DataFrame, transform: VolumeTransform, name: str) -> None:
    """Files are written by hand too."""
    given = table[PLACE_COLUMNS].to_numpy(float)
    outside = ((given < -1) | (given > transform.given_shape_zyx)).any(1)
    if outside.any():
        n = int(np.flatnonzero(outside)[0])
        raise InputError(
            f"labels of {name}", expected="places inside the tomogram of "
            f"{transform.given_shape_zyx[::-1]} voxels (x, y, z)",
            found=f"{int(outside.sum())} of {len(table)} outside; id {table['id'].iloc[n]} is at "
            f"{tuple(np.round(given[n, ::-1], 1).tolist())}",
            remedy="correct or import them again; check the dialect and the voxel size",
        )  # fmt: skip


def _radius_vox(
    table: pd.DataFrame, transform: VolumeTransform, radii: Mapping[str, float], name: str
) -> NDArray[np.float64]:
    """Radius of each label in prepared voxels: the file's, else the class's."""
    own = np.full(len(table), np.nan)
    if RADIUS_COLUMN in table:
        own = table[RADIUS_COLUMN].to_numpy(float) / float(np.mean(transform.scale_zyx))
    size = transform.prepared_voxel_size_angstrom
    classes = [str(n).casefold() for n in table["class"]]
    usual = float(np.median(list(radii.values()))) if radii else np.nan
    of_class = np.array([radii.get(n, np.nan if n else usual) for n in classes], float) / size
    found: NDArray[np.float64] = np.where(np.isfinite(own), own, of_class)
    if not np.isfinite(found).all():
        missing = sorted({str(n) for n, r in zip(table["class"], found, strict=True)
                          if not np.isfinite(r)})  # fmt: skip
        raise InputError(
            f"labels of {name}", expected="a radius of each particle",
            found=f"none for {', '.join(missing)}",
            remedy="give `tomoline import --radius`, or finetune.radius_angstrom: "
            f"{{{missing[0]}: 100}}",
        )  # fmt: skip
    return found


def truth_of(table: pd.DataFrame, transform: VolumeTransform) -> Held:
    """A tomogram's complete truth."""
    table = table[~table["class"].str.casefold().isin(NO_PARTICLES)]
    places = transform.to_prepared(table[PLACE_COLUMNS].to_numpy(float))
    return Held(centres=places, names=list(table["class"]), negatives=np.empty((0, 3)))


def check_learnt(labelled: Sequence[Labelled], settings: FinetuneSettings) -> None:
    unknown = [name for name in settings.held_out if name not in {one.name for one in labelled}]
    count = sum(int((one.learnt.labels > 0).sum()) for one in labelled)
    if unknown or not count:
        labels = sum(len(one.held.centres) for one in labelled)
        raise InputError(
            "finetune", expected="labels of particles with a class, some of them not held out, and "
            f"held_out among {', '.join(one.name for one in labelled)}",
            found=f"held_out: {', '.join(unknown)}" if unknown else f"{labels} labels held out and "
            "none to learn",
            remedy="correct finetune.held_out or held_out_part, or label more: tomoline import, or "
            "tomoline review and adopt",
        )  # fmt: skip
