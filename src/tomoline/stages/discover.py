"""Clusters among the subtomograms of a data set, by what DSM-Net made of them (section 3.5)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tomoline.contracts import BACKGROUND
from tomoline.errors import InputError
from tomoline.evaluation.discovery import (
    Chosen,
    best_cluster,
    embedded,
    enrichment,
    find_clusters,
    main_directions,
)
from tomoline.evaluation.fsc import ShellCorrelation, shell_correlation
from tomoline.io.atomic import write_json, write_text
from tomoline.io.cluster_names import CLUSTER_COLUMNS
from tomoline.io.features import Features, read_features
from tomoline.io.stacks import open_stack, write_stack
from tomoline.io.subtomograms import open_simulated
from tomoline.log import get_logger
from tomoline.report.discovery import ClusterLook, Discovery, discovery_page
from tomoline.settings import DiscoverSettings

SETTINGS = DiscoverSettings
MOST_CORRELATED = 60  # subtomograms of a class whose densities are compared with the true ones
log = get_logger(__name__)


@dataclass(frozen=True)
class Gathered:
    """Subtomograms of all tomograms or files together: `tomogram (n,)` names, and `found`, whose
    densities lie in `stacks` one after the other."""

    tomogram: list[str]
    found: Features
    stacks: list[NDArray[np.float32]]

    def densities(self, places: NDArray[np.integer]) -> NDArray[np.float32]:
        """Recovered densities `(m, b, b, b)` of some."""
        starts = np.cumsum([0, *(len(stack) for stack in self.stacks)])
        which = np.searchsorted(starts, places, "right") - 1
        return np.array([self.stacks[w][p - starts[w]] for w, p in zip(which, places, strict=True)])


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    settings: DiscoverSettings,
    title: str,
    tomograms: Sequence[str],
) -> None:
    """Cluster the subtomograms of `tomograms`, or files of these names.

    Inputs `features` and `densities` of the stage multitask, one each, and `simulated`, those of
    the files that hold true densities too, or "". Outputs: `clusters` (CSV, a row a subtomogram,
    `tomoline.io.cluster_names`), `curve` (CSV, inertia and silhouette by number of clusters),
    `enrichment` (CSV), `means` and `class_means` (stacks of volumes, MRC: the mean recovered
    density of each cluster, and of each class by the network), `figures` (JSON) and `page`.
    """
    all_of = gather(inputs["features"], inputs["densities"], tomograms)
    found = all_of.found
    directions = main_directions(found.features)
    chosen = find_clusters(
        directions, clusters=settings.clusters, most=settings.most_clusters, seed=settings.seed
    )
    places = embedded(directions, perplexity=settings.perplexity, seed=settings.seed)
    points = _points(all_of, chosen, places)
    mark = clustering_mark(points, found)
    text = points.round(4).to_csv(index=False, lineterminator="\n")
    write_text(outputs["clusters"], f"# clustering {mark}\n{text}")
    write_text(outputs["curve"], chosen.curve.round(6).to_csv(index=False, lineterminator="\n"))
    true = found.true or found.named
    enriched = enrichment(chosen.cluster, true)
    write_text(outputs["enrichment"], enriched.to_csv(index=False, lineterminator="\n"))
    looks = _looks(all_of, chosen)
    size: dict[str, Any] = {
        "box_vox": found.box_vox, "voxel_size_angstrom": found.voxel_size_angstrom
    }  # fmt: skip
    write_stack(outputs["means"], [look.mean for look in looks], **size)
    classes = sorted(set(found.named))
    named = [np.flatnonzero(np.array(found.named) == name) for name in classes]
    write_stack(outputs["class_means"], [_mean(all_of, own) for own in named], **size)
    shells = _shells(all_of, inputs.get("simulated") or [])
    unseen = _unseen(found, enriched, shells)
    page = Discovery(
        title=title, model=found.model, clustering=mark, points=points, curve=chosen.curve,
        enriched=enriched, looks=looks, voxel_size_angstrom=found.voxel_size_angstrom,
        shells=shells, unseen=unseen, recovered=found.recovered,
        chosen_by="as discover.clusters says" if settings.clusters else "the largest silhouette",
    )  # fmt: skip
    write_json(outputs["figures"], {
        "clustering": mark, "model": found.model, "weights_sha256": found.weights_sha256,
        "subtomograms": len(found), "clusters": chosen.count, "classes_of_means": classes,
        "resolution_angstrom": {n: s.resolution_angstrom() for n, s in shells.items()},
        "unseen": unseen,
    })  # fmt: skip
    write_text(outputs["page"], discovery_page(page))
    log.info("%d clusters of %d subtomograms", chosen.count, len(found))
    for name, own in unseen.items():
        log.info("%s, which the network does not know: %s", name, own)


def gather(features: Sequence[str], densities: Sequence[str], tomograms: Sequence[str]) -> Gathered:
    """Read what one network made of several tomograms.

    Raises
    ------
    InputError
        For results of different networks.
    """
    parts = [read_features(path) for path in features]
    stacks = [open_stack(path) for path in densities]
    if len({part.weights_sha256 for part in parts}) != 1:
        raise InputError(
            features[0], expected="features of one network", found="those of several",
            remedy="delete them and run again",
        )  # fmt: skip
    known = all(part.true for part in parts if len(part))
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("features", "probabilities", "candidate_id")
    }
    first = parts[0]
    found = Features(
        **joined, classes=first.classes, model=first.model, weights_sha256=first.weights_sha256,
        box_vox=first.box_vox, voxel_size_angstrom=first.voxel_size_angstrom,
        recovered=first.recovered,
        true=[name for part in parts for name in part.true] if known else [],
    )  # fmt: skip
    names = [name for name, part in zip(tomograms, parts, strict=True) for _ in range(len(part))]
    return Gathered(names, found, stacks)


def clustering_mark(points: pd.DataFrame, found: Features) -> str:
    """What tells one clustering from another: the network, the subtomograms, their clusters."""
    rows = points[["tomogram", "candidate_id", "cluster"]].to_csv(index=False, lineterminator="\n")
    return hashlib.sha256(f"{found.weights_sha256}\n{rows}".encode()).hexdigest()[:12]


def _points(all_of: Gathered, chosen: Chosen, places: NDArray[np.float64]) -> pd.DataFrame:
    found = all_of.found
    columns = {
        "tomogram": all_of.tomogram, "candidate_id": found.candidate_id, "cluster": chosen.cluster,
        "distance": chosen.distance, "x": places[:, 0], "y": places[:, 1], "named": found.named,
        "true": found.true or [""] * len(found),
    }  # fmt: skip
    return pd.DataFrame(columns)[list(CLUSTER_COLUMNS)]


def _looks(all_of: Gathered, chosen: Chosen) -> list[ClusterLook]:
    looks = []
    for number in range(1, chosen.count + 1):
        own = np.flatnonzero(chosen.cluster == number)
        middle = own[int(np.argmin(chosen.distance[own]))]
        looks.append(
            ClusterLook(
                number=number,
                n=len(own),
                mean=_mean(all_of, own),
                middle=all_of.densities(np.array([middle]))[0],
            )
        )
    return looks


def _mean(all_of: Gathered, places: NDArray[np.integer]) -> NDArray[np.float32]:
    """Mean recovered density of some, read one after the other."""
    total = np.zeros((all_of.found.box_vox,) * 3)
    for place in places:
        total += all_of.densities(np.array([place]))[0]
    return (total / max(len(places), 1)).astype(np.float32)


def _shells(all_of: Gathered, simulated: Sequence[str]) -> dict[str, ShellCorrelation]:
    """Correlation of recovered with true densities, by true class, where all files have them."""
    found = all_of.found
    if not (simulated and all(simulated) and found.true and found.recovered):
        return {}
    true = np.array(all_of.found.true)
    shells = {}
    for name in sorted(set(true) - {BACKGROUND}):
        own = np.flatnonzero(true == name)
        own = own[np.unique(np.linspace(0, len(own) - 1, MOST_CORRELATED).round().astype(int))]
        recovered = all_of.densities(own)
        shells[name] = shell_correlation(
            recovered, _clean(simulated, own, recovered.shape[1]),
            voxel_size_angstrom=all_of.found.voxel_size_angstrom,
        )  # fmt: skip
    return shells


def _clean(simulated: Sequence[str], places: NDArray[np.integer], edge: int) -> NDArray[np.float32]:
    """True densities `(m, edge, edge, edge)` of some of the subtomograms of files."""
    found, start = [], 0
    for path in simulated:
        with open_simulated(Path(path)) as boxes:
            low = boxes.box_vox // 2 - edge // 2
            cut = slice(low, low + edge)
            own = places[(places >= start) & (places < start + len(boxes))] - start
            found += [boxes.clean[int(k), cut, cut, cut] for k in own]
            start += len(boxes)
    return np.array(found, np.float32)


def _unseen(
    found: Features, enriched: pd.DataFrame, shells: Mapping[str, ShellCorrelation]
) -> dict[str, dict[str, float | None]]:
    """What became of the true classes that the network was not taught."""
    result: dict[str, dict[str, float | None]] = {}
    for name in sorted(set(found.true) - set(found.classes)):
        own: dict[str, float | None] = {**best_cluster(enriched, name)}
        own["resolution_angstrom"] = shells[name].resolution_angstrom() if name in shells else None
        result[name] = own
    return result
