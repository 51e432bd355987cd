"""MSDNet on NVIDIA GPUs by Triton kernels: forward, and backward for training.

Tensors `(B, C, Z, Y, X)`; `w` maps a layer, `C` channels a layer reads, 27 taps a channel.

Why so. The published localizer adds two maps a layer, each with a dilation of its own. A
convolution with one output channel uses an eighth of the narrowest matrix-unit tile and reads all
`C` channels at 27 places for it: `54 C` values a voxel and layer, which is bound by the L1 cache
(about 33 TB/s on 132 multiprocessors) and not by arithmetic. So a layer's taps are divided:

- *pulled* taps become shifted loads, further rows of the product's inner dimension;
- *pushed* taps become columns of the product. `combine` adds each map's columns, shifted.

Bytes a voxel and layer of the localizer (mean C = 49, bfloat16 maps, float32 columns), and the
time for all 49 layers of 512^3 voxels, were device memory to run at 4.3 TB/s and L1 (each loaded
value passes three times: load, store to and read from shared memory) at 33 TB/s:

    pulled   loads   columns   device memory        L1        memory    L1     sum
    x,y,z    53 C     2 (0)     98 + 32 =  130    15 600     0.20 s   3.1 s   3.3 s
    x         5 C    18         98 + 176 = 274     1 470     0.42 s   0.29 s  0.7 s   <- chosen
    none      1 C    54         98 + 464 = 562       294     0.86 s   0.06 s  0.9 s

Matrix work with x pulled is `2 * 5 C * 32` operations, 103 TFLOP in all or 0.13 s at 790 TFLOP/s:
not the limit, so that padding 18 columns to 32 and the zeros for the other map's shifts cost
nothing. Blocking several layers would save only part of the 98 bytes of maps, and needs columns for
all of them at once. Networks with many maps of one dilation a layer (8 x 16) fill a tile with all
taps pulled and need no columns; `choose_pull` takes the least sum for each network. None of this
has been timed on a GPU yet: `benchmarks/bench_gpu.py` does, over all three ways.

Maps lie in one buffer, `(groups of 8 channels, padded voxels, 8)`: a thread loads the 16 bytes of a
voxel's 8 channels, neighbouring threads neighbouring voxels. Zero margins, as wide as the pulled
shifts reach and shared by neighbouring rows (sections, volumes), stand for the "same" padding, so
that the inner loop has no masks. The buffer is zeroed at each call, since channels not yet written
are multiplied by zero weights, and zero times what a former window left could be NaN. The input
comes first and the maps start at a multiple that keeps a layer's maps in one group.

Backward, from the last layer to the first, in gather form: the gradient of a layer's maps (float32,
`(channel, voxel)`) is complete when all later layers have added theirs; `before_activation` gives
the `w` planes `d`, and of the 27 w shifted planes `spread` makes `gradient += W^T d` (inner
dimension 27 w = 54, so that the tile is full) and `correlate` the weights' gradient. The forward
keeps its one buffer of maps and nothing else. No kernel uses atomics; sums are in a fixed order, so
the same input gives the same bits on the same kind of device.

Memory a voxel (margins apart): forward `2 * channels + 4 * columns` bytes in bfloat16, 280 for the
localizer; training another `4 * channels + 2 w`, 690 in all.

Float32 maps are multiplied as three tf32 products ("tf32x3", error near float32's); "tf32" is one
product, with an error of about 1e-3. Sums are float32 always.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tomoline.errors import DeviceError
from tomoline.networks.msdnet import SLOPE, MSDNet

CHUNK = 8  # channels of a group, as in triton_kernels
WIDEST_BLOCK = 64  # rows of the inner dimension that a kernel takes at once, at most
WIDEST_TILE = 64  # columns of a product's tile, at most
MOST_CLASSES = 128  # the softmax wants all classes in one tile
DEVICE_BYTES_A_S, L1_BYTES_A_S = 4.3e12, 33e12  # H200: measured copy, 128 bytes a clock and core
MOST_VOXELS = 2**31 - 1

Pull = Literal["none", "x", "all"]
Output = Literal["logits", "probabilities", "bytes"]
Precision = Literal["tf32", "tf32x3"]
Shape = tuple[int, int, int]
Schedule = tuple[tuple[int, ...], ...]
TAPS = list(itertools.product((-1, 0, 1), repeat=3))
PULLED: dict[Pull, Shape] = {"none": (0, 0, 0), "x": (0, 0, 1), "all": (1, 1, 1)}


@dataclass(frozen=True)
class Launch:
    """How `product` is launched: voxels and inner rows a program takes, warps, loads ahead."""

    block: int = 128
    block_k: int = 64
    warps: int = 4
    stages: int = 2


LAUNCHES = (
    Launch(), Launch(stages=1), Launch(stages=3), Launch(block_k=32, stages=3),
    Launch(256, 32, 8, 2), Launch(256, 64, 8, 1), Launch(64, 64, 4, 2),
)  # fmt: skip


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
        whole = buffer[..., self.lead :].unflatten(-1, (self.batch, *self.padded))
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
        return self.gather.shape[0] // CHUNK


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
        self.reach = max(max(layer) for layer in schedule)
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
        pushed = [(j, shift) for j in range(width)
                  for shift in dict.fromkeys(s for _, s in split[27 * j : 27 * j + 27])]  # fmt: skip
        tile = min(max(16, _power(len(pushed))), WIDEST_TILE)
        gather = np.full((groups, len(shifts), CHUNK, _up(len(pushed), tile)), self.flat, np.int64)
        turned = np.full((_up(groups * CHUNK, WIDEST_TILE), _up(27 * width, WIDEST_BLOCK)),
                         self.flat, np.int64)  # fmt: skip
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

    def _head(self, start: int) -> Layer:
        depth = len(self.schedule)
        slots, groups, channels = self._slots(depth), self._groups(depth), self.channels(depth)
        tile = max(16, _power(self.classes))
        gather = np.full((groups * CHUNK, tile), self.flat, np.int64)
        turned = np.full((_up(groups * CHUNK, WIDEST_TILE), _up(self.classes, WIDEST_BLOCK)),
                         self.flat, np.int64)  # fmt: skip
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


def _times(shift: Shape, flags: Any, step: int) -> Shape:
    z, y, x = (s * f * step for s, f in zip(shift, flags, strict=True))
    return z, y, x


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _up(n: int, step: int) -> int:
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


@functools.lru_cache(maxsize=64)
def _index(plan: Plan, what: str, device: torch.device) -> Tensor:
    """Index of the packed weights (`gather`, `turned`) or of their gradients (`unpack`)."""
    if what == "unpack":
        flat = plan.unpack()
    else:
        flat = np.concatenate([getattr(m, what).ravel() for m in [*plan.layers, plan.head]])
    return torch.from_numpy(flat).to(device)


@functools.lru_cache(maxsize=64)
def _table(plan: Plan, geometry: Geometry, device: torch.device) -> Tensor:
    """Of each chunk of each product: its place relative to the voxel's, in voxels."""
    rows: list[int] = []
    for layer in [*plan.layers, plan.head]:
        own = [g * geometry.places + geometry.offset(shift)
               for g in range(layer.groups) for shift in layer.shifts]  # fmt: skip
        rows += own + [0] * (layer.chunks - len(own))
    return torch.tensor(rows, dtype=torch.int64, device=device)


@functools.lru_cache(maxsize=64)
def _sources(plan: Plan, geometry: Geometry, device: torch.device) -> Tensor:
    """Of each row of the backward products: its place relative to the voxel's."""
    rows = [plane * geometry.places + geometry.offset(shift)
            for layer in plan.layers for plane, shift in layer.sources]  # fmt: skip
    # The last layer's gradient has no shifts and lies without margins.
    rows += [plane * geometry.voxels for plane, _ in plan.head.sources]
    return torch.tensor(rows, dtype=torch.int64, device=device)


@functools.lru_cache(maxsize=256)
def _pushes(pushed: tuple[Shape, ...], device: torch.device) -> Tensor:
    return torch.tensor(pushed, dtype=torch.int32, device=device)


def _kernels() -> Any:
    try:
        from tomoline.kernels import triton_kernels  # noqa: PLC0415 (only where it is used)
    except ImportError as error:
        raise DeviceError(
            f"the fast GPU kernels need Triton, which comes with the CUDA build of torch: {error}. "
            "Remedy: install that build, or set kernel: plain"
        ) from error
    return triton_kernels


def is_interpreted() -> bool:
    """Whether Triton runs its kernels on the processor (TRITON_INTERPRET=1)."""
    return bool(_kernels().INTERPRETED)


def check_device(device: torch.device, dtype: torch.dtype) -> None:
    """Refuse what the kernels cannot run on.

    Raises
    ------
    DeviceError
        Without Triton, without a GPU of compute capability 8.0 or later, or for another type.
    """
    if dtype not in (torch.bfloat16, torch.float32):
        raise DeviceError(
            f"the fast GPU kernels compute in bfloat16 or float32; found {dtype}. Remedy: set "
            "precision: bfloat16"
        )
    if is_interpreted():
        return
    if device.type != "cuda":
        raise DeviceError(
            f"the fast GPU kernels need an NVIDIA GPU; found device {device}. Remedy: device: cuda"
        )
    if torch.cuda.get_device_capability(device) < (8, 0):
        raise DeviceError(
            f"the fast GPU kernels need compute capability 8.0 (A100 or later); found "
            f"{torch.cuda.get_device_capability(device)}. Remedy: set kernel: plain"
        )


@dataclass(frozen=True)
class _Run:
    """What launches share: the plan, the buffer's geometry, how to multiply."""

    plan: Plan
    geometry: Geometry
    launch: Launch
    precision: Precision
    exact: bool  # interpreted

    def sizes(self) -> tuple[int, ...]:
        return (self.geometry.voxels, *self.geometry.shape)

    def voxel_block(self, block: int) -> int:
        """Voxels a program: on a processor many, where each program costs the interpreter time."""
        return min(4096, max(16, _power(self.geometry.voxels))) if self.exact else block

    def blocks(self, block: int) -> int:
        return -(-self.geometry.voxels // block)


def _pack(network: MSDNet) -> Tensor:
    """All weights in one row, float32, and a zero: `(flat + 1)`."""
    parts = [*network.weights, network.last_weight]
    flat = [p.detach().float().flatten() for p in parts]
    return torch.cat([*flat, flat[0].new_zeros(1)])


def _pack_biases(biases: list[Tensor]) -> Tensor:
    """Biases `(layers, w)`, rows filled up to 16 bytes, as Triton compiles once for aligned rows."""
    rows = torch.stack([b.detach().float() for b in biases])
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % 4))


def _launch_product(
    run: _Run, layer: Layer, maps: Tensor, packed: Tensor, table: Tensor,
    bias: Tensor, out: Tensor, epilogue: int,
) -> None:  # fmt: skip
    kernels, launch = _kernels(), run.launch
    block = run.voxel_block(launch.block)
    width = layer.gather.shape[1]
    kernels.product[(run.blocks(block), width // layer.tile)](
        maps, table, packed, bias, out,
        layer.chunks, layer.columns, *run.sizes(), *run.geometry.arguments(),
        run.geometry.places, layer.first_slot,
        N=width, SLOPE=SLOPE, EPILOGUE=epilogue, PRECISION=run.precision, EXACT=run.exact,
        BLOCK=block, BLOCK_N=layer.tile, BLOCK_K=min(launch.block_k, layer.chunks * CHUNK),
        num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip


def _forward(
    run: _Run, x: Tensor, packed: Tensor, biases: Tensor, last_bias: Tensor, output: Output
) -> tuple[Tensor, Tensor]:
    """Result and the maps' buffer `(groups, places, 8)`."""
    kernels, plan, geometry = _kernels(), run.plan, run.geometry
    maps = x.new_zeros((plan.groups, geometry.places, CHUNK), dtype=packed.dtype)
    for c in range(plan.in_channels):
        geometry.inner(maps[c // CHUNK, :, c % CHUNK]).copy_(x[:, c])
    columns = x.new_empty((plan.columns, geometry.voxels), dtype=torch.float32)
    table = _table(plan, geometry, x.device)
    block = run.voxel_block(256)
    for i, layer in enumerate(plan.layers):
        own = (packed[plan.starts[i] :], table[plan.table_starts[i] :], biases[i])
        if not layer.pushed:
            _launch_product(run, layer, maps, *own, maps, kernels.MAPS)
            continue
        _launch_product(run, layer, maps, *own, columns, kernels.COLUMNS)
        kernels.combine[(run.blocks(block),)](
            columns, _pushes(layer.pushed, x.device), biases[i], maps,
            *run.sizes(), *geometry.arguments(), geometry.places, layer.first_slot,
            WIDTH=plan.width, BLOCK_W=_power(plan.width), TAPS=len(layer.pushed) // plan.width,
            SLOPE=SLOPE, EXACT=run.exact, BLOCK=block,
        )  # fmt: skip
    z, y, x_ = geometry.shape
    if output == "bytes":
        out = x.new_empty((geometry.batch, z, y, x_), dtype=torch.uint8)
    else:
        out = x.new_empty((geometry.batch, plan.classes, z, y, x_), dtype=torch.float32)
    epilogue = {"logits": kernels.LOGITS, "probabilities": kernels.PROBABILITIES,
                "bytes": kernels.BYTES}[output]  # fmt: skip
    own = (packed[plan.starts[-2] :], table[plan.table_starts[-2] :], last_bias)
    _launch_product(run, plan.head, maps, *own, out, epilogue)
    return out, maps


def _backward_layer(
    run: _Run, i: int, planes: Tensor, around: Geometry, maps: Tensor, gradient: Tensor,
    turned: Tensor, sources: Tensor, sums: Tensor,
) -> None:  # fmt: skip
    """Adds what product i (the head: i = depth) gives to the gradients of maps and weights.

    `planes (w or classes, around.places)`: the gradient of what the layer computed.
    """
    kernels, plan = _kernels(), run.plan
    head = i == len(plan.layers)
    layer = plan.head if head else plan.layers[i]
    rows, channels = layer.turned.shape[1], layer.groups * CHUNK
    table = sources[plan.source_starts[i] :]
    common = {"PRECISION": run.precision, "EXACT": run.exact, "num_warps": 4, "num_stages": 2}
    block = run.voxel_block(128)
    tiles = -(-channels // WIDEST_TILE)
    kernels.spread[(run.blocks(block), tiles)](
        planes, table, turned[plan.turned_starts[i] :], gradient,
        rows, min(channels, plan.slots), *run.sizes(), *around.arguments(),
        ADD=not head, BLOCK=block, BLOCK_C=WIDEST_TILE, BLOCK_K=WIDEST_BLOCK, **common,
    )  # fmt: skip
    block = run.voxel_block(64)
    # Few enough that adding them up is cheap, enough to fill the device.
    splits = min(run.blocks(block), 2 if run.exact else 256)
    partial = maps.new_empty((splits, rows, channels), dtype=torch.float32)
    kernels.correlate[(splits, tiles, rows // WIDEST_BLOCK)](
        planes, table, maps, partial,
        rows, channels, *run.sizes(), *run.geometry.arguments(), run.geometry.places,
        *around.arguments(),
        BLOCK=block, BLOCK_C=WIDEST_TILE, BLOCK_K=WIDEST_BLOCK, **common,
    )  # fmt: skip
    torch.sum(partial, 0, out=sums.view(rows, channels))


def _backward(
    run: _Run, maps: Tensor, flat: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the flat weights, of the biases `(depth, w)`, of the last bias, and of all
    channels `(slots, voxels)`; `grad (B, classes, Z, Y, X)` is that of the logits."""
    kernels, plan, geometry = _kernels(), run.plan, run.geometry
    dtype, device, depth = maps.dtype, maps.device, len(plan.layers)
    r = plan.reach
    around = Geometry(geometry.batch, geometry.shape, (r, r, r))
    flush = Geometry(geometry.batch, geometry.shape, (0, 0, 0))
    sources = _sources(plan, around, device)
    turned = flat.to(dtype)[_index(plan, "turned", device)]
    gradient = grad.new_empty((plan.slots, geometry.voxels), dtype=torch.float32)
    sizes = [m.turned.shape[1] * m.groups * CHUNK for m in [*plan.layers, plan.head]]
    sums = list(grad.new_empty(sum(sizes), dtype=torch.float32).split(sizes))
    last = grad.transpose(0, 1).to(dtype).contiguous()
    _backward_layer(run, depth, last, flush, maps, gradient, turned, sources, sums[-1])
    planes = maps.new_zeros((plan.width, around.places))
    grad_biases = grad.new_empty((depth, plan.width), dtype=torch.float32)
    block = run.voxel_block(256)
    for i in reversed(range(depth)):
        kernels.before_activation[(run.blocks(block),)](
            gradient, maps, planes,
            *run.sizes(), *geometry.arguments(), geometry.places, *around.arguments(),
            around.places, plan.layers[i].first_slot,
            WIDTH=plan.width, BLOCK_W=_power(plan.width), SLOPE=SLOPE, EXACT=run.exact,
            BLOCK=block,
        )  # fmt: skip
        torch.sum(planes, 1, dtype=torch.float32, out=grad_biases[i])
        _backward_layer(run, i, planes, around, maps, gradient, turned, sources, sums[i])
    weights = torch.cat(sums)[_index(plan, "unpack", device)]
    return weights, grad_biases, grad.float().sum((0, 2, 3, 4)), gradient


def _run_of(
    plan: Plan, x: Tensor, launch: Launch | None, precision: Precision, dtype: torch.dtype
) -> _Run:
    batch, _, z, y, w = x.shape
    geometry = Geometry(batch, (z, y, w), plan.margins)
    if geometry.voxels > MOST_VOXELS:
        raise DeviceError(
            f"the fast GPU kernels count up to {MOST_VOXELS} voxels a pass; found "
            f"{geometry.voxels}. Remedy: smaller windows (tiling.size_vox) or batches"
        )
    launch = launch or (Launch() if dtype == torch.bfloat16 else Launch(block_k=32))
    return _Run(plan, geometry, launch, precision, is_interpreted())


class TritonMSDNet:
    """A network ready to predict on an NVIDIA GPU; its weights are packed once.

    Parameters
    ----------
    network:
        The network; later changes of its weights are not seen.
    dtype:
        Of the maps: bfloat16, or float32 multiplied as `precision` says.
    device:
        A CUDA device (under Triton's interpreter: the processor).
    pull, launch:
        How taps are divided (module's text) and kernels are launched; None chooses.

    Raises
    ------
    DeviceError
        If these kernels cannot run this network on this device.
    """

    def __init__(
        self,
        network: MSDNet,
        *,
        dtype: torch.dtype,
        device: torch.device,
        precision: Precision = "tf32x3",
        pull: Pull | None = None,
        launch: Launch | None = None,
    ) -> None:
        check_device(device, dtype)
        if network.classes > MOST_CLASSES:
            raise DeviceError(
                f"the fast GPU kernels take up to {MOST_CLASSES} classes; found "
                f"{network.classes}. Remedy: set kernel: plain"
            )
        self.dtype, self.device = dtype, device
        self.precision, self.launch = precision, launch
        self.plan = plan_of(network, dtype.itemsize, pull)
        flat = _pack(network).to(device, dtype)
        self._packed = flat[_index(self.plan, "gather", device)]
        self._biases = _pack_biases(list(network.biases)).to(device)
        self._last_bias = network.last_bias.detach().float().to(device)

    def _compute(self, x: Tensor, output: Output) -> Tensor:
        x = x.to(self.device)
        run = _run_of(self.plan, x, self.launch, self.precision, self.dtype)
        with torch.no_grad(), _on(self.device):
            return _forward(run, x, self._packed, self._biases, self._last_bias, output)[0]

    def logits(self, x: Tensor) -> Tensor:
        """Logits `(B, classes, Z, Y, X)`, float32, of `(B, in_channels, Z, Y, X)`."""
        return self._compute(x, "logits")

    def probabilities(self, x: Tensor) -> Tensor:
        """Softmax of the logits, same shape, float32."""
        return self._compute(x, "probabilities")

    def particle_bytes(self, x: Tensor) -> Tensor:
        """Probability of class 1, `(B, Z, Y, X)` uint8: 0 to 255 for 0 to 1."""
        return self._compute(x, "bytes")

    def memory_bytes(self, batch: int, shape: Shape, output: Output = "bytes") -> int:
        """Device memory of one pass over a batch of windows: input, buffers and output."""
        geometry = Geometry(batch, shape, self.plan.margins)
        maps = self.plan.groups * CHUNK * self.dtype.itemsize * geometry.places
        result = 1 if output == "bytes" else 4 * self.plan.classes
        a_voxel = 4 * self.plan.in_channels + 4 * self.plan.columns + result
        return maps + a_voxel * geometry.voxels

    @property
    def bytes_per_voxel(self) -> float:
        """Device memory a voxel of a 64^3 window, with probabilities; larger windows take less."""
        return self.memory_bytes(1, (64, 64, 64), "probabilities") / 64**3

    def largest_window(self, shape: Shape, memory_bytes: float, output: Output = "bytes") -> int:
        """Largest edge of a window of a volume (zyx) whose pass fits; 0 if none does."""
        low, high = 0, max(shape)
        while low < high:
            middle = (low + high + 1) // 2
            z, y, x = (min(n, middle) for n in shape)
            if self.memory_bytes(1, (z, y, x), output) <= memory_bytes:
                low = middle
            else:
                high = middle - 1
        return low

    def tune(self, seconds: Callable[[Callable[[], Any]], float], x: Tensor) -> dict[Launch, float]:
        """Time each of `LAUNCHES` on `x` by `seconds(work)` and keep the fastest.

        The sums' order within a tile may depend on the launch, so results may differ in the last
        bit between launches; nothing is tuned unless this is called.
        """
        times: dict[Launch, float] = {}
        for launch in LAUNCHES:
            self.launch = launch
            times[launch] = seconds(functools.partial(self.particle_bytes, x))
        self.launch = min(times, key=lambda key: times[key])
        return times


def _on(device: torch.device) -> Any:
    """Launches go to the current device, which must be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


class _TrainableMSDNet(torch.autograd.Function):
    """`triton_msdnet` for autograd; parameters in the order weights, biases, last two."""

    @staticmethod
    def forward(ctx: Any, run: _Run, dtype: torch.dtype, x: Tensor, *parameters: Tensor) -> Tensor:
        depth = len(run.plan.layers)
        weights, biases = [*parameters[:depth], parameters[-2]], parameters[depth : 2 * depth]
        rows = [w.detach().float().flatten() for w in weights]
        flat = torch.cat([*rows, rows[0].new_zeros(1)])
        packed = flat.to(dtype)[_index(run.plan, "gather", x.device)]
        with _on(x.device):
            logits, maps = _forward(
                run, x, packed, _pack_biases(list(biases)), parameters[-1].float(), "logits"
            )
        ctx.run, ctx.types = run, (x.dtype, [p.dtype for p in parameters])
        ctx.shapes = [w.shape for w in weights]
        ctx.save_for_backward(maps, flat)
        return logits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        maps, flat = ctx.saved_tensors
        run: _Run = ctx.run
        plan, depth = run.plan, len(run.plan.layers)
        with _on(maps.device):
            weights, biases, last_bias, channels = _backward(run, maps, flat, grads[0])
        split = weights.split([math.prod(shape) for shape in ctx.shapes])
        shaped = [w.view(shape) for w, shape in zip(split, ctx.shapes, strict=True)]
        found = [*shaped[:depth], *biases.unbind(0), shaped[-1], last_bias]
        type_x, types = ctx.types
        grad_x = None
        if ctx.needs_input_grad[2]:
            geometry = run.geometry
            rows = channels[: plan.in_channels].unflatten(1, (geometry.batch, *geometry.shape))
            grad_x = rows.transpose(0, 1).to(type_x)
        return (None, None, grad_x, *[g.to(t) for g, t in zip(found, types, strict=True)])


def triton_msdnet(network: MSDNet, x: Tensor, *, precision: Precision = "tf32x3") -> Tensor:
    """Logits `(B, classes, Z, Y, X)` float32 of `(B, in_channels, Z, Y, X)`, differentiable.

    Maps are of x's type, bfloat16 or float32. Keeps the maps for the backward pass, which needs
    another `4 * channels` bytes a voxel; see the module's text.

    Raises
    ------
    DeviceError
        As `TritonMSDNet`.
    """
    check_device(x.device, x.dtype)
    plan = plan_of(network, x.dtype.itemsize)
    run = _run_of(plan, x, None, precision, x.dtype)
    parameters = (*network.weights, *network.biases, network.last_weight, network.last_bias)
    return _TrainableMSDNet.apply(run, x.dtype, x, *parameters)  # type: ignore[no-any-return,no-untyped-call]
