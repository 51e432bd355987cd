"""Recipe for HydraPicker: crops of micrographs, anchors and the three losses (section 3.2).

`l = l_loc + lambda_cls l_cls + lambda_bias l_bias` (equation 1). Each batch comes from one data
set and passes through that set's head alone, so no other head learns from it but through l_bias.
In the first phase all sets share one head; in the second each has its own, and `general` moves
towards them by l_bias only: the point of the least mean distance, the heads' geometric median.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import affine_transform
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from tomoline.networks.hydrapicker import CELL_PX, GENERAL, REACH, HydraPicker
from tomoline.ops.micrographs import EXTENT_PX, Floats, Image, anchors, iou_of_squares

ALPHA = 0.25
ANCHOR_IOU = 0.6
LEAST_EDGE_PX = 520  # of a micrograph that is rotated and cropped to 368: 368 sqrt 2


@dataclass(frozen=True)
class Labelled:
    """A prepared micrograph and its particles `(n, 2)`, yx in its pixels."""

    image: Image
    yx: Floats


Sets = Mapping[str, Sequence[Labelled]]


def focal_loss(logits: Tensor, target: Tensor, gamma: float = 2.0, alpha: float = ALPHA) -> Tensor:
    """Equation 3, summed: `-1/2 alpha_c (1 - p)^gamma log p`, p the right class's probability.

    alpha for particles, 1 - alpha for background.
    """
    signed = torch.where(target > 0.5, logits, -logits)
    log_p = F.logsigmoid(signed)
    weight = torch.where(target > 0.5, alpha, 1 - alpha)
    return -0.5 * (weight * (1 - log_p.exp()) ** gamma * log_p).sum()


def bias_loss(network: HydraPicker) -> Tensor:
    """Equation 4: mean over heads of the Euclidean distance of all weights to `general`'s."""
    general = _weights(network.head(GENERAL))
    names = network.specialised()
    distances = [torch.linalg.vector_norm(_weights(network.head(n)) - general) for n in names]
    return torch.stack(distances).mean() if distances else general.new_zeros(())


def _weights(head: nn.Module) -> Tensor:
    return torch.cat([p.reshape(-1) for p in head.parameters()])


def assigned(yx: Floats, cells: tuple[int, int], extent_px: float = EXTENT_PX) -> NDArray[np.int64]:
    """Say which particle each cell `(I, J)` answers for; -1 for none.

    Each particle is given a cell of its own, the nearest within the offsets' reach (the authors'
    forced best anchor; where two particles want one cell, the sum of distances decides). Then each
    free cell whose box overlaps a particle's by an IoU of more than 0.6 is that particle's too.
    """
    owner = np.full(cells, -1)
    if not len(yx):
        return owner
    centres = anchors(cells).reshape(-1, 2)
    apart = np.abs(yx[:, None] - centres[None])
    reachable: NDArray[np.bool_] = np.all(apart <= REACH * CELL_PX, axis=-1)
    cost = np.where(reachable, apart.sum(-1), 1e6)
    near = np.unique(np.nonzero(reachable)[1])
    rows, columns = linear_sum_assignment(cost[:, near])
    flat = owner.ravel()
    for row, column in zip(rows, near[columns], strict=True):
        if reachable[row, column]:
            flat[column] = row
    overlap = iou_of_squares(centres, yx, extent_px)
    best = overlap.argmax(1)
    free = (flat < 0) & (overlap.max(1) > ANCHOR_IOU)
    flat[free] = best[free]
    return flat.reshape(cells)


def targets(yx: Floats, cells: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Offsets `(2, I, J)` in pixels (0 where there is no particle) and classes `(I, J)`."""
    owner = assigned(yx, cells)
    positive = owner >= 0
    offsets = np.zeros((*cells, 2), np.float32)
    if len(yx):
        offsets[positive] = (yx[owner[positive]] - anchors(cells)[positive]).astype(np.float32)
    return np.moveaxis(offsets, -1, 0), positive.astype(np.float32)


def detection_loss(
    output: Tensor, offsets: Tensor, classes: Tensor, *, gamma: float = 2.0, weight: float = 1.0
) -> Tensor:
    """`l_loc + lambda_cls l_cls` of outputs `(B, 3, I, J)`, a particle.

    Both sums are divided by the number of answering cells (at least one a micrograph), so that
    crowded micrographs do not outweigh sparse ones; distances are in cells.
    """
    positive = classes > 0.5
    count = positive.sum().clamp(min=len(output))
    apart = (output[:, :2] - offsets).abs().sum(1) / CELL_PX
    located = (apart * positive).sum()
    return (located + weight * focal_loss(output[:, 2], classes, gamma)) / count


def rotated(
    item: Labelled, centre: Floats, matrix: Floats, edge_px: int, fill: float = 0.0
) -> Labelled:
    """Cut a square of `edge_px` about `centre`, turned, mirrored or scaled by `matrix` (2, 2).

    Point `p` of the micrograph lies at `matrix (p - centre) + (edge - 1) / 2` of the crop;
    particles outside the crop are left out.
    """
    middle = np.full(2, (edge_px - 1) / 2)
    back = np.linalg.inv(matrix)
    image = affine_transform(
        item.image, back, offset=centre - back @ middle, output_shape=(edge_px, edge_px),
        order=1, mode="constant", cval=fill,
    )  # fmt: skip
    yx = (item.yx - centre) @ matrix.T + middle
    inside = ((yx > -0.5) & (yx < edge_px - 0.5)).all(1)
    return Labelled(image.astype(np.float32, copy=False), yx[inside])


def noise_padded(item: Labelled, edge_px: int, rng: np.random.Generator) -> Labelled:
    """Pad to `edge_px` with Gaussian noise of the background's mean and SD (the paper).

    Background is what is farther than a particle's extent from every particle.
    """
    ny, nx = item.image.shape
    high, wide = max(0, edge_px - ny), max(0, edge_px - nx)
    if not (high or wide):
        return item
    mean, sd = background_of(item)
    before = (high // 2, wide // 2)
    shape = (ny + high, nx + wide)
    image = rng.normal(mean, sd, shape).astype(np.float32)
    image[before[0] : before[0] + ny, before[1] : before[1] + nx] = item.image
    return Labelled(image, item.yx + np.asarray(before))


def background_of(item: Labelled) -> tuple[float, float]:
    """Mean and SD of the pixels that belong to no particle; of all where particles are all."""
    free = np.ones(item.image.shape, bool)
    half = int(EXTENT_PX / 2) + 1
    for y, x in np.rint(item.yx).astype(int):
        free[max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1] = False
    pixels = item.image[free] if free.any() else item.image
    return float(pixels.mean()), float(pixels.std())


@dataclass(frozen=True, kw_only=True)
class HydraOptions:
    """Batches and loss; see `settings.TrainPickerSettings` for what each means."""

    phase: Literal["single", "heads", "new_head"] = "single"
    new_head: str = ""
    crop_px: int = 368
    batch_size: int = 4
    steps_per_epoch: int = 20
    gamma: float = 2.0
    class_weight: float = 1.0
    bias_weight: float = 0.01
    scale_jitter: float = 0.1
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    seed: int = 1


class HydraRecipe:
    """Batches, loss and validation of a phase; `train` and `held_out` by data set.

    `single`: every set through `general`. `heads`: each through its own, with l_bias. `new_head`:
    the head of that name alone learns, l_bias ties it to the frozen `general`.
    """

    def __init__(self, train: Sets, held_out: Sets, options: HydraOptions) -> None:
        self.train, self.held_out, self.options = train, held_out, options
        self.names = sorted(train)

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return self.options.steps_per_epoch

    def head_of(self, name: str) -> str:
        """The head that a data set's batches pass through."""
        options = self.options
        return {"single": GENERAL, "heads": name, "new_head": options.new_head}[options.phase]

    def epoch(self, epoch: int) -> Iterator[Mapping[str, Tensor]]:
        """Batches of an epoch: each of one data set, the sets in turn, in shuffled order."""
        rng = np.random.default_rng((self.options.seed, epoch))
        turn: list[int] = []
        for _ in range(self.steps):
            turn = turn or list(rng.permutation(len(self.names)))
            which = int(turn.pop())
            items = self.train[self.names[which]]
            crops = [
                self._crop(items[int(rng.integers(len(items)))], rng)
                for _ in range(self.options.batch_size)
            ]
            yield {**_stacked(crops), "set": torch.tensor(which)}

    def loss(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Equation 1 of one batch; in the single-head phase without l_bias."""
        picker = cast(HydraPicker, network)
        options = self.options
        if options.phase == "new_head":
            only_head_learns(picker, options.new_head)
        output = self._output(picker, batch["volume"], self.names[int(batch["set"])])
        loss = detection_loss(
            output, batch["offsets"].to(output.device), batch["classes"].to(output.device),
            gamma=options.gamma, weight=options.class_weight,
        )  # fmt: skip
        if options.phase == "single":
            return loss
        return loss + options.bias_weight * bias_loss(picker)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Mean detection loss over the held-out micrographs, each set counting alike."""
        picker = cast(HydraPicker, network)
        by_set = []
        for name in sorted(self.held_out):
            losses = []
            for item in self.held_out[name]:
                batch = _stacked([_whole(item)])
                output = self._output(picker, batch["volume"], name)
                losses.append(float(detection_loss(
                    output.cpu(), batch["offsets"], batch["classes"], gamma=self.options.gamma,
                    weight=self.options.class_weight,
                )))  # fmt: skip
            by_set.append(float(np.mean(losses)))
        return {"loss": float(np.mean(by_set))} if by_set else {}

    def _output(self, picker: HydraPicker, volume: Tensor, name: str) -> Tensor:
        kind = torch.bfloat16 if self.options.precision == "bfloat16" else torch.float32
        x = volume.to(self.options.device, kind)
        head = self.head_of(name)
        return cast(Tensor, picker(x, head if head in picker.heads else GENERAL))

    def _crop(self, item: Labelled, rng: np.random.Generator) -> Labelled:
        """A turned, mirrored and slightly scaled crop, grey values changed a little."""
        edge = self.options.crop_px
        wide = max(int(np.ceil(edge * np.sqrt(2))), min(LEAST_EDGE_PX, edge * 2))
        item = noise_padded(item, wide, rng)
        room = np.asarray(item.image.shape) - wide
        centre = rng.uniform(0, 1, 2) * room + (wide - 1) / 2
        angle, mirror = rng.uniform(0, 2 * np.pi), rng.choice([-1.0, 1.0])
        zoom = np.exp(rng.uniform(-1, 1) * self.options.scale_jitter)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        made = rotated(item, centre, zoom * turn @ np.diag([1.0, mirror]), edge)
        grey = made.image * rng.uniform(0.8, 1.25) + rng.uniform(-0.1, 0.1)
        return Labelled(grey.astype(np.float32), made.yx)


def only_head_learns(network: HydraPicker, name: str) -> None:
    """Freeze body and all other heads (few-shot learning)."""
    for key, parameter in network.named_parameters():
        parameter.requires_grad_(key.startswith(f"heads.{name}."))


def _whole(item: Labelled) -> Labelled:
    ny, nx = item.image.shape
    fill = ((0, -ny % CELL_PX), (0, -nx % CELL_PX))
    return Labelled(np.pad(item.image, fill, mode="symmetric"), item.yx)


def _stacked(crops: Sequence[Labelled]) -> dict[str, Tensor]:
    images = np.stack([crop.image for crop in crops])[:, None]
    cells = (images.shape[2] // CELL_PX, images.shape[3] // CELL_PX)
    made = [targets(crop.yx, cells) for crop in crops]
    return {
        "volume": torch.from_numpy(images),
        "offsets": torch.from_numpy(np.stack([offsets for offsets, _ in made])),
        "classes": torch.from_numpy(np.stack([classes for _, classes in made])),
    }
