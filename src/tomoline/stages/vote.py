"""The particle table: one class a particle, in voxels of the tomogram as it was given."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tomoline.contracts import EXPECTED_PRECISION, VolumeTransform
from tomoline.errors import InputError
from tomoline.evaluation.calibration import expected_precision, tempered
from tomoline.evaluation.ensemble import joint_vote, pooled_odds
from tomoline.evaluation.sifting import Evidence, particle_probability
from tomoline.io.cluster_names import read_clusters, read_names
from tomoline.io.mrc import write_compressed_volume
from tomoline.io.stacks import open_stack
from tomoline.io.subtomograms import LabelledBoxes, NamedBoxes, open_classes
from tomoline.io.tables import (
    ACCEPTED,
    REJECTED,
    particle_table,
    probability_columns,
    read_candidates,
    table_classes,
    write_particles,
)
from tomoline.log import get_logger
from tomoline.networks.cards import ModelCard, load_card
from tomoline.ops.patches import box_starts, centred_in
from tomoline.ops.votes import (
    BACKGROUND_LIKE,
    NO_LABELS,
    Vote,
    own_voxels,
    vote,
    vote_of_views,
    vote_radius,
)
from tomoline.settings import DatasetSettings, VoteSettings, validated
from tomoline.stages.extract import CENTRE_COLUMNS
from tomoline.stages.members import of_members

SETTINGS = VoteSettings
Masks = dict[int, NDArray[np.bool_]]  # a candidate's own voxels, by its number
log = get_logger(__name__)


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    settings: VoteSettings,
    tomogram: str,
    dataset: Mapping[str, Any],
) -> None:
    """Vote on every subtomogram of one tomogram and write its particle table.

    Inputs `candidates` (candidates.csv), `classes` (HDF5 of the classify stage), `transform`
    (prepared.json) and the cards of both models, `localizer` and `classifier`; outputs `particles`
    (particles.csv) and `segmentation`, the class of each voxel of the prepared volume that voted
    for an accepted particle (label = place in the classifier's classes). `dataset` is its
    `DatasetSettings` as a dictionary. Every candidate gets a row, the rejected ones with their
    reason. p_<class> follow the classifier's temperature; where the
    localizer's card has a precision curve, there is the column `expected_precision`. Where the
    classifier sifts the localizer's candidates, both that and the score are the probability that
    there is a particle. Of an ensemble each classifier has a `classes_<k>` and a `classifier_<k>`,
    and the class is by all their probabilities (`tomoline.evaluation.ensemble`).

    With the inputs `clusters` (clusters.csv of the discovery) and `cluster_names` (a user's file),
    candidates of a named cluster are of that class, those too that were taken for background; they
    are not in `segmentation`, which has the classifier's classes. With the input `masks` (masks.mrc
    of the stage multitask) only the voxels marked there vote, and are in `segmentation`.
    """
    candidates = read_candidates(inputs["candidates"])
    transform = VolumeTransform.load(inputs["transform"])
    localizer = load_card(inputs["localizer"])
    classifiers = [load_card(card) for card in of_members(inputs, "classifier")]
    files = of_members(inputs, "classes")
    masks = _masks(inputs.get("masks"), candidates)
    members = [_votes_in(path, candidates, inputs["candidates"], settings, masks) for path in files]
    classes = classifiers[0].classes[1:]
    score, contrast = (candidates[name].to_numpy(float) for name in ("score", "contrast"))
    sifted = sift_together(members, score, contrast, localizer, classifiers)
    judged, temperature = together(members, classifiers)
    least = sifted.least if settings.min_probability is None else settings.min_probability
    verdicts = [
        _verdict(reason, result, classes, settings, temperature, is_background=p < least)
        for reason, result, p in zip(candidates["reason"], judged, sifted.probability, strict=True)
    ]  # fmt: skip
    columns = _place_columns(candidates, transform, tomogram, _binning(transform, dataset))
    if localizer.precision_curve is not None:
        columns[EXPECTED_PRECISION] = expected_precision(
            candidates["score"].to_numpy(), localizer.precision_curve
        )
    if sifted.by_card:
        # What was rejected before keeps the localizer's word, as the classifier never saw it.
        seen = np.array([vote is not None for vote in judged], bool)
        usual = columns.get(EXPECTED_PRECISION, columns["score"])
        columns[EXPECTED_PRECISION] = np.where(seen, sifted.probability, usual)
        columns["score"] = np.where(seen, sifted.probability, columns["score"])
    table = particle_table(columns | _verdict_columns(verdicts, classes), classes)
    if inputs.get("clusters"):
        table = with_named_clusters(table, tomogram, inputs["clusters"], inputs["cluster_names"])
    write_particles(outputs["particles"], table)
    kept = np.array([row["status"] == ACCEPTED for row in verdicts], bool)
    centres = candidates[CENTRE_COLUMNS].to_numpy(float)[kept]
    found = [vote for vote, keep in zip(judged, kept, strict=True) if keep and vote is not None]
    if has_balls(classifiers):
        found = placed(found, centres, candidates["size_vox"].to_numpy()[kept], settings)
        found = [
            marked(vote, masks.get(int(number)))
            for vote, number in zip(found, candidates["candidate_id"][kept], strict=True)
        ]
    write_compressed_volume(
        outputs["segmentation"],
        _segmentation(list(zip(centres, found, strict=True)), transform.prepared_shape_zyx),
        transform.prepared_voxel_size_angstrom,
    )
    _tell(table)


def _masks(path: str | None, candidates: pd.DataFrame) -> Masks:
    """Masks of the accepted candidates, by number; none without a file."""
    if not path:
        return {}
    accepted = candidates["candidate_id"][candidates["status"] == ACCEPTED]
    stack = open_stack(path)
    if len(stack) != len(accepted):
        raise InputError(
            path, expected=f"masks of {len(accepted)} accepted candidates", found=str(len(stack)),
            remedy="delete the tomogram's folder discovery and run again",
        )  # fmt: skip
    return {int(k): np.asarray(mask) > 0 for k, mask in zip(accepted, stack, strict=True)}


def marked(found: Vote, mask: NDArray[np.bool_] | None) -> Vote:
    """A vote whose voxels are those that a mask `(b, b, b)` about its centre has; as it was where
    there is no mask, or it is empty."""
    if mask is None or not mask.any():
        return found
    return replace(found, voters=mask, voxels=int(np.count_nonzero(mask)))


def _votes_in(
    path: str, candidates: pd.DataFrame, source: str, settings: VoteSettings, masks: Masks
) -> list[Vote | None]:
    """A classifier's votes, one a candidate; None for those that were rejected before."""
    with open_classes(path) as boxes:
        accepted = candidates[candidates["status"] == ACCEPTED]
        if not np.array_equal(boxes.candidate_id, accepted["candidate_id"].to_numpy()):
            raise InputError(
                path, expected=f"the {len(accepted)} accepted candidates of {source}",
                found=f"{len(boxes)} others",
                remedy="delete subtomograms.h5 and classes.h5 and run again",
            )  # fmt: skip
        results = votes_of(boxes, accepted, settings, masks)
        votes = dict(zip(boxes.candidate_id.tolist(), results, strict=True))
    return [votes.get(number) for number in candidates["candidate_id"]]


def has_balls(classifiers: Sequence[ModelCard]) -> bool:
    """Whether the map of classes has balls about the centres, as no voxels were named, or by
    several that need not agree."""
    return len(classifiers) > 1 or classifiers[0].names_whole


def together(
    members: Sequence[Sequence[Vote | None]], classifiers: Sequence[ModelCard]
) -> tuple[list[Vote | None], float | None]:
    """One vote a candidate of the votes of all classifiers, and the temperature it is to follow."""
    if len(members) == 1:
        return list(members[0]), classifiers[0].temperature
    temperatures = [card.temperature for card in classifiers]
    return [joint_vote(votes, temperatures) for votes in zip(*members, strict=True)], None


@dataclass(frozen=True)
class Sifted:
    """Probability that each candidate `(n,)` is a particle, and from which on it is taken for one.

    `by_card`: of a fit that the classifier's card holds; else by its share of background alone.
    """

    probability: NDArray[np.float64]
    least: float
    by_card: bool


def sift(
    votes: Sequence[Vote | None],
    score: NDArray[np.float64],
    contrast: NDArray[np.float64],
    localizer: ModelCard,
    classifier: ModelCard,
) -> Sifted:
    """What a classifier of whole subtomograms makes of the candidates; others leave all in.

    Candidates without a vote, which were rejected before, have the probability 0.
    """
    known = np.array([vote is not None for vote in votes], bool)
    background = np.array([1.0 if vote is None else vote.background for vote in votes])
    fit = classifier.sift_for(localizer)
    if not classifier.names_whole:
        return Sifted(np.ones(len(votes)), 0.0, by_card=False)
    if fit is None:
        log.warning("%s", classifier.not_fitted(localizer))
        return Sifted(1 - background, 0.5, by_card=False)
    probability = particle_probability(Evidence(score, background, contrast), fit)
    return Sifted(np.where(known, probability, 0.0), fit.least, by_card=True)


def sift_together(
    members: Sequence[Sequence[Vote | None]],
    score: NDArray[np.float64],
    contrast: NDArray[np.float64],
    localizer: ModelCard,
    classifiers: Sequence[ModelCard],
) -> Sifted:
    """What the classifiers that name whole subtomograms make of the candidates, together.

    Those that were fitted to the localizer judge; where none was, all of them by their share of
    background. The mean of log-odds is compared with that of their least probabilities.
    """
    judges = [
        sift(votes, score, contrast, localizer, card)
        for votes, card in zip(members, classifiers, strict=True)
        if card.names_whole or len(classifiers) == 1
    ]
    fitted = [one for one in judges if one.by_card]
    judges = fitted or judges
    if len(judges) < 2:
        return judges[0] if judges else Sifted(np.ones(len(score)), 0.0, by_card=False)
    p = pooled_odds([one.probability for one in judges])
    least = pooled_odds([np.array([one.least]) for one in judges])
    seen = np.array([any(v is not None for v in votes) for votes in zip(*members, strict=True)])
    return Sifted(np.where(seen, p, 0.0), float(least[0]), by_card=bool(fitted))


def votes_of(
    boxes: LabelledBoxes | NamedBoxes, accepted: pd.DataFrame, settings: VoteSettings,
    masks: Masks | None = None,
) -> list[Vote | None]:  # fmt: skip
    """One vote a subtomogram; they are read one at a time.

    Where `masks` has one, by its candidate's number, that marks something, no other voxel votes.
    """
    if isinstance(boxes, NamedBoxes):
        return [vote_of_views(views) for views in boxes.views]
    centres = accepted[CENTRE_COLUMNS].to_numpy(np.float64)
    tree = cKDTree(centres) if len(centres) else None
    found: list[Vote | None] = []
    for k, size in enumerate(accepted["size_vox"]):
        radius = settings.radius_vox or vote_radius(
            size, centre_radius_vox=settings.centre_radius_vox
        )
        assert tree is not None  # there is a size, so there are centres
        # Beyond twice the radius no candidate is nearer to any voxel that votes.
        near = [i for i in sorted(tree.query_ball_point(centres[k], 2 * radius)) if i != k]
        centre = boxes.centre_zyx[k]
        others = centres[near] - centres[k] + centre
        found.append(
            vote(
                _within(boxes.labels[k], (masks or {}).get(int(boxes.candidate_id[k]))),
                boxes.probabilities[k],
                centre,
                centre_radius_vox=settings.centre_radius_vox,
                radius_vox=radius,
                others_zyx=others,
            )
        )
    return found


def _within(labels: NDArray[np.uint8], mask: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
    """Labels `(b, b, b)` where a mask about the same voxel is, background elsewhere."""
    if mask is None or not mask.any():
        return labels
    return np.where(centred_in(mask, labels.shape[0]), labels, 0).astype(labels.dtype)


def placed(
    votes: Sequence[Vote],
    centres: NDArray[np.float64],
    size_vox: NDArray[Any],
    settings: VoteSettings,
) -> list[Vote]:
    """Give particles that were named as wholes the voxels they take in the map of classes.

    That is a ball of the radius within which voxels would vote, less what is nearer to another
    particle `(n, 3)`; what was sifted out takes none.
    """
    radii = [
        settings.radius_vox or vote_radius(size, centre_radius_vox=settings.centre_radius_vox)
        for size in size_vox
    ]
    tree = cKDTree(centres) if len(centres) else None
    done = []
    for k, (found, radius) in enumerate(zip(votes, radii, strict=True)):
        assert tree is not None
        edge = 2 * math.ceil(radius) + 3
        inside = centres[k] - box_starts(centres[k : k + 1], edge)[0]
        near = [i for i in tree.query_ball_point(centres[k], 2 * radius) if i != k]
        place = own_voxels(
            (edge,) * 3, inside, radius_vox=radius,
            others_zyx=centres[near] - centres[k] + inside,
        )  # fmt: skip
        done.append(replace(found, voters=place, voxels=int(np.count_nonzero(place))))
    return done


def _segmentation(
    kept: list[tuple[NDArray[np.float64], Vote]], shape_zyx: tuple[int, int, int]
) -> NDArray[np.int8]:
    """Class of each voxel `(z, y, x)`; where two particles claim one, the later has it."""
    labels = np.zeros(shape_zyx, np.int8)
    for centre, found in kept:
        start = box_starts(centre[None], found.voters.shape[0])[0]
        voxels = np.argwhere(found.voters) + start
        voxels = voxels[((voxels >= 0) & (voxels < shape_zyx)).all(1)]
        labels[tuple(voxels.T)] = found.label
    return labels


def with_named_clusters(
    table: pd.DataFrame, tomogram: str, clusters: str, names: str
) -> pd.DataFrame:
    """A particle table in which the members of named clusters are of the class of that name.

    Their probability p_<class> is 1, as a person has said so, the others' 0. What was sifted out
    as background is a particle again; other rejects stay.
    """
    mark, found = read_clusters(clusters)
    named = read_names(names, clustering=mark, clusters=int(found["cluster"].max()))
    own = found[(found["tomogram"] == tomogram) & found["cluster"].isin(list(named))]
    class_of = {
        int(number): named[int(cluster)]
        for number, cluster in zip(own["candidate_id"], own["cluster"], strict=True)
    }
    known = table_classes(table)
    classes = [*known, *sorted(set(named.values()) - set(known))]
    changed = table.copy()
    for column in probability_columns(classes[len(known) :]):
        changed[column] = 0.0
    ids = changed["particle_id"]
    rows = ids.isin(list(class_of)) & changed["reason"].isin(["", BACKGROUND_LIKE])
    changed.loc[rows, probability_columns(classes)] = 0.0
    for name in sorted(set(named.values())):
        mine = rows & ids.map(class_of).eq(name)
        changed.loc[mine, ["status", "reason", "class"]] = [ACCEPTED, "", name]
        changed.loc[mine, probability_columns([name])] = 1.0
    log.info("%d candidates are of named clusters", int(rows.sum()))
    return particle_table({str(c): changed[c] for c in changed.columns}, classes)


def _verdict(
    reason: str,
    result: Vote | None,
    classes: list[str],
    settings: VoteSettings,
    temperature: float | None,
    *,
    is_background: bool,
) -> dict[str, Any]:
    """Columns that the vote decides; what nobody voted on has zeros."""
    row: dict[str, Any] = {"class": "", "vote_share": 0.0, "margin": 0.0}
    row |= dict.fromkeys(probability_columns(classes), 0.0)
    if result is not None:
        row |= {"vote_share": result.share, "margin": result.margin}
        p = result.probabilities
        if temperature is not None:
            p = tempered(p[None], temperature)[0]
        row |= dict(zip(probability_columns(classes), p, strict=True))
        if is_background:
            reason = BACKGROUND_LIKE
        elif result.share < settings.min_vote_share:
            reason = f"vote share below {settings.min_vote_share:g}"
        else:
            row["class"] = classes[result.label - 1]
    elif not reason:
        reason = NO_LABELS
    return row | {"status": REJECTED if reason else ACCEPTED, "reason": reason}


def _verdict_columns(verdicts: list[dict[str, Any]], classes: list[str]) -> dict[str, Any]:
    names = ["status", "reason", "class", "vote_share", "margin", *probability_columns(classes)]
    return {name: [row[name] for row in verdicts] for name in names}


def _binning(transform: VolumeTransform, dataset: Mapping[str, Any]) -> float:
    settings = validated(DatasetSettings, dataset, source="dataset")
    unbinned = settings.tilt_series_pixel_size_angstrom
    return transform.given_voxel_size_angstrom / unbinned if unbinned else 1.0


def _place_columns(
    candidates: pd.DataFrame, transform: VolumeTransform, tomogram: str, binning: float
) -> dict[str, Any]:
    """Columns that the candidates and the transform decide."""
    given: NDArray[np.float64] = transform.to_given(candidates[CENTRE_COLUMNS].to_numpy(float))
    n = len(candidates)
    size = dict(zip(("nz", "ny", "nx"), transform.given_shape_zyx, strict=True))
    return {
        "tomogram": [tomogram] * n,
        "particle_id": candidates["candidate_id"],
        **{f"{axis}_vox": given[:, i] for i, axis in enumerate("zyx")},
        "voxel_size_angstrom": np.full(n, transform.given_voxel_size_angstrom),
        **{f"tomogram_{axis}": np.full(n, length) for axis, length in size.items()},
        "binning": np.full(n, binning),
        "score": candidates["score"],
        "size_vox": candidates["size_vox"],
    }


def _tell(table: pd.DataFrame) -> None:
    accepted = table[table["status"] == ACCEPTED]
    log.info("%d particles of %d candidates", len(accepted), len(table))
    for name, number in sorted(Counter(accepted["class"]).items()):
        log.info("%d of class %s", number, name)
    for reason, number in sorted(Counter(table.loc[table["reason"] != "", "reason"]).items()):
        log.info("%d rejected: %s", number, reason)
