"""Class activation maps of chosen particles: where in its subtomogram a class was seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tomoline.contracts import VolumeTransform
from tomoline.errors import InputError
from tomoline.evaluation.matching import match_one_to_one
from tomoline.evaluation.scores import COORDINATES
from tomoline.infer import choose_device
from tomoline.io.annotations import read_occupancy, read_truth
from tomoline.io.atomic import write_text
from tomoline.io.mrc import open_volume
from tomoline.io.subtomograms import write_activation
from tomoline.io.tables import ACCEPTED, read_particles, table_classes
from tomoline.log import get_logger
from tomoline.networks.activation import Averaging, class_activation
from tomoline.networks.weights import ModelCard, load_network
from tomoline.ops.patches import box_starts, cut_patches, volume_mean
from tomoline.report.activation import NetworkMap, ShownParticle, activation_page
from tomoline.settings import ActivationSettings, EvaluateSettings, validated
from tomoline.stages.evaluate import true_labels, truth_options
from tomoline.stages.members import of_members

SETTINGS = ActivationSettings
BATCH = 16
log = get_logger(__name__)


@dataclass(frozen=True)
class Seen:
    """What a network made of boxes: places `(N,)` in its classes, the probability of each among
    the structures, and the maps `(N, b, b, b)` of these classes."""

    card: ModelCard
    label: NDArray[np.int64]
    probability: NDArray[np.float64]
    maps: NDArray[np.float32]


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    settings: ActivationSettings,
    tomogram: str,
    dataset: Mapping[str, Any],
    evaluate: Mapping[str, Any],
    tilt_series: str | None = None,
) -> None:
    """Write the maps of chosen particles of one tomogram.

    Inputs `particles`, `volume` and `transform` (prepared), `card`, `card_2` and so on (of the
    networks), and where there is a truth `truth` and `occupancy`. Outputs `page` (HTML) and `maps`
    (HDF5: `particle_id (N,)`, and a group a network with `maps (N, b, b, b)`, `named` and
    `probability (N,)`). `evaluate` are that stage's settings, for how the truth is read.
    """
    transform = VolumeTransform.load(inputs["transform"])
    table = read_particles(inputs["particles"])
    chosen = chosen_particles(table, settings, tomogram)
    centres = transform.to_prepared(chosen[COORDINATES].to_numpy(float))
    volume = np.asarray(open_volume(inputs["volume"]), np.float32)
    seen = [seen_by(Path(card), volume, centres) for card in of_members(inputs, "card")]
    known = validated(EvaluateSettings, evaluate, source="evaluate")
    truth = _truth(inputs, transform, known, dataset, tilt_series, table_classes(table))
    shown = _shown(chosen, centres, volume, seen, truth, known.hit_distance_vox)
    write_activation(
        outputs["maps"], chosen["particle_id"].to_numpy(np.int64),
        {s.card.name: (s.maps, [s.card.classes[k] for k in s.label], s.probability) for s in seen},
    )  # fmt: skip
    page = activation_page(
        shown, tomogram=tomogram, dataset=str(dataset.get("name", "")),
        voxel_size_angstrom=transform.prepared_voxel_size_angstrom,
    )  # fmt: skip
    write_text(outputs["page"], page)
    log.info("maps of %d particles by %d networks", len(chosen), len(seen))


def chosen_particles(
    table: pd.DataFrame, settings: ActivationSettings, tomogram: str
) -> pd.DataFrame:
    """The accepted particles that are shown: of each class those of the highest score, then those
    that are asked for by number.

    Raises
    ------
    InputError
        For a number that no accepted particle has.
    """
    accepted = table[table["status"] == ACCEPTED]
    asked = settings.particles.get(tomogram, [])
    missing = sorted(set(asked) - set(accepted["particle_id"]))
    if missing:
        raise InputError(
            "activation.particles", expected=f"numbers of accepted particles of {tomogram}",
            found=", ".join(map(str, missing)),
            remedy="take them from the column particle_id of its particles.csv",
        )  # fmt: skip
    best = accepted.sort_values(["score", "particle_id"], ascending=[False, True], kind="stable")
    parts = [
        best[best["class"] == name].head(settings.per_class)
        for name in [*table_classes(table)]
    ]  # fmt: skip
    parts.append(accepted[accepted["particle_id"].isin(asked)])
    return pd.concat(parts).drop_duplicates("particle_id").reset_index(drop=True)


def seen_by(folder: Path, volume: NDArray[np.float32], centres: NDArray[np.float64]) -> Seen:
    """Run a network on boxes about centres `(n, 3)` of a prepared volume, in full precision."""
    card, network = load_network(folder)
    if card.role != "classifier" or (card.names_whole and not isinstance(network, Averaging)):
        raise InputError(
            folder, expected="a classifier that names voxels, or averages its last maps (dsmnet, "
            "densenet)", found=f"a {card.role} ({card.network})",
            remedy="take it out of activation.models",
        )  # fmt: skip
    device = choose_device("auto")
    network = network.to(device).eval()
    assert card.box_vox is not None
    shape = (0, *[card.box_vox] * 3)
    labels, shares, maps = [np.empty(0, np.int64)], [np.empty(0)], [np.empty(shape, np.float32)]
    patches = cut_patches(volume, centres, box_vox=card.box_vox, fill=volume_mean(volume))
    boxes = np.array([patch.values for patch in patches], np.float32).reshape(-1, *shape[1:])
    for start in range(0, len(boxes), BATCH):
        x = torch.from_numpy(boxes[start : start + BATCH])[:, None].to(device)
        label, share, found = _maps(card, network, x)
        labels.append(label.cpu().numpy())
        shares.append(share.double().cpu().numpy())
        maps.append(found.cpu().numpy())
    return Seen(card, np.concatenate(labels), np.concatenate(shares), np.concatenate(maps))


def _maps(card: ModelCard, network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Class, its probability among the structures, and the class's map of each box."""
    with torch.no_grad():
        logits = network(x).float()
        p = logits[:, 1:].softmax(1)
        if not card.names_whole:  # the voxels within a quarter of the box name it
            middle = slice(x.shape[-1] // 4, -(x.shape[-1] // 4))
            whole = logits.softmax(1)
            p = whole[:, 1:, middle, middle, middle].mean((2, 3, 4))
            p = p / p.sum(1, keepdim=True).clamp_min(1e-12)
        share, label = p.max(1)
        label = label + 1
        if not card.names_whole:
            return label, share, whole[torch.arange(len(x)), label]
    assert isinstance(network, Averaging)
    return label, share, class_activation(network, x, label)


@dataclass(frozen=True)
class _Truth:
    """True centres `(n, 3)` and classes, and where there is an occupancy the class of each voxel
    of the prepared volume."""

    centres: NDArray[np.float64]
    names: list[str]
    labels: NDArray[np.int64] | None


def _truth(
    inputs: Mapping[str, Any],
    transform: VolumeTransform,
    settings: EvaluateSettings,
    dataset: Mapping[str, Any],
    tilt_series: str | None,
    classes: list[str],
) -> _Truth | None:
    if not inputs.get("truth"):
        return None
    occupancy = inputs.get("occupancy")
    options = truth_options(transform, settings, dataset, tilt_series, occupancy)
    truth = read_truth(inputs["truth"], options)
    labels = None
    if occupancy:
        ids = read_occupancy(
            occupancy, transform.given_shape_zyx, z_offset_vox=options.z_offset_vox
        )
        labels = true_labels(truth, ids, classes, transform)
    centres = truth[COORDINATES].to_numpy(float)
    return _Truth(centres, [str(name) for name in truth["class"]], labels)


def _shown(
    chosen: pd.DataFrame,
    centres: NDArray[np.float64],
    volume: NDArray[np.float32],
    seen: Sequence[Seen],
    truth: _Truth | None,
    hit_distance_vox: float,
) -> list[ShownParticle]:
    edge = seen[0].maps.shape[1]
    middle = edge // 2
    patches = cut_patches(volume, centres, box_vox=edge, fill=volume_mean(volume))
    true = ["" for _ in range(len(chosen))]
    if truth is not None:
        given = chosen[COORDINATES].to_numpy(float)
        pairs = match_one_to_one(given, truth.centres, hit_distance_vox).true_of_prediction
        true = [truth.names[k] if k >= 0 else "no particle" for k in pairs]
    found = []
    numbers, scores = chosen["particle_id"].to_numpy(int), chosen["score"].to_numpy(float)
    for k, patch in enumerate(patches):
        maps = [
            NetworkMap(
                network=one.card.name, named=one.card.classes[one.label[k]],
                probability=float(one.probability[k]),
                section=one.maps[k][one.maps.shape[1] // 2],
            )
            for one in seen
        ]  # fmt: skip
        found.append(
            ShownParticle(
                particle_id=int(numbers[k]), name=str(chosen["class"].iloc[k]),
                score=float(scores[k]), section=patch.values[middle], true=true[k],
                truth=_true_section(truth, centres[k], edge), maps=maps,
            )
        )  # fmt: skip
    return found


def _true_section(
    truth: _Truth | None, centre: NDArray[np.float64], edge: int
) -> NDArray[np.uint8] | None:
    """Where the middle section `(edge, edge)` about a centre lies in particles."""
    if truth is None or truth.labels is None:
        return None
    z, y, x = (int(v) for v in box_starts(centre[None], edge)[0])
    section = np.zeros((edge, edge), np.uint8)
    labels, z = truth.labels, z + edge // 2
    if not 0 <= z < labels.shape[0]:
        return section
    for j in range(max(y, 0), min(y + edge, labels.shape[1])):
        low, high = max(x, 0), min(x + edge, labels.shape[2])
        section[j - y, low - x : high - x] = labels[z, j, low:high] > 0
    return section
