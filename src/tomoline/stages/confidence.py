"""What a model's probabilities and scores are worth, measured on tomograms with truth.

Fills a card's `temperature` and `sift` (classifier), `precision_curve` and `domain` (localizer);
weights, threshold and bandwidth stay. A training does it at its end on its validation tomograms,
`tomoline calibrate` at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from tomoline.errors import InputError
from tomoline.evaluation.calibration import (
    class_log_likelihood,
    expected_calibration_error,
    fit_precision,
    fit_temperature,
    left_out,
    reliability,
    tempered,
)
from tomoline.evaluation.domain import judge, ranges
from tomoline.evaluation.matching import match_one_to_one
from tomoline.evaluation.sifting import Evidence, best_cut, fit_weights, particle_probability
from tomoline.infer import Runner, batched, default_batch, make_runner
from tomoline.io.annotations import read_truth
from tomoline.io.mrc import open_volume, read_header
from tomoline.io.subtomograms import LabelledBoxes, NamedBoxes
from tomoline.log import get_logger
from tomoline.networks.cards import ModelCard, Sift, load_card, write_card
from tomoline.ops.clusters import find_clusters
from tomoline.ops.contrast import contrasts
from tomoline.ops.normalise import normalise
from tomoline.ops.patches import box_starts, cut_patches, volume_mean
from tomoline.ops.statistics import (
    byte_counts,
    candidate_statistics,
    grey_statistics,
    probability_statistics,
)
from tomoline.ops.votes import Vote
from tomoline.settings import ClassifySettings, ClusterSettings, SegmentSettings, VoteSettings
from tomoline.simulation.densities import SHREC_CLASSES
from tomoline.stages.cluster import reasons_of
from tomoline.stages.extract import CENTRE_COLUMNS
from tomoline.stages.vote import votes_of
from tomoline.training.data import SEEDS_A_TRAINING, SimulatedSource

log = get_logger(__name__)

HIT_DISTANCE_VOX = 5.0
# Below these numbers a fit would follow chance.
LEAST_PARTICLES, LEAST_CANDIDATES, LEAST_OF_EACH = 50, 50, 20
# Localizer's thresholds that a classifier which sifts is tried with.
SIFTED_FROM = (0.4, 0.5, 0.6, 0.7)
AS_GOOD = 0.002  # of F1
# SHREC lists these beside the particles; a pick on one is false.
NO_PARTICLES = ("vesicle", "fiducial")
SHAPE_ZYX = (96, 160, 160)
# Spectra differ in SNR, defocus and filter: so many show nearly all that there is.
MORE_TOMOGRAMS = 120


@dataclass(frozen=True, kw_only=True)
class Known:
    """A normalised tomogram `(z, y, x)`, particles dark, with true centres `(n, 3)` and classes."""

    name: str
    volume: NDArray[np.float32]
    centres_zyx: NDArray[np.float64]
    classes: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the localizer made of a known tomogram: its accepted candidates.

    `true` is the index of the true particle that each candidate `(n,)` hit, or -1.
    """

    known: Known
    statistics: dict[str, float]
    centres: NDArray[np.float64]
    score: NDArray[np.float64]
    size_vox: NDArray[np.int64]
    contrast: NDArray[np.float64]
    true: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Voted:
    """Voted probabilities `(n, C)` of the particles found in a tomogram, C without background.

    `named` and `label` are the class named and the true one, 0 for the first.
    """

    name: str
    probabilities: NDArray[np.float64]
    named: NDArray[np.int64]
    label: NDArray[np.int64]


def find_in(runner: Runner, known: Known) -> Found:
    """Run the localizer and the clustering as the line does with default settings."""
    assert runner.card.threshold is not None
    return found_at(runner.card, known, particle_probability_of(runner, known),
                    threshold=runner.card.threshold)  # fmt: skip


def particle_probability_of(runner: Runner, known: Known) -> NDArray[np.float32]:
    """The localizer's probability `(z, y, x)`, in steps of 1/255 as the segment stage keeps it."""
    x = torch.from_numpy(np.require(known.volume, np.float32, ["C", "W"]))[None, None]
    levels = runner.particle_bytes(x.to(runner.device))[0].cpu().numpy()
    return np.asarray(levels / np.float32(255))


def found_at(
    card: ModelCard, known: Known, probability: NDArray[np.float32], *, threshold: float
) -> Found:
    """Candidates of a localizer's probability at a threshold, by the line's default settings."""
    assert card.threshold is not None and card.bandwidth_vox is not None
    mask = probability >= threshold
    clusters = find_clusters(mask, probability, bandwidth_vox=card.bandwidth_vox)
    reasons = reasons_of(clusters, mask.shape, ClusterSettings())
    kept = np.array([not reason for reason in reasons], bool)
    centres, score, size = (a[kept] for a in (clusters.centres, clusters.score, clusters.size_vox))
    statistics = {
        **grey_statistics(known.volume),
        **probability_statistics(byte_counts(probability), card.threshold),
        **candidate_statistics(score, size, mask.size),
    }
    matching = match_one_to_one(centres, known.centres_zyx, HIT_DISTANCE_VOX)
    return Found(
        known=known, statistics=statistics, centres=centres, score=score, size_vox=size,
        contrast=contrasts(known.volume, centres), true=matching.true_of_prediction,
    )  # fmt: skip


def vote_on(runner: Runner, found: Found) -> Voted:
    """Classify the particles that were found, as the line does with default settings."""
    return voted(runner.card, found, votes_in(runner, found))


def votes_in(runner: Runner, found: Found) -> list[Vote | None]:
    """The votes on all candidates that were found."""
    centres, box, known = found.centres, runner.card.box_vox, found.known
    assert box is not None
    patches = cut_patches(known.volume, centres, box_vox=box, fill=volume_mean(known.volume))
    boxes = np.array([patch.values for patch in patches], np.float32).reshape(-1, box, box, box)
    batch = default_batch(runner, 0)
    results = [np.array(result) for result in batched(runner, boxes, batch_size=batch)]
    ids, inside = np.arange(1, len(centres) + 1), centres - box_starts(centres, box)
    judged: LabelledBoxes | NamedBoxes
    if runner.card.names_whole:
        shape = (-1, runner.flips, len(runner.card.classes))
        judged = NamedBoxes(
            views=np.array(results, np.float32).reshape(shape), candidate_id=ids,
            centre_zyx=inside, classes=list(runner.card.classes), box_vox=box,
        )  # fmt: skip
    else:
        judged = LabelledBoxes(
            labels=[result[0] for result in results],
            probabilities=[result[1:] for result in results],
            candidate_id=ids, centre_zyx=inside, classes=list(runner.card.classes),
        )  # fmt: skip
    columns = dict(zip(CENTRE_COLUMNS, centres.T, strict=True))
    return votes_of(judged, pd.DataFrame({**columns, "size_vox": found.size_vox}), VoteSettings())


def voted(card: ModelCard, found: Found, votes: Sequence[Vote | None]) -> Voted:
    """The votes on what is a particle, with its true class."""
    names = card.classes[1:]
    spelling = {name.casefold(): k for k, name in enumerate(names)}
    label = np.array(
        [spelling.get(found.known.classes[t].casefold(), -1) if t >= 0 else -1 for t in found.true],
        np.int64,
    )
    rows = [k for k, vote in enumerate(votes) if vote is not None and label[k] >= 0]
    chosen = [vote for k in rows if (vote := votes[k]) is not None]
    return Voted(
        name=found.known.name,
        probabilities=np.array([v.probabilities for v in chosen]).reshape(-1, len(names)),
        named=np.array([v.label - 1 for v in chosen], np.int64),
        label=label[rows],
    )


def with_precision(
    card: ModelCard,
    found: Sequence[Found],
    *,
    source: str,
    more: Sequence[Mapping[str, float]] = (),
) -> ModelCard:
    """Return a localizer's card with its precision curve and domain, and how good they are.

    `more` are grey statistics of further tomograms, which no network need see.
    """
    score = np.concatenate([np.empty(0), *(f.score for f in found)])
    hit = np.concatenate([np.empty(0, bool), *(f.true >= 0 for f in found)])
    tomogram = np.repeat(np.arange(len(found)), [len(f.score) for f in found])
    figures: dict[str, Any] = {
        "source": source, "tomograms": len(found), "tomograms_grey_values_only": len(more),
        "candidates": len(score), "hit_distance_vox": HIT_DISTANCE_VOX,
    }  # fmt: skip
    update: dict[str, Any] = {}
    if len(score) >= LEAST_CANDIDATES and len(np.unique(tomogram)) > 1:
        fit = fit_precision(score, hit, tomogram)
        update["precision_curve"] = fit.curve
        figures |= {
            "precision": _round(hit.mean()),
            "curve": fit.kind,
            **{f"log_likelihood_{kind}": _round(v) for kind, v in fit.log_likelihood.items()},
            "ece_score": _round(_ece(score, hit)),
            "ece_expected_precision": _round(_ece(fit.held_out, hit)),
        }
    else:
        log.warning("no precision curve: %d candidates in %d tomograms", len(score), len(found))
    observed = [*(f.statistics for f in found), *more]
    domain = ranges(observed, source=source)
    if domain is None:
        log.warning("%d tomograms are too few to say what is usual: no domain", len(observed))
    else:
        update["domain"] = domain
        figures["out_of_domain_if_left_out"] = sum(_left_out_flags(card, observed, source))
    return _updated(card, update, figures)


def _left_out_flags(
    card: ModelCard, observed: Sequence[Mapping[str, float]], source: str
) -> Iterator[bool]:
    """Whether each tomogram would be flagged by the ranges of all the others."""
    for k, one in enumerate(observed):
        others = [other for i, other in enumerate(observed) if i != k]
        own = card.model_copy(update={"domain": ranges(others, source=source)})
        yield judge(one, own).in_domain in ("doubtful", "no")


def with_temperature(card: ModelCard, voted: Sequence[Voted], *, source: str) -> ModelCard:
    """Return a classifier's card with its temperature, and the errors without and with it.

    Those of each tomogram are by the temperature of all the others.
    """
    none = np.empty(0, np.int64)
    p = np.concatenate([np.empty((0, len(card.classes) - 1)), *(v.probabilities for v in voted)])
    named = np.concatenate([none, *(v.named for v in voted)])
    label = np.concatenate([none, *(v.label for v in voted)])
    tomogram = np.repeat(np.arange(len(voted)), [len(v.label) for v in voted])
    figures: dict[str, Any] = {"source": source, "tomograms": len(voted), "particles": len(label)}
    if len(label) < LEAST_PARTICLES or len(np.unique(tomogram)) < 2:
        log.warning("no temperature: %d particles in %d tomograms", len(label), len(voted))
        return _updated(card, {}, figures)
    temperature = fit_temperature(p, label)
    after = left_out(
        lambda own: fit_temperature(p[own], label[own]),
        lambda t, part: tempered(p[part], t),
        tomogram,
    )
    rows, right = np.arange(len(label)), named == label
    bins = {"before": reliability(p[rows, named], right),
            "after": reliability(after[rows, named], right)}  # fmt: skip
    figures |= {
        "accuracy": _round(right.mean()),
        "log_likelihood_before": _round(class_log_likelihood(np.maximum(p, 0.5 / 255), label)),
        "log_likelihood_after": _round(class_log_likelihood(after, label)),
        **{f"ece_{when}": _round(expected_calibration_error(b)) for when, b in bins.items()},
        **{
            f"reliability_{when}": [[b.n, _round(b.confidence), _round(b.right)] for b in own]
            for when, own in bins.items()
        },
    }
    return _updated(card, {"temperature": _round(temperature)}, figures)


def with_sift(
    card: ModelCard,
    localizer: ModelCard,
    candidates: Mapping[float, Sequence[tuple[Found, Sequence[Vote | None]]]],
) -> ModelCard:
    """Return a classifier's card with how it sifts the localizer's candidates.

    `candidates` are those at each threshold that is tried, one entry a tomogram. The threshold and
    the least probability are those with the best F1 where each tomogram is judged by the weights
    of all the others.
    """
    card = card.model_copy(update={"sift": None})  # one of an earlier calibration is none of this
    tried: dict[float, tuple[float, float]] = {}
    for threshold, tomograms in candidates.items():
        table = _sifting_table(tomograms)
        total = sum(len(found.known.centres_zyx) for found, _ in tomograms)
        hits = int(table["hit"].sum())
        if min(hits, len(table) - hits) < LEAST_OF_EACH or not _both_kinds_beside(table):
            log.warning("%d candidates at %g, %d of them particles: too few to sift by",
                        len(table), threshold, hits)  # fmt: skip
            continue
        evidence, hit = _evidence(table), table["hit"].to_numpy(bool)
        p = left_out(
            lambda own: fit_weights(evidence[own], hit[own]),  # noqa: B023
            lambda w, part: particle_probability(evidence[part], w),  # noqa: B023
            table["tomogram"].to_numpy(),
        )
        tried[threshold] = best_cut(p, hit, total, as_good=AS_GOOD)
        log.info("candidates from %g on: F1 %.4f from a probability of %.3f on", threshold,
                 tried[threshold][1], tried[threshold][0])  # fmt: skip
    if not tried:
        return card
    # Of those that are as good as the best, the highest makes the fewest candidates.
    enough = max(f1 for _, f1 in tried.values()) - AS_GOOD
    threshold = max(t for t, (_, f1) in tried.items() if f1 >= enough)
    table = _sifting_table(candidates[threshold])
    weights = fit_weights(_evidence(table), table["hit"].to_numpy(bool))
    least, f1 = tried[threshold]
    fitted = Sift(
        localizer_sha256=localizer.weights_sha256, threshold=threshold, least=_round(least),
        intercept=_round(weights.intercept), score=_round(weights.score),
        background=_round(weights.background), contrast=_round(weights.contrast),
    )  # fmt: skip
    figures = {
        **card.metrics.get("calibration", {}), "sifts": localizer.name, "f1_sifted": _round(f1),
        "f1_by_threshold": {f"{t:g}": _round(best[1]) for t, best in tried.items()},
    }  # fmt: skip
    return ModelCard.model_validate(
        {
            **card.model_dump(),
            "sift": fitted.model_dump(),
            "metrics": {**card.metrics, "calibration": figures},
        }
    )


def _both_kinds_beside(table: pd.DataFrame) -> bool:
    """Whether hits and misses are left whichever tomogram is left out."""
    counts = table.groupby("tomogram")["hit"].agg(["sum", "count"])
    hits, misses = counts["sum"], counts["count"] - counts["sum"]
    return bool((hits.sum() - hits > 0).all() and (misses.sum() - misses > 0).all())


def _sifting_table(
    tomograms: Sequence[tuple[Found, Sequence[Vote | None]]],
) -> pd.DataFrame:
    """One row a candidate: what speaks for it, and what it is."""
    tables = [
        pd.DataFrame({
            "tomogram": k, "hit": found.true >= 0,
            "score": found.score, "contrast": found.contrast,
            "background": [1.0 if vote is None else vote.background for vote in votes],
        })
        for k, (found, votes) in enumerate(tomograms)
    ]  # fmt: skip
    return pd.concat(tables, ignore_index=True)


def _evidence(table: pd.DataFrame) -> Evidence:
    return Evidence(*(table[name].to_numpy(float) for name in ("score", "background", "contrast")))


def check_seeds(cards: Sequence[ModelCard], seed: int, count: int) -> None:
    """Refuse tomograms that a training may have drawn: each has a million seeds of its own.

    Raises
    ------
    InputError
        If one of `count` seeds from `seed` on is in the million of a model's training.
    """
    for card in cards:
        first = int(card.training.get("seed", 1)) * SEEDS_A_TRAINING
        if first < seed + count and seed < first + SEEDS_A_TRAINING:
            raise InputError(
                "--seed", expected=f"none of {first:,} to {first + SEEDS_A_TRAINING - 1:,}, which "
                f"the training of {card.name} drew from", found=f"{seed:,}",
                remedy="leave --seed out, or take another million",
            )  # fmt: skip


def simulated(
    card: ModelCard, densities: Path, *, count: int, seed: int, others: Sequence[ModelCard] = ()
) -> Iterator[Known]:
    """Yield tomograms of the kind a model was trained on, of seeds that begin at `seed`.

    `others` are further models that must not have been trained on them.

    Raises
    ------
    InputError
        If the training drew from such seeds.
    """
    if count == 0:
        return
    check_seeds([card, *others], seed, count)
    training = card.training
    classes = tuple(training.get("classes") or SHREC_CLASSES)
    ranges = ("snr_range", "voxels_per_particle")
    given: dict[str, Any] = {key: tuple(training[key]) for key in ranges if training.get(key)}
    # Settings of later releases, which the cards of earlier ones do not have.
    single = ("distractors", "misalignment_vox", "spectrum_jitter")
    given |= {key: training[key] for key in single if key in training}
    source = SimulatedSource(densities, classes, shape_zyx=SHAPE_ZYX, seed=0, **given)
    for number in range(seed, seed + count):
        made = source.tomogram(number)
        names = [classes[k - 1] for k in made.labels]
        yield Known(name=f"seed {number}", volume=made.volume, centres_zyx=made.centres_zyx,
                    classes=names)  # fmt: skip


def from_folders(card: ModelCard, folders: Sequence[Path]) -> Iterator[Known]:
    """Yield tomograms of SHREC folders, of the model's voxel size; only particles are kept."""
    low, high = card.voxel_size_range_angstrom
    for folder in folders:
        path = folder / "reconstruction.mrc"
        header = read_header(path)
        size = header.voxel_size_angstrom
        if size is None or not low <= size <= high:
            raise InputError(
                path, expected=f"voxels of {low:g} to {high:g} angstrom, as {card.name} reads",
                found="none in its header" if size is None else f"{size:g} angstrom",
                remedy="simulate it at the model's voxel size",
            )  # fmt: skip
        truth = read_truth(folder / "particle_locations.txt")
        truth = truth[~truth["class"].str.casefold().isin(NO_PARTICLES)]
        volume = normalise(np.asarray(open_volume(path, header), np.float32),
                           invert=card.contrast == "bright")  # fmt: skip
        centres = truth[["z_vox", "y_vox", "x_vox"]].to_numpy(float)
        yield Known(
            name=str(folder), volume=volume, centres_zyx=centres, classes=list(truth["class"])
        )


def calibrate_models(
    folders: Sequence[str | Path],
    tomograms: Iterable[Known],
    *,
    source: str,
    more: Iterable[Known] = (),
) -> list[ModelCard]:
    """Write the cards of a localizer and, if given, a classifier anew; returns them.

    Of `more` tomograms only the grey values are measured, which takes seconds each.

    Their weights stay, as do their hashes. The classifier is measured on what the localizer finds,
    so one is needed.
    """
    cards = {card.role: (card, folder) for folder in folders for card in [load_card(folder)]}
    if len(cards) < len(folders) or "localizer" not in cards:
        raise InputError(
            ", ".join(map(str, folders)), expected="a localizer and, if wanted, a classifier",
            found=" and ".join(f"a {load_card(f).role}" for f in folders),
            remedy="name one model of each role",
        )  # fmt: skip
    localizer = make_runner(cards["localizer"][1], SegmentSettings())
    classifier = (
        make_runner(cards["classifier"][1], ClassifySettings()) if "classifier" in cards else None
    )
    found, named = [], []
    sifting: dict[float, list[tuple[Found, list[Vote | None]]]] = {}
    for known in tomograms:
        probability = particle_probability_of(localizer, known)
        card = localizer.card
        assert card.threshold is not None
        one = found_at(card, known, probability, threshold=card.threshold)
        if classifier is not None and classifier.card.names_whole:
            for threshold in [t for t in SIFTED_FROM if t < card.threshold] or [card.threshold]:
                more_of = found_at(card, known, probability, threshold=threshold)
                votes = votes_in(classifier, more_of)
                sifting.setdefault(threshold, []).append((_light(more_of), votes))
        if classifier is not None:
            named.append(vote_on(classifier, one))
        found.append(_light(one))
        log.info("%s: %d candidates, %d of %d particles found", known.name, len(one.score),
                 int((one.true >= 0).sum()), len(known.centres_zyx))  # fmt: skip
    greys = []
    for known in more:
        greys.append(grey_statistics(known.volume))
        log.info("%s: grey values", known.name)
    written = [with_precision(cards["localizer"][0], found, source=source, more=greys)]
    if classifier is not None:
        tempered_card = with_temperature(cards["classifier"][0], named, source=source)
        written.append(with_sift(tempered_card, localizer.card, sifting))
    for card in written:
        write_card(cards[card.role][1], card)
    return written


def _light(found: Found) -> Found:
    """Without the volume, which is not needed any more."""
    return replace(found, known=replace(found.known, volume=np.empty((0, 0, 0), np.float32)))


def format_calibration(cards: Sequence[ModelCard]) -> str:
    """Lay the figures out for a terminal."""
    lines = []
    for card in cards:
        lines.append(f"{card.name}")
        if card.temperature is not None:
            lines.append(f"  temperature: {card.temperature:.3g}")
        if card.sift is not None:
            lines.append(f"  sifts candidates from {card.sift.threshold:g} on; particles from a "
                         f"probability of {card.sift.least:g} on")  # fmt: skip
        if card.domain is not None:
            lines.append(f"  domain: of {card.domain.tomograms} tomograms")
        for key, value in card.metrics.get("calibration", {}).items():
            if not isinstance(value, list):
                lines.append(f"  {key.replace('_', ' ')}: {value}")
        for score, precision in card.precision_curve or []:
            lines.append(f"  score {score:.3f}: expected precision {precision:.3f}")
    return "\n".join(lines) + "\n"


def _updated(card: ModelCard, update: Mapping[str, Any], figures: Mapping[str, Any]) -> ModelCard:
    metrics = {**card.metrics, "calibration": dict(figures)}
    # Through the checks of a card, which model_copy leaves out.
    return ModelCard.model_validate(
        {**card.model_dump(), **update, "metrics": metrics}
        | ({"domain": update["domain"].model_dump()} if "domain" in update else {})
    )


def _ece(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    return expected_calibration_error(reliability(confidence, right))


def _round(value: Any) -> float:
    return round(float(value), 4)
