"""How an MSDNet is laid out for the Triton kernels: buffers, packed weights, division of the taps.

Made once for a network's structure; `triton_msdnet` explains why it is so, and runs it.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tomoline.networks.schedule import dilations

if TYPE_CHECKING:  # windows are planned by jobs that do not load torch
    from torch import Tensor

    from tomoline.networks.msdnet import MSDNet

CHUNK = 8  # channels of a group, as in triton_kernels
WIDEST_BLOCK = 64  # rows of the inner dimension that a kernel takes at once, at most
WIDEST_TILE = 64  # columns of a product's tile, at most
DEVICE_BYTES_A_S, L1_BYTES_A_S = 4.3e12, 33e12  # H200: measured copy, 128 bytes a clock and core

Pull = Literal["none", "x", "all"]
Shape = tuple[int, int, int]
Schedule = tuple[tuple[int, ...], ...]
TAPS = list(itertools.product((-1, 0, 1), repeat=3))
PULLED: dict[Pull, Shape] = {"none": (0, 0, 0), "x": (0, 0, 1), "all": (1, 1, 1)}


@dataclass(frozen=True)
class Geometry:
    """Places of a batch's voxels in a buffer with zero margins after each row, section, volume.

    The margin after a row is also that before the next; `lead` voxels come before the first.
    """

    batch: int
    shape: Shape
    margins: Shape

    @property
    def voxels(self) -> int:
        """Real voxels of the batch."""
        return self.batch * math.prod(self.shape)

    @property
    def padded(self) -> Shape:
        """Voxels of a volume along z, y, x with margins."""
        z, y, x = (n + m for n, m in zip(self.shape, self.margins, strict=True))
        return z, y, x

    def offset(self, shift: Shape) -> int:
        """Distance in the buffer between voxels `shift` (zyx) apart."""
        _, y, x = self.padded
        return (shift[0] * y + shift[1]) * x + shift[2]

    @property
    def lead(self) -> int:
        """Voxels before the first, as far as a shift can reach."""
        return self.offset(self.margins)

    @property
    def places(self) -> int:
        """Voxels of the buffer."""
        return self.lead + self.batch * math.prod(self.padded)

    def arguments(self) -> tuple[int, ...]:
        """What kernels take: z, y, x with margins and the lead."""
        return (*self.padded, self.lead)

    def inner(self, buffer: Tensor) -> Tensor:
        """The real voxels `(..., B, Z, Y, X)` of a buffer `(..., places)`."""
        z, y, x = self.shape
        whole = buffer[..., self.lead :]
        whole = whole.view(*buffer.shape[:-1], self.batch, *self.padded)
        return whole[..., :z, :y, :x]


@dataclass(frozen=True)
class Layer:
    """One product: which chunks at which shifts it reads, and its place among the packed weights.

    `gather (rows, tile columns)` and `turned (channels, rows)` index the flat weights; where they
    point to the entry after the last, the weight is zero.
    """

    first_slot: int
    groups: int  # groups of 8 channels it reads
    shifts: tuple[Shape, ...]  # pulled, voxels
    columns: int
    tile: int  # columns a program computes
    pushed: tuple[Shape, ...]  # shift of each column, voxels; empty: the columns are the maps
    gather: NDArray[np.int64]
    sources: tuple[tuple[int, Shape], ...]  # backward: plane and shift of each row
    turned: NDArray[np.int64]

    @property
    def chunks(self) -> int:
        """Chunks of the table, filled up to whole blocks."""
        return len(self.gather) // CHUNK


class Plan:
    """Everything about a network's structure that its weights and the volume do not change."""

    def __init__(
        self, in_channels: int, classes: int, width: int, schedule: Schedule, pull: Pull
    ) -> None:
        self.in_channels, self.classes, self.width = in_channels, classes, width
        self.schedule, self.pull = schedule, pull
        # Maps start where a layer's maps do not straddle two groups (when w is a power of two).
        step = math.gcd(width, CHUNK)
        self.base = -(-in_channels // step) * step
        self.slots = self.base + len(schedule) * width
        self.groups = -(-self.slots // CHUNK)
        self.reach: int = max(max(layer) for layer in schedule)
        z, y, x = (flag * self.reach for flag in PULLED[pull])
        self.margins: Shape = (z, y, x)
        starts = list(itertools.accumulate(
            [width * self.channels(i) * 27 for i in range(len(schedule))], initial=0
        ))  # fmt: skip
        self.flat = starts[-1] + classes * self.channels(len(schedule))
        self.layers = [self._layer(i, starts[i]) for i in range(len(schedule))]
        self.head = self._head(starts[-1])
        everything = [*self.layers, self.head]
        self.starts = _offsets([layer.gather.size for layer in everything])
        self.turned_starts = _offsets([layer.turned.size for layer in everything])
        self.table_starts = _offsets([layer.chunks for layer in everything])
        self.source_starts = _offsets([len(layer.sources) for layer in everything])

    @property
    def columns(self) -> int:
        """Float32 columns a voxel that wait for their sum."""
        return max((len(layer.pushed) for layer in self.layers), default=0)

    def bytes_per_voxel(self, itemsize: int) -> float:
        """Device memory of maps and columns for each voxel, margins apart."""
        return float(self.groups * CHUNK * itemsize + 4 * self.columns)

    def channels(self, i: int) -> int:
        """Channels that layer i reads (the last layer: i = depth)."""
        return self.in_channels + i * self.width

    def _slots(self, i: int) -> NDArray[np.int64]:
        """Slot of each channel that layer i reads."""
        maps = self.base + np.arange(i * self.width)
        return np.concatenate([np.arange(self.in_channels), maps])

    def _groups(self, i: int) -> int:
        used = self.base + i * self.width if i else self.in_channels
        return -(-used // CHUNK)

    def _layer(self, i: int, start: int) -> Layer:
        steps, width, channels = self.schedule[i], self.width, self.channels(i)
        flags, slots, groups = PULLED[self.pull], self._slots(i), self._groups(i)
        split = [
            (_times(tap, flags, step), _times(tap, [1 - f for f in flags], step))
            for step in steps for tap in TAPS
        ]  # fmt: skip
        # Near shifts together, so that what one load brought into L1 serves the next.
        shifts = sorted({pulled for pulled, _ in split})
        pushed = [
            (j, shift)
            for j in range(width)
            for shift in dict.fromkeys(far for _, far in split[27 * j : 27 * j + 27])
        ]
        tile = min(max(16, power_of_two(len(pushed))), WIDEST_TILE)
        gather = np.full(
            (groups, len(shifts), CHUNK, round_up(len(pushed), tile)), self.flat, np.int64
        )
        turned = self._empty_turned(groups, 27 * width)
        sources = []
        for row, (tap, j) in enumerate(itertools.product(range(27), range(width))):
            near, far = split[27 * j + tap]
            flat = start + (j * channels + np.arange(channels)) * 27 + tap
            gather[slots // CHUNK, shifts.index(near), slots % CHUNK, pushed.index((j, far))] = flat
            turned[slots, row] = flat
            back = _times(TAPS[tap], (1, 1, 1), -steps[j])
            sources.append((j, back))
        sources += [(0, (0, 0, 0))] * (turned.shape[1] - len(sources))
        return Layer(
            self.base + i * width, groups, tuple(shifts), len(pushed), tile,
            () if self.pull == "all" else tuple(shift for _, shift in pushed),
            _fill_rows(gather.reshape(-1, gather.shape[-1]), self.flat),
            tuple(sources), turned,
        )  # fmt: skip

    def _empty_turned(self, groups: int, rows: int) -> NDArray[np.int64]:
        shape = round_up(groups * CHUNK, WIDEST_TILE), round_up(rows, WIDEST_BLOCK)
        return np.full(shape, self.flat, np.int64)

    def _head(self, start: int) -> Layer:
        depth = len(self.schedule)
        slots, groups, channels = self._slots(depth), self._groups(depth), self.channels(depth)
        tile = max(16, power_of_two(self.classes))
        gather = np.full((groups * CHUNK, tile), self.flat, np.int64)
        turned = self._empty_turned(groups, self.classes)
        flat = start + np.arange(self.classes)[None, :] * channels + np.arange(channels)[:, None]
        gather[slots, : self.classes] = flat
        turned[slots, : self.classes] = flat
        sources = [(n, (0, 0, 0)) for n in range(self.classes)]
        sources += [(0, (0, 0, 0))] * (turned.shape[1] - self.classes)
        return Layer(self.slots, groups, ((0, 0, 0),), self.classes, tile, (),
                     _fill_rows(gather, self.flat), tuple(sources), turned)  # fmt: skip

    def unpack(self) -> NDArray[np.int64]:
        """Where each flat weight's gradient lies among the layers' sums `(rows, channels)`."""
        place = np.full(self.flat + 1, -1, np.int64)
        start = 0
        for layer in [*self.layers, self.head]:
            channels, rows = layer.groups * CHUNK, layer.turned.shape[1]
            used = layer.turned[:channels].T
            place[used] = start + np.arange(used.size).reshape(rows, channels)
            start += used.size
        assert (place[:-1] >= 0).all(), "a weight has no gradient"
        return place[:-1]


def _times(shift: Sequence[int], flags: Sequence[int], step: int) -> Shape:
    z, y, x = (s * f * step for s, f in zip(shift, flags, strict=True))
    return z, y, x


def power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def round_up(n: int, step: int) -> int:
    return -(-n // step) * step


def _fill_rows(index: NDArray[np.int64], empty: int) -> NDArray[np.int64]:
    return np.pad(index, ((0, -len(index) % WIDEST_BLOCK), (0, 0)), constant_values=empty)


def _offsets(sizes: list[int]) -> list[int]:
    return list(itertools.accumulate(sizes, initial=0))


def choose_pull(in_channels: int, width: int, schedule: Schedule, itemsize: int) -> Pull:
    """The division of taps with the least estimated time; see the module's table."""

    def seconds(pull: Pull) -> float:
        total, pulled = 0.0, 3 ** sum(PULLED[pull])
        for i, steps in enumerate(schedule):
            channel_bytes = (in_channels + i * width) * itemsize
            loads = 1 + len(set(steps)) * (pulled - 1)
            columns = 0 if pull == "all" else width * 27 // pulled
            total += (channel_bytes + 8 * columns) / DEVICE_BYTES_A_S
            total += 3 * loads * channel_bytes / L1_BYTES_A_S
        return total

    ways: tuple[Pull, ...] = ("x", "all", "none")
    return min(ways, key=seconds)


@functools.lru_cache(maxsize=32)
def _plan(in_channels: int, classes: int, width: int, schedule: Schedule, pull: Pull) -> Plan:
    return Plan(in_channels, classes, width, schedule, pull)


def plan_of(network: MSDNet, itemsize: int, pull: Pull | None = None) -> Plan:
    """The plan of a network's structure (kept for the next call)."""
    schedule = tuple(tuple(steps) for steps in network.schedule)
    pull = pull or choose_pull(network.in_channels, network.width, schedule, itemsize)
    return _plan(network.in_channels, network.classes, network.width, schedule, pull)


def plan_of_parameters(parameters: Mapping[str, Any], itemsize: int) -> Plan:
    """The plan of a network that is described by its card's parameters."""
    depth, width = int(parameters.get("depth", 49)), int(parameters.get("width", 2))
    rows = dilations(
        depth, width, int(parameters.get("max_dilation", 7)),
        parameters.get("dilation", "per_channel"),
    )  # fmt: skip
    channels, schedule = int(parameters.get("in_channels", 1)), tuple(map(tuple, rows))
    pull = choose_pull(channels, width, schedule, itemsize)
    return _plan(channels, int(parameters.get("classes", 2)), width, schedule, pull)
