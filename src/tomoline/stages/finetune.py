"""finetune: trained models learn a data set's labels, and say what that changed.

Labels are those of `tomoline import` and `tomoline adopt` (`stages/labels.py`). What may be learnt
of them, and that unlabelled voxels are no background, is told in `tomoline.training.points`; how a
classifier of whole subtomograms learns, in `tomoline.training.tuning`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tomoline.contracts import VolumeTransform
from tomoline.evaluation.held_out import Held, Judged, change, figures
from tomoline.evaluation.matching import match_one_to_one
from tomoline.evaluation.sifting import Evidence, best_cut, fit_weights, particle_probability
from tomoline.infer import make_runner
from tomoline.io.annotations import read_truth
from tomoline.io.atomic import write_json, write_text
from tomoline.io.mrc import open_volume
from tomoline.log import get_logger
from tomoline.networks.cards import ModelCard, load_card
from tomoline.networks.weights import save_model
from tomoline.ops.votes import Vote
from tomoline.report.finetune import finetune_page
from tomoline.settings import (
    ClassifySettings,
    EvaluateSettings,
    FinetuneSettings,
    SegmentSettings,
)
from tomoline.stages.confidence import (
    HIT_DISTANCE_VOX,
    LEAST_OF_EACH,
    Found,
    Known,
    found_at,
    votes_in,
)
from tomoline.stages.evaluate import truth_options
from tomoline.stages.labelled import (
    Given,
    Labelled,
    check_learnt,
    classes_of,
    found_of,
    labelled,
    radii_of,
    truth_of,
)
from tomoline.stages.labels import labels_of
from tomoline.stages.teaching import Start, Teacher, changed, probability_of_part
from tomoline.stages.train import runner_of
from tomoline.stages.vote import sift

SETTINGS = FinetuneSettings
log = get_logger(__name__)


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    settings: FinetuneSettings,
    tomograms: Sequence[str],
    truths: Mapping[str, str],
    tilt_series: Mapping[str, str],
    dataset: Mapping[str, Any],
    work: str,
) -> None:
    """Teach the models of the roles and write them, what was measured, and a page.

    Parameters
    ----------
    inputs:
        Cards of the models to start from, `localizer` and `classifier`; `densities` (folder); and
        of each tomogram, in their order, `labels`, `transforms` (prepared.json), `volumes`
        (prepared.mrc) and `candidates`.
    outputs:
        `classifier` and, where it learns, `localizer` (card.yaml of the models made), `figures`
        (JSON) and `page` (HTML).
    truths, tilt_series:
        Of tomograms whose sheet names one: the complete truth, that held-out parts are measured by.
    dataset:
        Its settings as a mapping.
    work:
        Keeps the checkpoints.

    Raises
    ------
    InputError
        No label to learn, labels that are all held out, a class without radius where one is needed.
    """
    localizer = Start(card=load_card(inputs["localizer"]), folder=Path(inputs["localizer"]).parent)
    classifier = Start(
        card=load_card(inputs["classifier"]), folder=Path(inputs["classifier"]).parent
    )
    teacher = Teacher(settings, Path(inputs["densities"]), Path(work))
    files = list(zip(tomograms, *(list(inputs[key]) for key in (
        "labels", "transforms", "volumes", "candidates")), strict=True))  # fmt: skip
    tables = {name: labels_of(path) for name, path, *_ in files}
    classes = classes_of(classifier.card, tables.values())
    need_radius = "localizer" in settings.roles or not classifier.card.names_whole
    radii = radii_of(classes[1:], settings, teacher.density, need=need_radius)
    tomos = []
    for name, labels, transform, volume, candidates in files:
        place = VolumeTransform.load(transform)
        truth = truths.get(name, "")
        if truth and Path(truth).resolve() == Path(labels).resolve():
            truth = ""  # the labels themselves, which need not be all
        options = truth_options(place, EvaluateSettings(), dataset, tilt_series.get(name), None)
        known = None if not truth else truth_of(read_truth(truth, options), place)
        given = Given(name=name, table=tables[name], transform=place, volume=open_volume(volume),
                      candidates=candidates, truth=known)  # fmt: skip
        tomos.append(labelled(given, classes=classes, radii=radii, settings=settings))
    check_learnt(tomos, settings)
    if len(classes) > len(classifier.card.classes):
        log.info("new classes: %s", ", ".join(classes[len(classifier.card.classes) :]))
    before = make_runner(classifier.folder, ClassifySettings(
        device=settings.device, test_time_flips=settings.test_time_flips))  # fmt: skip
    votes = [votes_in(before, one.found(np.ones(len(one.score), bool))) for one in tomos]
    finder = make_runner(
        localizer.folder, SegmentSettings(device=settings.device, test_time_flips=1)
    )
    made = classifier.card, classifier.state()
    if "classifier" in settings.roles:
        if classifier.card.names_whole:
            made = teacher.whole(classifier, classes, tomos, votes, finder)
        else:
            made = teacher.voxels(classifier, classes, tomos, finder)
    located = None
    if "localizer" in settings.roles:
        located = teacher.voxels(localizer, localizer.card.classes, tomos, finder)
    _finish(localizer, classifier, located, made, tomos, votes, teacher, outputs)


def _finish(
    localizer: Start, classifier: Start, located: tuple[ModelCard, dict[str, Tensor]] | None,
    made: tuple[ModelCard, dict[str, Tensor]], tomos: Sequence[Labelled],
    votes: Sequence[Sequence[Vote | None]], teacher: Teacher, outputs: Mapping[str, Any],
) -> None:  # fmt: skip
    """Measure on what was held out, and write all."""
    settings = teacher.settings
    card, state = made
    finder_card = localizer.card
    if located is not None:
        finder_card = save_model(Path(outputs["localizer"]).parent, *located)
        teacher.notes.append("the localizer's precision curve and domain are those of the model it "
                             "started from; `tomoline calibrate` measures them anew")  # fmt: skip
        if (fit := classifier.card.sift_for(localizer.card)) is not None:
            card = changed(card, sift=fit.model_copy(
                update={"localizer_sha256": finder_card.weights_sha256}).model_dump())  # fmt: skip
    held = [(one, vote) for one, vote in zip(tomos, votes, strict=True)
            if len(_measured_by(one).centres) + len(one.held.negatives)
            or (one.truth is not None and one.held_from < one.volume.shape[1])]  # fmt: skip
    complete = settings.labels == "complete" or all(one.truth is not None for one, _ in held)
    runner = runner_of(card, state, settings.device, flips=settings.test_time_flips)
    old, new = [], []
    for one, vote in held:
        own = one.is_held(one.candidates)
        kept = [v for v, keep in zip(vote, own, strict=True) if keep]
        old.append((_measured_by(one), _judged(one.found(own), kept, localizer.card,
                                               classifier.card)))  # fmt: skip
        found = one.found(own)
        if located is not None:
            found = _found_anew(one, *located, threshold=_threshold(card, finder_card),
                                device=settings.device)  # fmt: skip
        new.append((found, votes_in(runner, found), one))
    card, why = _sifted(card, finder_card, new, settings)
    after = [(_measured_by(one), _judged(found, own, finder_card, card)) for found, own, one in new]
    if not held:
        teacher.notes.append("nothing was held out, so nothing was measured")
    report = teacher.report(tomos, card, complete=complete)
    report["sift"] = why
    if held:
        report["before"] = figures(old, complete=complete)
        report["after"] = figures(after, complete=complete, picks=report["before"]["picks"])
    told: dict[str, Any] = {
        when: {key: value for key, value in report[when].items() if key != "classes"}
        for when in ("before", "after") if when in report
    }  # fmt: skip
    told |= {key: report[key] for key in ("known_before", "sift") if report[key]}
    # What each class became is told in the page, and would be too long for a card. Figures of the
    # model it began with say nothing of this one.
    card = changed(card, metrics={"finetune": told})
    save_model(Path(outputs["classifier"]).parent, card, state)
    write_json(outputs["figures"], report)
    write_text(outputs["page"], finetune_page(report))
    for key in ("recall", "precision", "f1", "class_accuracy"):
        if held:
            log.info("%s: %s", key, change(report["before"], report["after"], key))
    for note in report["notes"]:
        log.info("%s", note)


def _threshold(classifier: ModelCard, localizer: ModelCard) -> float:
    fit = classifier.sift_for(localizer)
    assert localizer.threshold is not None
    return localizer.threshold if fit is None else fit.threshold


def _found_anew(
    one: Labelled, card: ModelCard, state: Mapping[str, Tensor], *, threshold: float, device: str
) -> Found:
    """Candidates of the held-out part by a localizer that has learnt."""
    runner = runner_of(card, state, device, flips=SegmentSettings().test_time_flips)
    first = max(int(one.held_from) - card.receptive_field_vox // 2, 0)
    part = np.ascontiguousarray(one.volume[:, first:], np.float32)
    known = Known(name=one.name, volume=part, centres_zyx=np.empty((0, 3)), classes=[])
    found = found_at(card, known, probability_of_part(runner, part), threshold=threshold)
    centres = found.centres + np.array([0, first, 0])
    own = one.is_held(centres)
    return found_of(one.volume, centres[own], found.score[own], found.size_vox[own],
                    found.contrast[own])  # fmt: skip


def _measured_by(one: Labelled) -> Held:
    """The truth of the held-out part where it is known, else its labels."""
    return one.held if one.truth is None else one.truth


def _judged(
    found: Found, votes: Sequence[Vote | None], localizer: ModelCard, classifier: ModelCard
) -> Judged:
    """What the line makes of candidates, by its default settings."""
    sifted = sift(votes, found.score, found.contrast, localizer, classifier)
    known = np.array([vote is not None for vote in votes], bool)
    return Judged(
        centres=found.centres,
        probability=np.where(sifted.by_card, sifted.probability, found.score * sifted.probability),
        accepted=known & (sifted.probability >= sifted.least),
        named=[classifier.classes[vote.label] if vote is not None else "" for vote in votes],
    )


def _sifted(
    card: ModelCard, localizer: ModelCard,
    found: Sequence[tuple[Found, Sequence[Vote | None], Labelled]], settings: FinetuneSettings,
) -> tuple[ModelCard, str]:  # fmt: skip
    """The card with a sift that is valid for the pair, and why it is what it is.

    Fitted to candidates that nobody learnt from, where all particles are labelled; else the old one
    stays. By partial labels it would be biased: people label what they like to see, and reviews ask
    about what is doubtful, so neither kind is as frequent among those as among all. A truth that
    the sheet names measures, and is never learnt from.
    """
    fit = card.sift_for(localizer)
    if not card.names_whole or fit is None:
        return card, "none: the classifier had none for this localizer"
    same = "background has the share in the training that it had, so that its probability means " \
           "the same"  # fmt: skip
    if settings.labels == "partial":
        return card, f"kept as it was, as not every particle is labelled; {same}"
    evidence, hit, total = _held_candidates(found)
    enough = min(int(hit.sum()), int((~hit).sum()))
    if enough < LEAST_OF_EACH:
        return card, (
            f"kept as it was: of the held-out candidates {int(hit.sum())} are particles and "
            f"{int((~hit).sum())} are not, fewer than {LEAST_OF_EACH} of each; {same}"
        )
    weights = fit_weights(evidence, hit)
    least, _ = best_cut(particle_probability(evidence, weights), hit, total)
    new = fit.model_copy(update={
        "intercept": round(weights.intercept, 4), "score": round(weights.score, 4),
        "background": round(weights.background, 4), "contrast": round(weights.contrast, 4),
        "least": round(least, 4),
    })  # fmt: skip
    return changed(card, sift=new.model_dump()), (
        f"fitted to {len(hit)} held-out candidates, {int(hit.sum())} of them particles; the "
        "figures after are by it, so somewhat flattered"
    )


def _held_candidates(
    found: Sequence[tuple[Found, Sequence[Vote | None], Labelled]],
) -> tuple[Evidence, NDArray[np.bool_], int]:
    """Evidence and labels of the held-out candidates, and the number of labelled particles."""
    terms, hits = [np.empty((0, 3))], [np.empty(0, bool)]
    total = 0
    for one, votes, tomo in found:
        centres = tomo.held.centres
        total += len(centres)
        hit = match_one_to_one(one.centres, centres, HIT_DISTANCE_VOX).true_of_prediction >= 0
        known = np.array([vote is not None for vote in votes], bool)
        share = np.array([1.0 if vote is None else vote.background for vote in votes])
        terms.append(np.stack([one.score, share, one.contrast], axis=1)[known])
        hits.append(hit[known])
    return Evidence(*np.concatenate(terms).T), np.concatenate(hits), total
