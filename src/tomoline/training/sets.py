"""Recipe for networks of whole subtomograms that learn from simulated sets with their truth.

The sets are the HDF5 files of `snakemake simulate_subtomograms`. Any network is taught for which
`tomoline.networks.outputs.outputs_of` finds results: class logits `(B, C)`, logits of the
particle's mask `(B, 2, Z, Y, X)`, its density `(B, 1, Z, Y, X)`, or several of them (DSM-Net).

Loss (Liu et al. 2018, eq. 1 and 2, sections 3.2 and 3.3): the sum over the tasks that the network
has of `weight x loss`; cross-entropy of the class, cross-entropy of the voxels, mean squared error
of the density, each a mean over its items.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tomoline.contracts import BACKGROUND
from tomoline.errors import InputError
from tomoline.io.subtomograms import SimulatedBoxes, open_simulated
from tomoline.networks.outputs import Outputs
from tomoline.training.augment import random_flip, random_intensity
from tomoline.training.forward import all_outputs

Split = Literal["train", "validation", "test"]
CLASSIFICATION, SEGMENTATION, RECOVERY = "classification", "segmentation", "recovery"
VALIDATION_BATCH = 32
SETS_APART = 1_000_000  # tomograms of a set have smaller numbers


@dataclass(frozen=True)
class TrueBoxes:
    """Subtomograms with their truth, as many as fit the memory.

    `values` and `clean` `(N, b, b, b)` float16, `masks` `(N, b, b, b)` uint8 (the latter two None
    where nobody asked for them); `labels (N,)` are places in `classes`, the first background;
    `tomogram (N,)` tells tomograms apart, those of other sets too.
    """

    values: NDArray[np.float16]
    labels: NDArray[np.int64]
    tomogram: NDArray[np.int64]
    classes: tuple[str, ...]
    masks: NDArray[np.uint8] | None = None
    clean: NDArray[np.float16] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which subtomograms of a set are read.

    `classes` empty: all that the first set has; those of `leave_out` are never read. `most` are
    drawn evenly from all, as `seed` says; 0: all. `truth` says which targets are read too.
    """

    classes: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    most: int = 0
    truth: tuple[str, ...] = (CLASSIFICATION, SEGMENTATION, RECOVERY)
    seed: int = 0


def classes_of(paths: Sequence[Path], choice: Choice) -> tuple[str, ...]:
    """Names of the classes that are learnt from sets, background first.

    Raises
    ------
    InputError
        For no set, a class that the first one has not, or none that is left.
    """
    if not paths:
        raise InputError(
            "train.sets", expected="files of simulated subtomograms", found="none",
            remedy="name results/simulated/NAME/subtomograms.h5 in train.sets",
        )  # fmt: skip
    with open_simulated(paths[0]) as first:
        known = first.classes[1:]
    unknown = sorted({*choice.classes, *choice.leave_out} - set(known))
    kept = [n for n in choice.classes or known if n not in choice.leave_out]
    if unknown or not kept:
        raise InputError(
            paths[0], expected=f"classes out of {', '.join(known)}, and one that is learnt",
            found=", ".join(unknown) or "none that is not left out",
            remedy="correct train.classes or train.leave_out",
        )  # fmt: skip
    return (BACKGROUND, *kept)


def read_sets(paths: Sequence[Path], split: Split, choice: Choice) -> TrueBoxes:
    """Read the subtomograms of a split of all sets, in the order of the files.

    Raises
    ------
    InputError
        For sets of different edges, a set without the classes, or a split without subtomograms.
    """
    classes = classes_of(paths, choice)
    wanted = [_wanted(Path(path), split, classes) for path in paths]
    places = [(k, int(place)) for k, part in enumerate(wanted) for place in part]
    if not places:
        raise InputError(
            paths[0], expected=f"subtomograms of the split {split}", found="none",
            remedy="simulate more tomograms (simulate.tomograms), or set simulate.split",
        )  # fmt: skip
    if choice.most and choice.most < len(places):
        drawn = np.random.default_rng([choice.seed, 17]).permutation(len(places))[: choice.most]
        places = [places[n] for n in np.sort(drawn)]
    parts = []
    for k, path in enumerate(paths):
        with open_simulated(path) as boxes:
            own = [place for n, place in places if n == k]
            parts.append(_read(boxes, own, classes, choice))
    edges = {part.values.shape[1] for part in parts}
    if len(edges) > 1:
        raise InputError(
            paths[0], expected="sets of one edge", found=f"edges {sorted(edges)}",
            remedy="train on sets of the same simulate.box_vox",
        )  # fmt: skip
    return _joined(parts)


def _wanted(path: Path, split: str, classes: tuple[str, ...]) -> NDArray[np.intp]:
    with open_simulated(path) as boxes:
        names = np.array(boxes.classes)[boxes.label]
        return np.flatnonzero((boxes.split == split) & np.isin(names, classes))


def _read(
    boxes: SimulatedBoxes, places: list[int], classes: tuple[str, ...], choice: Choice
) -> TrueBoxes:
    shape = (len(places), *[boxes.box_vox] * 3)
    values = np.empty(shape, np.float16)
    masks = np.empty(shape, np.uint8) if SEGMENTATION in choice.truth else None
    clean = np.empty(shape, np.float16) if RECOVERY in choice.truth else None
    for k, place in enumerate(places):
        values[k] = boxes.values[place]
        if masks is not None:
            masks[k] = boxes.mask[place]
        if clean is not None:
            clean[k] = boxes.clean[place]
    labels = [classes.index(boxes.classes[boxes.label[place]]) for place in places]
    tomogram = boxes.tomogram[places]
    return TrueBoxes(values, np.array(labels, np.int64), tomogram, classes, masks, clean)


def _joined(parts: Sequence[TrueBoxes]) -> TrueBoxes:
    def of(name: str) -> Any:
        found = [getattr(part, name) for part in parts]
        return None if found[0] is None else np.concatenate(found)

    apart = [part.tomogram + k * SETS_APART for k, part in enumerate(parts)]
    return TrueBoxes(
        of("values"), of("labels"), np.concatenate(apart), parts[0].classes, of("masks"),
        of("clean"),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SetOptions:
    """Batches and loss."""

    batch_size: int = 64
    weights: Mapping[str, float] | None = None  # of the tasks' losses; None: 1 each
    box_vox: int = 0  # cut out of the middle of each; 0: all of it
    off_centre_vox: float = 0.0  # SD a direction of what is cut, within the set's boxes
    augment: bool = True  # flips, and changes of the grey values
    label_smoothing: float = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    seed: int = 0
    rank: int = 0
    processes: int = 1


def losses_of(
    found: Outputs, batch: Mapping[str, Tensor], *, label_smoothing: float = 0.0
) -> dict[str, Tensor]:
    """Loss of each task that the network has; `batch` holds `labels`, `mask` and `clean` on the
    same device, as far as they are needed."""
    losses = {}
    if found.classes is not None:
        losses[CLASSIFICATION] = F.cross_entropy(
            found.classes, batch["labels"], label_smoothing=label_smoothing
        )
    if found.segmentation is not None:
        losses[SEGMENTATION] = F.cross_entropy(found.segmentation, batch["mask"].long())
    if found.recovery is not None:
        losses[RECOVERY] = F.mse_loss(found.recovery[:, 0], batch["clean"].float())
    return losses


def total_loss(losses: Mapping[str, Tensor], weights: Mapping[str, float] | None) -> Tensor:
    """Weighted sum of the tasks' losses."""
    return torch.stack([(weights or {}).get(k, 1.0) * v for k, v in losses.items()]).sum()


class SetRecipe:
    """Batches, loss and validation figures; see the module's text."""

    def __init__(self, learnt: TrueBoxes, held_out: TrueBoxes, options: SetOptions) -> None:
        self.learnt, self.held_out, self.options = learnt, held_out, options

    @property
    def steps(self) -> int:
        """Batches of an epoch: every subtomogram once, but for what fills no batch."""
        return max(1, len(self.learnt) // (self.options.batch_size * self.options.processes))

    def epoch(self, epoch: int) -> Iterator[Mapping[str, Tensor]]:
        """Batches of an epoch; what dropout leaves out follows from the epoch too."""
        o = self.options
        torch.manual_seed(o.seed * 1_000_003 + epoch)
        rng = np.random.default_rng([o.seed, epoch, 19])
        order = rng.permutation(len(self.learnt))[o.rank :: o.processes]
        changes = np.random.default_rng([o.seed, epoch, 23, o.rank])
        for k in range(self.steps):
            chosen = order[k * o.batch_size : (k + 1) * o.batch_size]
            yield batch_of(self.learnt, chosen, o, changes)

    def loss(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Weighted sum of the losses of the network's tasks."""
        o = self.options
        smoothing = o.label_smoothing if network.training else 0.0
        found = all_outputs(network, batch["volume"], device=o.device, precision=o.precision)
        here = {k: v.to(o.device) for k, v in batch.items() if k != "volume"}
        return total_loss(losses_of(found, here, label_smoothing=smoothing), o.weights)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Figures of `measure` on the held-out subtomograms, with the weighted `loss`."""
        return measure(network, self.held_out, self.options).figures


@dataclass(frozen=True)
class Measured:
    """What a network makes of subtomograms whose truth is known.

    `figures`: the weighted `loss` and, for each task that the network has, its own.
    `object_accuracy` is the share named rightly, `class_accuracy` the mean over the classes;
    `voxel_accuracy` and `mean_iou` are of particle and surroundings (two classes) over all voxels
    together; `recovery_error` is the mean squared error of the density, `recovery_correlation`
    the mean over subtomograms of the correlation with it. `logits (N, C)`, None without classes.
    """

    figures: dict[str, float]
    logits: NDArray[np.float32] | None


def measure(network: nn.Module, boxes: TrueBoxes, options: SetOptions) -> Measured:
    """Run a network on all subtomograms and compare with their truth."""
    sums: dict[str, float] = {}
    voxels, correlations = np.zeros((2, 2), np.int64), []
    logits: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(boxes), VALIDATION_BATCH):
            chosen = np.arange(start, min(start + VALIDATION_BATCH, len(boxes)))
            batch = batch_of(boxes, chosen, options)
            found = all_outputs(
                network, batch["volume"], device=options.device, precision=options.precision
            )
            found = Outputs(*(None if part is None else part.cpu() for part in found))
            for task, value in losses_of(found, batch).items():
                sums[task] = sums.get(task, 0.0) + float(value) * len(batch["labels"])
            if found.classes is not None:
                logits.append(found.classes)
            if found.segmentation is not None:
                voxels += _counts(found.segmentation.argmax(1), batch["mask"])
            if found.recovery is not None:
                correlations += _correlations(found.recovery[:, 0], batch["clean"].float())
    means = {task: torch.tensor(value / len(boxes)) for task, value in sums.items()}
    figures = {"loss": float(total_loss(means, options.weights))}
    named = torch.cat(logits) if logits else None
    if named is not None:
        figures |= _accuracy(named.argmax(1), torch.from_numpy(boxes.labels))
    if SEGMENTATION in means:
        right = voxels.diagonal().astype(float)
        union = voxels.sum(0) + voxels.sum(1) - right
        figures |= {
            "voxel_accuracy": float(right.sum() / voxels.sum()),
            "mean_iou": float(np.mean(right[union > 0] / union[union > 0])),
        }
    if RECOVERY in means:
        figures["recovery_error"] = float(means[RECOVERY])
        figures["recovery_correlation"] = float(np.mean(correlations))
    return Measured(figures, None if named is None else named.numpy())


def batch_of(
    boxes: TrueBoxes, chosen: NDArray[Any], options: SetOptions,
    rng: np.random.Generator | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """`volume (B, 1, b, b, b)` float32, `labels (B,)` and the targets that are there, `mask` uint8
    and `clean` float16 `(B, b, b, b)`; with `rng` off centre, turned over and changed in grey at
    random, as far as the options say."""
    names = {"volume": boxes.values, "mask": boxes.masks, "clean": boxes.clean}
    whole = {name: given for name, given in names.items() if given is not None}
    edge = options.box_vox or boxes.values.shape[1]
    arrays = {
        name: np.empty((len(chosen), edge, edge, edge), given.dtype)
        for name, given in whole.items()
    }
    for k, place in enumerate(chosen):
        cut = _cut(boxes.values.shape[1], edge, options.off_centre_vox, rng)
        parts = [given[place][cut] for given in whole.values()]
        if rng is not None and options.augment:
            parts = list(random_flip(rng, *parts))
            parts[0] = random_intensity(rng, parts[0].astype(np.float32))
        for array, values in zip(arrays.values(), parts, strict=True):
            array[k] = values
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    batch["volume"] = batch["volume"].float()[:, None]
    batch["labels"] = torch.from_numpy(boxes.labels[chosen])
    return batch


def _cut(
    whole: int, edge: int, off_centre_vox: float, rng: np.random.Generator | None
) -> tuple[slice, ...]:
    """What is cut of a box: its middle, voxel `whole // 2` at `edge // 2`, or somewhat off it."""
    start, most = whole // 2 - edge // 2, whole - edge
    if rng is None or not off_centre_vox:
        return (slice(start, start + edge),) * 3
    moved = np.rint(start + rng.normal(0, off_centre_vox, 3)).clip(0, most).astype(int)
    return tuple(slice(int(a), int(a) + edge) for a in moved)


def _counts(found: Tensor, true: Tensor) -> NDArray[np.int64]:
    """Voxels by truth (rows) and by what was found, `(2, 2)`."""
    joint = (2 * true.long() + found).flatten()
    counts: NDArray[np.int64] = torch.bincount(joint, minlength=4).reshape(2, 2).numpy()
    return counts


def _correlations(found: Tensor, true: Tensor) -> list[float]:
    a, b = found.flatten(1), true.flatten(1)
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return [float(v) for v in F.cosine_similarity(a, b, dim=1)]


def _accuracy(named: Tensor, labels: Tensor) -> dict[str, float]:
    right = (named == labels).float()
    shares = [float(right[labels == k].mean()) for k in np.unique(labels.numpy())]
    return {"object_accuracy": float(right.mean()), "class_accuracy": float(np.mean(shares))}
