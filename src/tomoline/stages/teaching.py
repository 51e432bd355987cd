"""Trained networks learn labels: what is cut out and drawn for that, and the training itself."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tomoline.evaluation.held_out import HIT_DISTANCE_VOX, NOT_MEASURABLE
from tomoline.evaluation.matching import match_one_to_one
from tomoline.infer import Runner, choose_device, make_runner, window_bytes
from tomoline.log import get_logger
from tomoline.networks.cards import ModelCard
from tomoline.networks.registry import build
from tomoline.networks.weights import load_network
from tomoline.ops.tiles import box, plan_tiles
from tomoline.ops.votes import Vote
from tomoline.settings import ClassifySettings, FinetuneSettings
from tomoline.simulation.densities import Density, known_densities, load_density
from tomoline.stages.confidence import votes_in
from tomoline.stages.labelled import DEFAULT_RADIUS_VOX, Labelled, found_of
from tomoline.training.data import SimulatedSource, TrainingVolume
from tomoline.training.loop import Recipe, Trainer
from tomoline.training.msdnet import MSDNetRecipe, MSDNetRecipeOptions
from tomoline.training.options import TrainOptions
from tomoline.training.points import (
    PointSource,
    background_places,
    point_volume,
    unknown_near,
)
from tomoline.training.subtomogram import (
    Candidates,
    SubtomogramOptions,
    candidates_of,
    cut_boxes,
    picked_candidates,
)
from tomoline.training.tuning import (
    Seen,
    Tuned,
    TuneOptions,
    TuneRecipe,
    extended,
    joined_seen,
    seen,
)

log = get_logger(__name__)

SEED = 1_500_000_000  # of simulated tomograms; no training and no calibration draws from there
SHAPE_ZYX = (80, 112, 112)  # of simulated tomograms
PART_VOX = 64  # edge of a tomogram's parts that are looked at, and learnt from by voxels
PARTS = 24  # of a tomogram in which background is looked for, at most
BACKGROUND_A_LABEL, MOST_BACKGROUND, LEAST_BACKGROUND = 2, 300, 40
SUSPECT = 0.1  # share of the labels of other classes that are named so: then the name means little
TILE_VOX = 96
WINDOW_VOX, WINDOWS = 48, 2  # of networks that name voxels: edge, and how many a step
REACH_VOX = 24  # how far beside a part a particle may lie that reaches into it


@dataclass(frozen=True, kw_only=True)
class Start:
    """A model to start from."""

    card: ModelCard
    folder: Path

    def state(self) -> dict[str, Tensor]:
        """Its weights."""
        return dict(load_network(self.folder)[1].state_dict())


class Teacher:
    """Teaches models and keeps what is to be told about it."""

    def __init__(self, settings: FinetuneSettings, densities: Path, work: Path) -> None:
        self.settings, self.densities, self.work = settings, densities, work
        self.device = choose_device(settings.device)
        self.notes: list[str] = []
        self.counts: dict[str, Any] = {}
        self.known_before: dict[str, Any] = {}
        self._simulated: tuple[list[str], list[TrainingVolume]] | None = None

    def density(self, name: str) -> Density | None:
        """The density of a class, where there is one of its name."""
        known = {own.casefold(): own for own in known_densities(self.densities)}
        own = known.get(name.casefold())
        return None if own is None else load_density(self.densities, own)

    def simulated(self, card: ModelCard) -> tuple[list[str], list[TrainingVolume]]:
        """Simulated tomograms of the classes that a model knows, as it was trained on, and the
        names of their labels 1, 2, ...; none where their share is 0 or no density is known."""
        if self._simulated is None:
            self._simulated = self._simulate(card)
        return self._simulated

    def _simulate(self, card: ModelCard) -> tuple[list[str], list[TrainingVolume]]:
        trained = card.training.get("classes") or []
        names = [name for name in trained or card.classes[1:] if self.density(name) is not None]
        if not self.settings.simulated_share or not names:
            self.notes.append("no simulated particles were mixed in, so what is not labelled may "
                              "be forgotten")  # fmt: skip
            return [], []
        ranges = ("snr_range", "voxels_per_particle")
        given: dict[str, Any] = {k: tuple(card.training[k]) for k in ranges if card.training.get(k)}
        single = ("distractors", "misalignment_vox", "spectrum_jitter")
        given |= {key: card.training[key] for key in single if key in card.training}
        source = SimulatedSource(self.densities, names, shape_zyx=SHAPE_ZYX, seed=0, **given)
        first = SEED + 10_000 * self.settings.seed
        log.info("simulating %d tomograms", self.settings.simulated_tomograms)
        numbers = range(first, first + self.settings.simulated_tomograms)
        return names, [source.tomogram(number) for number in numbers]

    def whole(
        self, start: Start, classes: list[str], labelled: Sequence[Labelled],
        votes: Sequence[Sequence[Vote | None]], finder: Runner,
    ) -> tuple[ModelCard, dict[str, Tensor]]:  # fmt: skip
        """Teach a classifier of whole subtomograms."""
        s, card = self.settings, start.card
        assert card.box_vox is not None
        parameters = {**card.parameters, "classes": len(classes)}
        network: Any = build(card.network, parameters)
        network.load_state_dict(extended(start.state(), len(classes) - len(card.classes)))
        how = SubtomogramOptions(box_vox=card.box_vox)
        rng = np.random.default_rng([s.seed, 21])
        look: Callable[..., Seen] = lambda boxes: seen(  # noqa: E731
            network, boxes.values, boxes.labels, s.layers, device=str(self.device)
        )
        suspects = _suspects(start, labelled, s)
        own, plain = [], []
        counts = {"labels": 0, "negatives": 0, "background": 0, "kept_names": 0}
        looked_at = hashlib.sha256()
        for one, vote in zip(labelled, votes, strict=True):
            if not one.learnt_volume.size:
                continue
            named = one.learnt.labels > 0
            known = Candidates(one.learnt.centres[named], one.learnt.labels[named])
            none = self._background(one, finder, how.hit_vox, rng)
            kept = _kept_names(one, vote, card, suspects, s)
            counts["labels"] += len(known.labels)
            counts["negatives"] += len(one.learnt.negatives)
            counts["background"] += len(none)
            counts["kept_names"] += len(kept.labels)
            bare = _bare(one.learnt_volume)
            straight = cut_boxes(bare, known, card.box_vox)
            looked_at.update(straight.values.tobytes())
            plain.append(look(straight))
            several = _together([known, _of_background(one.learnt.negatives)])
            once = _together([kept, _of_background(none)])
            for candidates, views in ((several, s.views), (once, max(s.views // 4, 1))):
                drawn = _off_centre(candidates, views, how, one, rng)
                own.append(look(cut_boxes(bare, drawn, card.box_vox, rng)))
        self.counts["classifier"] = counts
        replay, held_out = self._replay(card, how, look, rng)
        options = TuneOptions(
            classes=len(classes), batch_size=s.batch_size, steps_per_epoch=s.steps_per_epoch,
            simulated_share=s.simulated_share, device=str(self.device), seed=s.seed,
        )  # fmt: skip
        recipe = TuneRecipe(joined_seen(own), replay, options, plain=joined_seen(plain),
                            held_out=held_out)  # fmt: skip
        log.info("%s", ", ".join(f"{n} {k.replace('_', ' ')}" for k, n in counts.items()))
        tuned = Tuned(network, s.layers).to(self.device)
        first = recipe.validate(tuned.eval())
        state = self._trained(tuned, recipe, start, classes, labelled, looked_at)
        tuned.load_state_dict(state)
        self._tell_forgotten(first, recipe.validate(tuned.eval()), held_out)
        state = {key.removeprefix("network."): value for key, value in state.items()}
        return self._card(start, classes, parameters), state

    def _tell_forgotten(
        self, before: dict[str, float], after: dict[str, float], held_out: Seen | None
    ) -> None:
        """What became of the classes that were known, on simulated boxes that were not learnt."""
        if held_out is not None:
            self.known_before = {
                "boxes": int((held_out.labels > 0).sum()),
                "classes": len(np.unique(held_out.labels[held_out.labels > 0])),
                "before": round(before["simulated_accuracy"], 4),
                "after": round(after["simulated_accuracy"], 4),
            }

    def _replay(
        self, card: ModelCard, how: SubtomogramOptions, look: Callable[..., Seen],
        rng: np.random.Generator,
    ) -> tuple[Seen | None, Seen | None]:  # fmt: skip
        """Boxes of simulated tomograms to learn from, and of others to see that nothing is lost."""
        names, volumes = self.simulated(card)
        spelling = {name.casefold(): k for k, name in enumerate(card.classes)}
        parts = []
        for volume in volumes:
            picked = picked_candidates(volume, how, rng)
            drawn = candidates_of(volume, picked, how, rng)
            places = np.array([0, *(spelling[name.casefold()] for name in names)])
            named = replace(drawn, labels=places[drawn.labels])
            parts.append(look(cut_boxes(volume, named, how.box_vox, rng)))
        kept = len(parts) // 4
        if not parts:
            return None, None
        learnt, held = parts[: len(parts) - kept], parts[len(parts) - kept :]
        return joined_seen(learnt), joined_seen(held) if held else None

    def _background(
        self, one: Labelled, finder: Runner, hit_vox: float, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """Places in the learnt part of a tomogram where no particle can be."""
        s, learnt = self.settings, one.learnt
        wanted = int(np.clip(BACKGROUND_A_LABEL * len(learnt.centres), LEAST_BACKGROUND,
                             MOST_BACKGROUND))  # fmt: skip
        found: list[NDArray[np.float64]] = [np.empty((0, 3))]
        for _ in range(PARTS):
            if sum(map(len, found)) >= wanted:
                break
            low, high = _part(one, rng)
            if (high - low).min() < 8:
                break
            part = np.ascontiguousarray(one.volume[_slices(low, high)], np.float32)
            p = None if s.labels == "complete" else probability_of_part(finder, part)
            rim = np.where((low > 0) | (high < one.volume.shape), 8, 0).max()
            places = background_places(
                part, learnt.inside(low, high, margin=2 * hit_vox),
                probability=p, low_score=s.low_score, hit_vox=hit_vox, rim_vox=int(rim),
                number=24, rng=rng,
            )  # fmt: skip
            found.append(places + low)
        return np.concatenate(found)[:wanted]

    def voxels(
        self, start: Start, classes: list[str], labelled: Sequence[Labelled], finder: Runner
    ) -> tuple[ModelCard, dict[str, Tensor]]:
        """Teach a network that names voxels: a localizer, or a classifier with more classes."""
        s, card = self.settings, start.card
        parameters = {**card.parameters, "classes": len(classes)}
        network = build(card.network, parameters)
        network.load_state_dict(extended(start.state(), len(classes) - len(card.classes)))
        rng = np.random.default_rng([s.seed, 22])
        parts = [part for one in labelled for part in self._parts(one, finder, rng)]
        names, volumes = self.simulated(card)
        if card.role == "classifier":
            spelling = {name.casefold(): k for k, name in enumerate(classes)}
            places = np.array([0, *(spelling[name.casefold()] for name in names)], np.uint8)
            volumes = [replace(v, classes=places[v.classes], labels=places[v.labels].astype(int))
                       for v in volumes]  # fmt: skip
        source = PointSource(parts, volumes, simulated_share=s.simulated_share, seed=s.seed)
        device = str(self.device)
        assert card.role != "segmenter"
        options = MSDNetRecipeOptions(
            task=card.role, crop_vox=WINDOW_VOX, batch_size=WINDOWS,
            steps_per_epoch=s.steps_per_epoch, volumes_per_epoch=s.steps_per_epoch,
            centred=card.role == "classifier", device=device, seed=s.seed,
        )  # fmt: skip
        looked_at = hashlib.sha256()
        for part in parts:
            looked_at.update(part.volume.tobytes())
        radii = [self._effective_radius(k, name, labelled) for k, name in enumerate(classes) if k]
        recipe = MSDNetRecipe(source, radii, options)
        self.counts[card.role] = {"parts": len(parts), "simulated_tomograms": len(volumes)}
        state = self._trained(network.to(self.device), recipe, start, classes, labelled, looked_at)
        return self._card(start, classes, parameters), state

    def _parts(
        self, one: Labelled, finder: Runner, rng: np.random.Generator
    ) -> list[TrainingVolume]:
        """Cubes about labels, each label in one at least, with what is known there."""
        learnt, made = one.learnt, []
        left = list(rng.permutation(np.concatenate([learnt.centres, learnt.negatives])))
        while left:
            low, high = _cube(left[0], one)
            left = [c for c in left[1:] if not ((c >= low + 8) & (c < high - 8)).all()]
            part = np.ascontiguousarray(one.volume[_slices(low, high)], np.float32)
            p = None if self.settings.labels == "complete" else probability_of_part(finder, part)
            near = learnt.inside(low, high, margin=REACH_VOX)
            low_score = self.settings.low_score
            cut = point_volume(part, near, probability=p, low_score=low_score)
            made.append(unknown_near(cut, one.held_from - low[1], near))
        return made

    def _effective_radius(self, label: int, name: str, labelled: Sequence[Labelled]) -> float:
        density = self.density(name)
        if density is not None:
            return density.effective_radius_vox
        own = np.concatenate([one.learnt.radii[one.learnt.labels == label] for one in labelled])
        return float(np.median(own)) if len(own) else DEFAULT_RADIUS_VOX

    def _trained(
        self, network: torch.nn.Module, recipe: Recipe, start: Start, classes: list[str],
        labelled: Sequence[Labelled], looked_at: Any,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Train, or go on where a killed training of the same labels, settings and grey values
        (`looked_at`, their hash) was."""
        s = self.settings
        points = [(o.name, o.held_from, *(array.tolist() for array in (
            o.learnt.centres, o.learnt.labels, o.learnt.radii, o.learnt.negatives,
            o.learnt.unsure))) for o in labelled]  # fmt: skip
        looked_at.update(
            repr((start.card.weights_sha256, classes, s.model_dump(), points)).encode()
        )
        digest = looked_at.hexdigest()[:16]
        folder = self.work / start.card.role
        for old in folder.glob("*"):
            if old.name != digest:
                shutil.rmtree(old)  # of other labels or settings: not to be gone on with
        options = TrainOptions(
            learning_rate=s.learning_rate, schedule="cosine", max_epochs=s.epochs,
            warmup_epochs=0.5, patience=s.epochs, validate_every=max(s.epochs // 4, 1),
            average_decay=0.97,
        )  # fmt: skip
        trainer = Trainer(network, recipe, options, folder / digest)
        trainer.run()
        return trainer.best_weights()

    def _card(self, start: Start, classes: list[str], parameters: dict[str, Any]) -> ModelCard:
        """The card of what was learnt, but for what is measured afterwards."""
        card, s = start.card, self.settings
        new = classes[len(card.classes) :]
        said = f", and what {', '.join(new)} {'is' if len(new) == 1 else 'are'}," if new else ""
        origin = {
            "name": card.name, "weights_sha256": card.weights_sha256,
            "training": card.training.get("finetuned_from", {}).get("name", ""),
        }  # fmt: skip
        return changed(
            card, name=f"{s.name}-{card.role}", classes=list(classes), parameters=parameters,
            description=f"{card.name}, which was taught more{said} with labels of "
            f"{f'the data set {s.dataset}' if s.dataset else 'a data set'}. {card.description}",
            training={
                **card.training, "finetuned_from": origin, "finetune": s.model_dump(mode="json"),
                "finetune_labels": self.counts.get(card.role, {}),
            },
        )  # fmt: skip

    def report(
        self, labelled: Sequence[Labelled], card: ModelCard, *, complete: bool
    ) -> dict[str, Any]:
        """What is told of a fine-tuning, but for what was measured."""
        notes = [*self.notes]
        if not complete:
            notes.append(f"precision is {NOT_MEASURABLE}")
        return {
            "name": self.settings.name, "classes": card.classes[1:],
            "learnt": self.counts, "known_before": self.known_before,
            "tomograms": {
                one.name: {
                    "learnt": len(one.learnt.centres), "held_out": len(one.held.centres),
                    "negatives_learnt": len(one.learnt.negatives),
                    "negatives_held_out": len(one.held.negatives),
                    "measured_by": "truth" if one.truth is not None else "labels",
                }
                for one in labelled
            },
            "complete": complete, "notes": notes,
        }  # fmt: skip


def changed(card: ModelCard, **changes: Any) -> ModelCard:
    """A card with changes, through the checks of a card."""
    return ModelCard.model_validate({**card.model_dump(), **changes})


def _suspects(start: Start, labelled: Sequence[Labelled], settings: FinetuneSettings) -> set[int]:
    """Classes that the network gives to labels of other classes: their name tells little here."""
    runner = make_runner(start.folder, ClassifySettings(device=settings.device))
    named: list[tuple[int, int]] = []
    for one in labelled:
        own = one.learnt.labels > 0
        if not own.any():
            continue
        centres = one.learnt.centres[own]
        ones = np.ones(len(centres))
        found = found_of(one.learnt_volume, centres, ones, np.full(len(centres), 100), ones)
        votes = votes_in(runner, found)
        named += [(int(true), vote.label) for true, vote in zip(
            one.learnt.labels[own], votes, strict=True) if vote is not None]  # fmt: skip
    wrong = [guess for true, guess in named if guess != true]
    return {guess for guess in wrong if wrong.count(guess) >= SUSPECT * max(len(named), 1)}


def _kept_names(
    one: Labelled, votes: Sequence[Vote | None], card: ModelCard, suspects: set[int],
    settings: FinetuneSettings,
) -> Candidates:  # fmt: skip
    """Unlabelled candidates of the learnt part that the network is sure of, with its names.

    Without them all that it sees of these tomograms would be of the labelled classes, and it could
    tell those by the tomogram. At most as many of a class as there are labels.
    """
    rows: list[int] = []
    labels: list[int] = []
    far = one.learnt.distance(one.candidates) > 2 * HIT_DISTANCE_VOX
    far &= ~one.is_held(one.candidates)
    if len(one.learnt.negatives):
        pairs = match_one_to_one(one.candidates, one.learnt.negatives, HIT_DISTANCE_VOX)
        far &= pairs.true_of_prediction < 0
    most = max(len(one.learnt.labels), 1)
    order = sorted(range(len(votes)), key=lambda k: -_certainty(votes[k]))
    for k in order:
        vote = votes[k]
        if vote is None or not far[k] or settings.keep_named >= 1:
            continue
        sure = _certainty(vote) >= settings.keep_named and vote.label not in suspects
        if sure and labels.count(vote.label) < most:
            rows.append(k)
            labels.append(vote.label)
    return Candidates(one.candidates[rows], np.array(labels, np.int64))


def _certainty(vote: Vote | None) -> float:
    """The probability of the class named, background among the others."""
    if vote is None or not np.isfinite(vote.probabilities).all():
        return 0.0
    return float(vote.probabilities.max() * (1 - vote.background))


def _of_background(places: NDArray[np.float64]) -> Candidates:
    return Candidates(places.reshape(-1, 3), np.zeros(len(places), np.int64))


def _together(parts: Sequence[Candidates]) -> Candidates:
    return Candidates(np.concatenate([part.places for part in parts]),
                      np.concatenate([part.labels for part in parts]))  # fmt: skip


def _off_centre(
    candidates: Candidates, views: int, how: SubtomogramOptions, one: Labelled,
    rng: np.random.Generator,
) -> Candidates:  # fmt: skip
    """Each place several times, as far off as candidates are from their particles."""
    places = np.repeat(candidates.places, views, axis=0)
    limit = 2 * how.hit_vox / 3
    places = places + rng.normal(0, how.off_centre_vox, places.shape).clip(-limit, limit)
    highest = np.array(one.learnt_volume.shape) - 0.51
    return Candidates(places.clip(-0.49, highest), np.repeat(candidates.labels, views))


def _bare(volume: NDArray[Any]) -> TrainingVolume:
    """A volume that only boxes are cut from."""
    none = np.zeros((0, 0, 0))
    return TrainingVolume(
        volume, none.astype(np.uint8), none.astype(np.uint8), none.astype(np.uint16),
        np.empty((0, 3)), np.empty(0, np.int64),
    )  # fmt: skip


def _part(one: Labelled, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A random cube of the learnt part, half-open."""
    stop = np.array(one.volume.shape)
    stop[1] = int(min(stop[1], one.held_from))
    low = np.array([rng.integers(0, max(n - PART_VOX, 0) + 1) for n in stop])
    return low, np.minimum(low + PART_VOX, stop)


def _cube(
    centre: NDArray[np.float64], one: Labelled
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A cube about a label within the learnt part, half-open."""
    stop = np.array(one.volume.shape)
    stop[1] = int(min(stop[1], np.ceil(one.held_from)))
    low = np.clip(np.rint(centre).astype(int) - PART_VOX // 2, 0, np.maximum(stop - PART_VOX, 0))
    return low, np.minimum(low + PART_VOX, stop)


def _slices(low: NDArray[np.int64], high: NDArray[np.int64]) -> tuple[slice, ...]:
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def probability_of_part(runner: Runner, volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """The localizer's probability `(z, y, x)` of a part of a tomogram, window by window."""
    halo = runner.card.halo_vox or runner.card.receptive_field_vox // 2
    edge = max(TILE_VOX, 2 * halo + 32)
    plan = plan_tiles((volume.shape[0], volume.shape[1], volume.shape[2]), size_vox=edge,
                      halo_vox=halo)  # fmt: skip
    boxes = [box(tile.read_start, tile.read_stop) for tile in plan.tiles]
    whole = np.empty(volume.shape, np.float32)
    for tile, levels in zip(plan.tiles, window_bytes(runner, volume, boxes, halo=halo),
                            strict=True):  # fmt: skip
        own = levels[box(tile.keep_start, tile.keep_stop, origin=tile.read_start)]
        whole[box(tile.keep_start, tile.keep_stop)] = own / np.float32(255)
    return whole
