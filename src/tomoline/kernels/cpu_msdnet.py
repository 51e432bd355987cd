"""MSDNet on processors: all maps in one buffer, sixteen sums in registers, bfloat16 in pairs.

A layer of two maps gives a vector unit little to do: PyTorch reaches a twentieth of what the
processor can. Here each output channel is a pass over the earlier maps. Its loop (`cpu_loops`)
keeps the sums of 4 x 4 rows, which lie one dilation apart in z and y, in registers; each input
vector it reads serves up to nine of them. Every output is summed in the same order wherever it
lies in a window and whatever the number of threads, so that results do not depend on either.

Gradients go the same way: going backwards all later layers' gradients are known, so that a map's
is a convolution of them with turned weights, one pass for each dilation. Gradients of the weights
are matrix products of maps with shifted gradients.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tomoline.errors import DeviceError
from tomoline.kernels.cpu_loops import (
    COLUMNS,
    GROUPS,
    KERNEL,
    LANES,
    MOST_CLASSES,
    OUT,
    ROWS,
    SLOPE,
    SLOT,
    SOURCE,
    STEP,
    WEIGHTS,
    gather_rows,
    has_pairs,
    mix_planes,
    run_passes,
)  # fmt: skip
from tomoline.networks.msdnet import MSDNet


def chains(length: int, step: int, most: int = ROWS) -> list[tuple[int, int]]:
    """Blocks `(first, count)` of rows `first + i step`; together all rows below `length`."""
    blocks = []
    for start in range(min(step, length)):
        left, first = -(-(length - start) // step), start
        for parts in range(-(-left // most), 0, -1):
            count = -(-left // parts)
            blocks.append((first, count))
            first, left = first + count * step, left - count
    return blocks


def packed(weights: Tensor, *, pairs: bool) -> NDArray[np.int32]:
    """Weights `(..., C)` as 4-byte elements `(..., groups)`; C is even for pairs."""
    if pairs:
        return weights.bfloat16().contiguous().view(torch.int32).numpy()
    return weights.float().contiguous().view(torch.int32).numpy()


class Buffer:
    """Channels of one window, `[group][z][y][x]` of 4 bytes, with zeros around.

    Neighbouring rows, planes and groups share their margins, which are as wide as the largest
    dilation.
    """

    def __init__(self, groups: int, shape: Sequence[int], margin: int, *, pairs: bool) -> None:
        self.shape, self.margin, self.per = tuple(shape), margin, 2 if pairs else 1
        z, y, x = shape
        row = -(-(x + margin) // LANES) * LANES
        plane = row * (y + margin)
        self.steps = np.array([plane * (z + margin), plane, row], np.int64)
        self.strides, self.sizes = 4 * self.steps, np.array(shape, np.int64)
        # Before the first voxel a margin, rounded up so that rows begin with a cache line.
        self.before = margin * (plane + row) + -(-margin // LANES) * LANES
        after = margin * (plane + row + 1) + 2 * LANES
        self.words = _zeros(self.before + groups * int(self.steps[0]) + after)
        kind = torch.bfloat16 if pairs else torch.float32
        self.values = self.words.view(kind)
        self.address = self.words.data_ptr() + 4 * self.before
        self._tables()

    def _tables(self) -> None:
        """Blocks of every dilation, as `_compiled` wants them."""
        blocks: list[tuple[int, int]] = []
        self.begins = np.zeros((self.margin + 1, 3), np.int64)
        for d in range(1, self.margin + 1):
            begins = [len(blocks)]
            for length in self.shape[:2]:
                blocks += chains(length, d)
                begins.append(len(blocks))
            self.begins[d] = begins
        self.blocks = np.array(blocks, np.int64)

    def group_at(self, group: int) -> int:
        """Address of a group's first voxel."""
        return self.address + group * int(self.strides[0])

    def channel(self, position: int) -> Tensor:
        """A channel's voxels `(Z, Y, X)`."""
        group, slot = divmod(position, self.per)
        strides = [self.per * int(s) for s in self.steps]
        start = self.per * self.before + group * strides[0] + slot
        return self.values.as_strided(self.shape, (strides[1], strides[2], self.per), start)

    def planes(self, groups: int, first: int, last: int) -> Tensor:
        """Values `(groups, n, per)` of memory from one voxel to another, margins included."""
        per, step = self.per, self.per * int(self.steps[0])
        start = per * (self.before + first)
        return self.values.as_strided((groups, last - first, per), (step, per, 1), start)


def _zeros(words: int) -> Tensor:
    """Zeroed 4-byte words from a cache line's start, in large pages where the system has them.

    MemoryError where there are not so many.
    """
    try:
        # Private: a forked process must not share them, and shared memory gets no large pages.
        raw = mmap.mmap(-1, 4 * words + 64, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"can't allocate memory: {4 * words} bytes") from error
    if hasattr(mmap, "MADV_HUGEPAGE") and words > 1 << 20:
        with contextlib.suppress(OSError):
            raw.madvise(mmap.MADV_HUGEPAGE)
    memory = np.frombuffer(raw, np.uint8)
    skip = -memory.ctypes.data % 64
    return torch.from_numpy(memory[skip : skip + 4 * words].view(np.int32))


class _Layout:
    """Where a network's channels lie, and its passes but for their weights."""

    def __init__(self, network: MSDNet, *, pairs: bool) -> None:
        self.pairs, self.per = pairs, 2 if pairs else 1
        self.width, self.depth = network.width, network.depth
        self.in_channels, self.classes = network.in_channels, network.classes
        self.schedule = network.schedule
        # An odd number of input channels is filled up, so that a layer's two maps share a group.
        self.inputs = -(-network.in_channels // self.per) * self.per
        # Likewise an odd number of maps: a layer must not read, if only times zero, what it writes.
        self.places = -(-self.width // self.per) * self.per
        self.groups = (self.inputs + self.places * self.depth) // self.per
        self.margin = max(max(steps) for steps in self.schedule)

    def groups_before(self, layer: int) -> int:
        """Groups that a layer reads."""
        return (self.inputs + layer * self.places) // self.per

    def position(self, layer: int, j: int) -> int:
        """Place of a map among the channels."""
        return self.inputs + layer * self.places + j

    def positions(self, layers: int) -> list[int]:
        """Places of the input channels and of the maps of the first layers."""
        maps = (self.position(i, j) for i in range(layers) for j in range(self.width))
        return [*range(self.in_channels), *maps]

    def aligned(self, weights: Tensor, layers: int) -> Tensor:
        """Weights `(..., C)` of the input and some layers' maps, with zeros where no channel is."""
        groups = self.groups_before(layers)
        full = weights.new_zeros(*weights.shape[:-1], groups * self.per)
        full[..., self.positions(layers)] = weights
        return full


class CpuMSDNet:
    """An `MSDNet` on this processor, in float32 or bfloat16; its weights are read once.

    Raises
    ------
    DeviceError
        bfloat16 on a processor that has no instructions for it, or too many classes.
    """

    def __init__(self, network: MSDNet, *, dtype: torch.dtype = torch.float32) -> None:
        pairs = dtype == torch.bfloat16
        if pairs and not has_pairs():
            raise DeviceError(
                "the CPU kernel was asked for bfloat16: expected a processor with avx512_bf16, "
                "found none. Remedy: precision: float32"
            )
        if network.classes > MOST_CLASSES:
            raise DeviceError(
                f"the CPU kernel was given a network of {network.classes} classes: expected at "
                f"most {MOST_CLASSES}. Remedy: kernel: plain"
            )
        self.layout = layout = _Layout(network, pairs=pairs)
        self._weights: list[NDArray[np.int32]] = []
        rows, biases = [], []
        for i in range(layout.depth):
            groups = layout.groups_before(i)
            # (K, C, dz, dy, dx) -> [k][dx][dz][dy][c], and then the groups first.
            w = network.weights[i].detach().cpu().float().permute(0, 4, 2, 3, 1)
            taps = packed(layout.aligned(w, i), pairs=pairs)
            taps = np.ascontiguousarray(
                taps.reshape(layout.width, KERNEL**3, groups).swapaxes(1, 2)
            )
            self._weights.append(taps)
            for j, step in enumerate(layout.schedule[i]):
                group, slot = divmod(layout.position(i, j), layout.per)
                rows.append((step, taps[j].ctypes.data, groups, group, slot))
                biases.append(float(network.biases[i].detach()[j].to(dtype)))
        self._rows = np.array(rows, np.int64)
        self._biases = np.array(biases, np.float64)
        last = network.last_weight.detach().cpu().float()
        self._last = packed(layout.aligned(last, layout.depth), pairs=pairs)
        self._last_bias = network.last_bias.detach().cpu().to(dtype).float().numpy().copy()
        self.threads = torch.get_num_threads()
        # Memory of the last shape, for the next window.
        self._shape: tuple[int, ...] = ()
        self._buffers: list[Buffer] = []

    @property
    def bytes_per_voxel(self) -> float:
        """Memory of a window without its margins, and of the results."""
        return 4.0 * (self.layout.groups + 2 * self.layout.classes + 1)

    def buffer(self, shape: Sequence[int]) -> Buffer:
        """New memory for all maps of a window."""
        layout = self.layout
        return Buffer(layout.groups, shape, layout.margin, pairs=layout.pairs)

    def _kept(self, shape: tuple[int, ...], count: int) -> list[Buffer]:
        """Memory for some windows at a time; margins stay zero, all else is written anew."""
        if shape != self._shape:
            self._shape, self._buffers = shape, []
        while len(self._buffers) < count:
            self._buffers.append(self.buffer(shape))
        return self._buffers

    def release(self) -> None:
        """Give the memory back that is kept for the next window."""
        self._shape, self._buffers = (), []

    def logits(self, x: Tensor) -> Tensor:
        """Logits `(B, classes, Z, Y, X)`, float32, of volumes `(B, in_channels, Z, Y, X)`."""
        # Threads do not share the mode, and refuse each other's tensors of inference mode.
        with torch.inference_mode(False), torch.no_grad():
            return self._logits(self.checked(x.detach()))

    def checked(self, x: Tensor) -> Tensor:
        """The input, if it has the network's channels."""
        if x.ndim != 5 or x.shape[1] != self.layout.in_channels:
            raise ValueError(
                f"expected (B, {self.layout.in_channels}, Z, Y, X), found {tuple(x.shape)}"
            )
        return x.to(torch.bfloat16 if self.layout.pairs else torch.float32)

    def _logits(self, x: Tensor) -> Tensor:
        out = torch.empty((len(x), self.layout.classes, *x.shape[2:]), dtype=torch.float32)
        if not out.numel():
            return out
        # Many small volumes are shared out whole; a few large ones plane by plane.
        if len(x) >= self.threads:
            parts = min(self.threads, len(x))
            buffers = self._kept(tuple(x.shape[2:]), parts)

            def share(part: int) -> None:
                for k in range(part, len(x), parts):
                    self._forward(x[k], out[k], buffers[part], alone=True)

            _in_threads(share, parts)
        else:
            (buffer, *_) = self._kept(tuple(x.shape[2:]), 1)
            for item, result in zip(x, out, strict=True):
                self._forward(item, result, buffer)
        return out

    def probabilities(self, x: Tensor) -> Tensor:
        """Class probabilities, as `logits`."""
        return self.logits(x).softmax(1)

    def particle_probability(self, x: Tensor) -> Tensor:
        """Probability of class 1, `(B, Z, Y, X)` float32; no logits of all voxels are kept."""
        return self._particles(x, torch.float32)

    def particle_bytes(self, x: Tensor) -> Tensor:
        """Probability of class 1, `(B, Z, Y, X)` uint8: 0 to 255 for 0 to 1."""
        return self._particles(x, torch.uint8)

    def _particles(self, x: Tensor, kind: torch.dtype) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            x = self.checked(x.detach())
            out = torch.empty((len(x), *x.shape[2:]), dtype=kind)
            if out.numel():
                (buffer, *_) = self._kept(tuple(x.shape[2:]), 1)
                for item, result in zip(x, out, strict=True):
                    self._maps(item, buffer)
                    self._last_planes(buffer, result.numpy())
            return out

    def _last_planes(self, buffer: Buffer, result: NDArray[Any]) -> None:
        """The last layer, softmax and class 1 of it, some planes at a time."""
        planes, classes = buffer.shape[0], self.layout.classes
        parts = max(4 * self.threads, planes // 8)

        def share(part: int) -> None:
            some = first, last = planes * part // parts, planes * (part + 1) // parts
            logits = np.empty((classes, last - first, *buffer.shape[1:]), np.float32)
            self._mix(buffer, logits.ctypes.data, some, some)
            logits -= logits.max(0)
            np.exp(logits, out=logits)
            p = logits[1] / logits.sum(0)
            result[first:last] = np.rint(p * 255) if result.dtype == np.uint8 else p

        _in_threads(share, parts)

    def _mix(self, buffer: Buffer, out: int, held: tuple[int, int], some: tuple[int, int]) -> None:
        """Logits of `some` planes, to an address that holds those from `held` (first, last)."""
        first, last = held
        sizes = buffer.sizes.copy()
        sizes[0] = last - first
        mix_planes(
            self.layout.pairs or None,
            (buffer.address + first * int(buffer.strides[1]), self._last.ctypes.data,
             self._last_bias.ctypes.data, out),
            (self.layout.groups, self.layout.classes, some[0] - first, some[1] - first),
            (sizes, buffer.strides),
        )  # fmt: skip

    def _forward(self, item: Tensor, out: Tensor, buffer: Buffer, *, alone: bool = False) -> None:
        self._maps(item, buffer, alone=alone)
        planes, parts = buffer.shape[0], 1 if alone else 4 * self.threads

        def share(part: int) -> None:
            some = (planes * part // parts, planes * (part + 1) // parts)
            self._mix(buffer, out.data_ptr(), (0, planes), some)

        _in_threads(share, parts)

    def _maps(self, item: Tensor, buffer: Buffer, *, alone: bool = False) -> None:
        """All layers but the last."""
        # By numpy: in a thread of ours PyTorch would start threads of its own.
        bits = torch.int16 if self.layout.pairs else torch.int32
        for c, channel in enumerate(item.contiguous().view(bits).numpy()):
            np.copyto(buffer.channel(c).view(bits).numpy(), channel)
        table = np.empty((len(self._rows), COLUMNS), np.int64)
        table[:, [STEP, WEIGHTS, GROUPS, OUT, SLOT]] = self._rows
        table[:, SOURCE] = buffer.address
        table[:, OUT] = buffer.address + self._rows[:, 3] * buffer.strides[0]
        self.passes(table, self._biases, buffer, alone=alone)

    def passes(
        self, table: NDArray[np.int64], biases: NDArray[np.float64], buffer: Buffer,
        *, alone: bool = False, adds: bool = False,
    ) -> None:  # fmt: skip
        """Run passes one after the other: each shared between the threads, or here `alone`.

        They make maps, or (`adds`) add to sums in float32.
        """
        kind = (self.layout.pairs or None, adds or None)
        shape, blocks = (buffer.sizes, buffer.strides), (buffer.blocks, buffer.begins)
        if alone:
            run_passes(*kind, table, biases, (0, len(table), 0, 1), shape, blocks)
            return
        parts = 4 * self.threads
        for p in range(len(table)):

            def share(part: int, p: int = p) -> None:
                run_passes(*kind, table, biases, (p, p + 1, part, parts), shape, blocks)

            _in_threads(share, parts)


_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def _in_threads(work: Callable[[int], None], parts: int) -> None:
    """Call `work` with each number below `parts`, in as many threads as PyTorch uses."""
    threads = min(parts, torch.get_num_threads())
    if threads == 1:
        for part in range(parts):
            work(part)
        return
    key = (os.getpid(), torch.get_num_threads())  # a forked process has none of these threads
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(key[1])
    for _ in _pools[key].map(work, range(parts)):
        pass


class _Gradients:
    """The way back through one volume: gradients of its maps, then of the weights.

    `maps` is the buffer that the forward pass filled. Gradients before the activation lie in a
    buffer of their own, sorted by dilation and from the last layer on, so that a map's gradient is
    one pass for each dilation over those that are known already.
    """

    # Layers whose weights' gradients are taken by one matrix product, and its length in voxels.
    LAYERS, CHUNK = 8, 2048

    def __init__(self, model: CpuMSDNet, last: Tensor, weights: Sequence[Tensor]) -> None:
        self.model, self.layout = model, model.layout
        layout = self.layout
        order = [
            (step, i, j)
            for i in reversed(range(layout.depth))
            for j, step in enumerate(layout.schedule[i])
        ]
        # Place of each gradient: those of one dilation together, from the last layer on.
        self.places: dict[tuple[int, int], int] = {}
        self.ranges: dict[int, int] = {}
        self.members: dict[int, list[tuple[int, int]]] = {}
        place = 0
        for step in sorted({step for step, _, _ in order}):
            place = -(-place // layout.per) * layout.per
            self.ranges[step] = place // layout.per
            self.members[step] = [(i, j) for s, i, j in order if s == step]
            for member in self.members[step]:
                self.places[member] = place
                place += 1
        self.groups = -(-place // layout.per)
        self.weights = [w.detach().cpu().float() for w in weights]
        self.last = last.detach().cpu().float()
        self._taps = self._turned()

    def _turned(self) -> dict[int, NDArray[np.int32]]:
        """For each dilation the weights `[input channel][group][dx][dz][dy]`, turned round."""
        layout, taps = self.layout, {}
        channels = layout.in_channels + layout.width * layout.depth
        for step, members in self.members.items():
            count = -(-len(members) // layout.per) * layout.per
            w = torch.zeros(channels, 3, 3, 3, count)
            for k, (i, j) in enumerate(members):
                own = self.weights[i][j]
                w[: len(own), ..., k] = own.flip(1, 2, 3).permute(0, 3, 1, 2)
            words = packed(w, pairs=layout.pairs)
            taps[step] = np.ascontiguousarray(words.reshape(channels, KERNEL**3, -1).swapaxes(1, 2))
        return taps

    def run(self, maps: Buffer, grad: Tensor, *, wants_input: bool) -> list[Tensor | None]:
        """Gradients of the input (or None), of the last layer, and of all layers' weights."""
        layout = self.layout
        gradients = Buffer(self.groups, maps.shape, layout.margin, pairs=layout.pairs)
        sums = Buffer(1, maps.shape, layout.margin, pairs=False)
        # The same gradients in float32, of the layers whose weights' are taken next.
        width, several = layout.width, min(self.LAYERS, layout.depth)
        exact = Buffer(width * several, maps.shape, layout.margin, pairs=False)
        flat = grad.reshape(len(grad), -1)
        out_w: list[Tensor | None] = [None] * layout.depth
        out_b: list[Tensor | None] = [None] * layout.depth
        for stop in range(layout.depth, 0, -several):
            layers = range(max(0, stop - several), stop)
            for i in reversed(layers):
                bias = torch.empty(width)
                for j in range(width):
                    channel = layout.in_channels + i * width + j
                    total = self._total(gradients, sums, flat, channel, above=i)
                    value = maps.channel(layout.position(i, j))
                    total = torch.where(value > 0, total, total * SLOPE)
                    gradients.channel(self.places[i, j]).copy_(total)
                    exact.channel((i - layers.start) * width + j).copy_(total)
                    bias[j] = total.sum()
                out_b[i] = bias
            self._of_weights(maps, exact, layers, out_w)
        grad_x = None
        if wants_input:
            grad_x = torch.stack(
                [self._total(gradients, sums, flat, c, above=-1) for c in range(layout.in_channels)]
            )
        return [grad_x, self._of_last(maps, grad), grad.sum((1, 2, 3)), *out_w, *out_b]

    def _total(
        self, gradients: Buffer, sums: Buffer, flat: Tensor, channel: int, *, above: int
    ) -> Tensor:
        """Gradient of a channel by all layers after `above`, and by the last one."""
        layout, total = self.layout, sums.channel(0)
        total.copy_((self.last[:, channel] @ flat).view(sums.shape))
        rows = []
        for step, members in self.members.items():
            known = sum(i > above for i, _ in members)
            groups = -(-known // layout.per)
            if groups:
                taps = self._taps[step]
                source = gradients.group_at(self.ranges[step])
                rows.append((step, taps[channel].ctypes.data, groups, source, sums.address, 0))
        if rows:
            self.model.passes(np.array(rows, np.int64), np.zeros(len(rows)), gradients, adds=True)
        return total.clone()

    def _of_weights(
        self, maps: Buffer, exact: Buffer, layers: range, out: list[Tensor | None]
    ) -> None:
        """Gradients of some layers' weights: products of maps with gradients moved by each tap."""
        layout, width = self.layout, self.layout.width
        groups = layout.groups_before(layers.stop - 1)
        count, channels = len(layers) * width, groups * layout.per
        steps = np.array([s for i in layers for s in layout.schedule[i]], np.int64)
        planes, rows, columns = maps.shape
        several = max(1, min(self.CHUNK // columns, planes * rows))
        total = torch.zeros(count * KERNEL**3, channels)
        moved = np.empty((count, KERNEL**3, several * columns), np.int32)
        values = np.empty((channels, several * columns), np.int32)
        parts = 2 * torch.get_num_threads()
        for first in range(0, planes * rows, several):
            last = min(first + several, planes * rows)

            def share(part: int, first: int = first, last: int = last) -> None:
                gather_rows(
                    layout.pairs or None, (maps.words.numpy(), maps.before, maps.steps),
                    (exact.words.numpy(), exact.before, exact.steps, steps), (rows, columns),
                    (first, last, part, parts), (moved, values),
                )  # fmt: skip

            _in_threads(share, parts)
            n = (last - first) * columns
            left = torch.from_numpy(moved).view(torch.float32).view(count * KERNEL**3, -1)[:, :n]
            total.addmm_(left, torch.from_numpy(values).view(torch.float32)[:, :n].T)
        total = total.view(count, KERNEL, KERNEL, KERNEL, channels)
        for k, i in enumerate(layers):
            own = total[k * width : (k + 1) * width].permute(0, 4, 1, 2, 3)
            out[i] = own[:, layout.positions(i)].contiguous()

    def _of_last(self, maps: Buffer, grad: Tensor) -> Tensor:
        layout = self.layout
        flat = grad.reshape(len(grad), -1)
        positions = layout.positions(layout.depth)
        columns = [flat @ maps.channel(p).float().reshape(-1) for p in positions]
        return torch.stack(columns, 1)


class _Function(torch.autograd.Function):
    """The network as one step; parameters: last weight, last bias, weights, biases."""

    @staticmethod
    def forward(ctx: Any, network: MSDNet, dtype: torch.dtype, x: Tensor, *p: Tensor) -> Tensor:
        model = CpuMSDNet(network, dtype=dtype)
        moved = model.checked(x.detach())
        out = torch.empty((len(x), network.classes, *x.shape[2:]), dtype=torch.float32)
        ctx.buffers = [model.buffer(x.shape[2:]) for _ in x]
        for item, result, buffer in zip(moved, out, ctx.buffers, strict=True):
            model._forward(item, result, buffer)
        ctx.model = model
        ctx.save_for_backward(*p)  # which notices if they are changed meanwhile
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        last, _, *rest = ctx.saved_tensors
        if ctx.buffers is None:
            raise RuntimeError("the maps of this pass are gone: gradients can be taken only once")
        depth = ctx.model.layout.depth
        gradients = _Gradients(ctx.model, last, rest[:depth])
        wants = ctx.needs_input_grad[2]
        each = [
            gradients.run(buffer, grad.detach().float(), wants_input=wants)
            for buffer, grad in zip(ctx.buffers, grads[0], strict=True)
        ]
        ctx.buffers = None
        first, *others = zip(*each, strict=True)
        grad_x = torch.stack(first) if wants else None
        return (None, None, grad_x, *(sum(parts) for parts in others))


def cpu_msdnet(network: MSDNet, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Logits of a network on this processor; maps are kept until gradients are taken."""
    return _Function.apply(  # type: ignore[no-any-return,no-untyped-call]
        network, dtype, x, network.last_weight, network.last_bias, *network.weights, *network.biases
    )
