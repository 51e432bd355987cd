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
nothing. By default loads are not pipelined: Triton's asynchronous copies go past L1, where a
chunk's five loads meet; many programs a multiprocessor hide the wait. Blocking several layers would
save only part of the 98 bytes of maps, and needs columns for all of them at once. Networks with
many maps of one dilation a layer (8 x 16) fill a tile with all taps pulled and need no columns;
`choose_pull` takes the least sum for each network. None of this has been timed on a GPU yet:
`benchmarks/bench_gpu.py` does, over all three ways.

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
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tomoline.errors import DeviceError
from tomoline.kernels.triton_plan import (
    CHUNK,
    WIDEST_BLOCK,
    WIDEST_TILE,
    Geometry,
    Layer,
    Plan,
    Pull,
    Shape,
    plan_of,
    power_of_two,
)
from tomoline.networks.msdnet import SLOPE, MSDNet

MOST_CLASSES = 128  # the softmax wants all classes in one tile
MOST_VOXELS = 2**31 - 1

Output = Literal["logits", "probabilities", "bytes"]
Precision = Literal["tf32", "tf32x3"]


@dataclass(frozen=True)
class Launch:
    """How `product` is launched: voxels and inner rows a program takes, warps, loads ahead."""

    block: int = 128
    block_k: int = 32
    warps: int = 4
    stages: int = 1


LAUNCHES = (
    Launch(), Launch(block_k=64), Launch(stages=3), Launch(block_k=64, stages=2),
    Launch(256, 32, 8), Launch(256, 64, 8, 2), Launch(64, 64),
)  # fmt: skip


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
        return min(4096, max(16, power_of_two(self.geometry.voxels))) if self.exact else block

    def blocks(self, block: int) -> int:
        return -(-self.geometry.voxels // block)


def _pack(network: MSDNet) -> Tensor:
    """All weights in one row, float32, and a zero: `(flat + 1)`."""
    parts = [*network.weights, network.last_weight]
    flat = [p.detach().float().flatten() for p in parts]
    return torch.cat([*flat, flat[0].new_zeros(1)])


def _pack_biases(biases: list[Tensor]) -> Tensor:
    """Biases `(layers, w)`, rows filled up to 16 bytes: Triton compiles once for aligned rows."""
    rows = torch.stack([b.detach().float() for b in biases])
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % 4))


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


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
        WIDTH=run.plan.width, N=width, SLOPE=SLOPE, EPILOGUE=epilogue,
        PRECISION=run.precision, EXACT=run.exact,
        BLOCK=block, BLOCK_N=layer.tile, BLOCK_K=launch.block_k,
        num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip


def _forward(
    run: _Run, x: Tensor, packed: Tensor, biases: Tensor, last_bias: Tensor, output: Output
) -> tuple[Tensor, Tensor]:
    """Result and the maps' buffer `(groups, places, 8)`."""
    kernels, plan, geometry = _kernels(), run.plan, run.geometry
    maps = _zeros((plan.groups, geometry.places, CHUNK), packed.dtype, x.device)
    for c in range(plan.in_channels):
        geometry.inner(maps[c // CHUNK, :, c % CHUNK]).copy_(x[:, c])
    columns = x.new_empty((plan.columns, geometry.voxels), dtype=torch.float32)
    table = _table(plan, geometry, x.device)
    block = run.voxel_block(max(32, 512 // power_of_two(plan.width)))
    for i, layer in enumerate(plan.layers):
        own = (packed[plan.starts[i] :], table[plan.table_starts[i] :], biases[i])
        if not layer.pushed:
            _launch_product(run, layer, maps, *own, maps, kernels.MAPS)
            continue
        _launch_product(run, layer, maps, *own, columns, kernels.COLUMNS)
        kernels.combine[(run.blocks(block),)](
            columns, _pushes(layer.pushed, x.device), biases[i], maps,
            *run.sizes(), *geometry.arguments(), geometry.places, layer.first_slot,
            WIDTH=plan.width, BLOCK_W=power_of_two(plan.width),
            TAPS=len(layer.pushed) // plan.width, ACROSS=plan.pull == "none",
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


@dataclass(frozen=True)
class _Gradients:
    """What the backward pass fills, and what it reads for it."""

    maps: Tensor
    channels: Tensor  # (slots, voxels) float32: of all channels
    turned: Tensor  # packed weights, turned
    sources: Tensor
    sums: tuple[Tensor, ...]  # of each product's weights, (rows, channels) flat


def _backward_layer(run: _Run, i: int, planes: Tensor, around: Geometry, state: _Gradients) -> None:
    """Adds what product i (the head: i = depth) gives to the gradients of maps and weights.

    `planes (w or classes, around.places)`: the gradient of what the layer computed.
    """
    kernels, plan = _kernels(), run.plan
    head = i == len(plan.layers)
    layer = plan.head if head else plan.layers[i]
    rows, channels = layer.turned.shape[1], layer.groups * CHUNK
    table = state.sources[plan.source_starts[i] :]
    common = {"PRECISION": run.precision, "EXACT": run.exact, "num_warps": 4}
    few = planes.dtype == torch.float32  # whose three tf32 products need twice the registers
    block = run.voxel_block(64 if few else 128)
    tiles = -(-channels // WIDEST_TILE)
    kernels.spread[(run.blocks(block), tiles)](
        planes, table, state.turned[plan.turned_starts[i] :], state.channels,
        rows, min(channels, plan.slots), *run.sizes(), *around.arguments(),
        ADD=not head, BLOCK=block, BLOCK_C=WIDEST_TILE, BLOCK_K=32, num_stages=1, **common,
    )  # fmt: skip
    block = run.voxel_block(32 if few else 64)
    # Few enough that adding them up is cheap, enough to fill the device.
    splits = min(run.blocks(block), 2 if run.exact else 256)
    partial = planes.new_empty((splits, rows, channels), dtype=torch.float32)
    kernels.correlate[(splits, tiles, rows // WIDEST_BLOCK)](
        planes, table, state.maps, partial,
        rows, channels, *run.sizes(), *run.geometry.arguments(), run.geometry.places,
        *around.arguments(),
        BLOCK=block, BLOCK_C=WIDEST_TILE, BLOCK_K=WIDEST_BLOCK, num_stages=2, **common,
    )  # fmt: skip
    torch.sum(partial, 0, out=state.sums[i].view(rows, channels))


def _backward(
    run: _Run, maps: Tensor, flat: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the flat weights, of the biases `(depth, w)`, of the last bias, and of all
    channels `(slots, voxels)`; `grad (B, classes, Z, Y, X)` is that of the logits."""
    kernels, plan, geometry = _kernels(), run.plan, run.geometry
    depth, r = len(plan.layers), plan.reach
    around = Geometry(geometry.batch, geometry.shape, (r, r, r))
    flush = Geometry(geometry.batch, geometry.shape, (0, 0, 0))
    sizes = [m.turned.shape[1] * m.groups * CHUNK for m in [*plan.layers, plan.head]]
    state = _Gradients(
        maps,
        grad.new_empty((plan.slots, geometry.voxels), dtype=torch.float32),
        flat.to(maps.dtype)[_index(plan, "turned", maps.device)],
        _sources(plan, around, maps.device),
        torch.split(grad.new_empty(sum(sizes), dtype=torch.float32), sizes),
    )
    last = grad.transpose(0, 1).to(maps.dtype).contiguous()
    _backward_layer(run, depth, last, flush, state)
    planes = _zeros((plan.width, around.places), maps.dtype, maps.device)
    grad_biases = grad.new_empty((depth, plan.width), dtype=torch.float32)
    block = run.voxel_block(max(32, 512 // power_of_two(plan.width)))
    for i in reversed(range(depth)):
        kernels.before_activation[(run.blocks(block),)](
            state.channels, maps, planes,
            *run.sizes(), *geometry.arguments(), geometry.places, *around.arguments(),
            around.places, plan.layers[i].first_slot,
            WIDTH=plan.width, BLOCK_W=power_of_two(plan.width), SLOPE=SLOPE, EXACT=run.exact,
            BLOCK=block,
        )  # fmt: skip
        torch.sum(planes, 1, dtype=torch.float32, out=grad_biases[i])
        _backward_layer(run, i, planes, around, state)
    weights = torch.cat(state.sums)[_index(plan, "unpack", maps.device)]
    return weights, grad_biases, grad.float().sum((0, 2, 3, 4)), state.channels


def _run_of(plan: Plan, x: Tensor, launch: Launch | None, precision: Precision) -> _Run:
    batch, _, z, y, w = x.shape
    geometry = Geometry(batch, (z, y, w), plan.margins)
    if geometry.voxels > MOST_VOXELS:
        raise DeviceError(
            f"the fast GPU kernels count up to {MOST_VOXELS} voxels a pass; found "
            f"{geometry.voxels}. Remedy: smaller windows (tiling.size_vox) or batches"
        )
    exact = is_interpreted()
    # The interpreter takes its time for each step of a loop, however wide.
    launch = launch or Launch(block_k=WIDEST_BLOCK if exact else Launch.block_k)
    return _Run(plan, geometry, launch, precision, exact)


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
        run = _run_of(self.plan, x, self.launch, self.precision)
        with torch.no_grad(), _on(self.device):
            return _forward(run, x, self._packed, self._biases, self._last_bias, output)[0]

    def logits(self, x: Tensor) -> Tensor:
        """Logits `(B, classes, Z, Y, X)`, float32, of `(B, in_channels, Z, Y, X)`."""
        return self._compute(x, "logits")

    def probabilities(self, x: Tensor) -> Tensor:
        """Softmax of the logits, same shape, float32."""
        return self._compute(x, "probabilities")

    def particle_probability(self, x: Tensor) -> Tensor:
        """Probability of class 1, `(B, Z, Y, X)` float32."""
        return self.probabilities(x)[:, 1]

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
        split = torch.split(weights, [math.prod(shape) for shape in ctx.shapes])
        shaped = [w.view(shape) for w, shape in zip(split, ctx.shapes, strict=True)]
        found = [*shaped[:depth], *biases.unbind(0), shaped[-1], last_bias]
        type_x, types = ctx.types
        grad_x = None
        if ctx.needs_input_grad[2]:
            geometry = run.geometry
            rows = channels[: plan.in_channels]
            rows = rows.view(plan.in_channels, geometry.batch, *geometry.shape)
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
    run = _run_of(plan, x, None, precision)
    parameters = (*network.weights, *network.biases, network.last_weight, network.last_bias)
    return _TrainableMSDNet.apply(run, x.dtype, x, *parameters)  # type: ignore[no-any-return,no-untyped-call]
