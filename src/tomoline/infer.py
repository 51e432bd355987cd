"""Running a trained network: device, precision, kernel, batches and memory."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tomoline.errors import DeviceError
from tomoline.kernels.choose import Packed, speed_up
from tomoline.kernels.streaming import Box, stream_arrays, stream_windows
from tomoline.log import get_logger
from tomoline.networks.cards import model_folder
from tomoline.networks.pyconv_unet import PyConvUNet
from tomoline.networks.weights import ModelCard, load_network, verify_weights
from tomoline.processor import cpu_has_bfloat16
from tomoline.settings import InferenceSettings, SegmentSettings

if TYPE_CHECKING:
    from tomoline.kernels.cpu_msdnet import CpuMSDNet
    from tomoline.kernels.triton_msdnet import TritonMSDNet

log = get_logger(__name__)

FLIP_AXES = [axes for n in range(4) for axes in itertools.combinations((-3, -2, -1), n)]
SMALLEST_SPLIT_VOX = 32
# What errors say where memory has run out, of the host, of a GPU and of page-locked pages.
NO_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC", "CUDA error: out of memory",
             "[CUDA]: out of memory")  # fmt: skip
# Networks and their kernels' names, the one used last at the end, in a process that runs them on
# one tomogram after another (`tomoline.warm`); elsewhere None.
KEPT: dict[tuple[str, ...], tuple[nn.Module, str]] | None = None
KEPT_MOST = 4
SLICE_AXES = {"z": (0,), "all": (0, 1, 2)}


@dataclass(frozen=True)
class Runner:
    """A network ready to predict on one device."""

    card: ModelCard
    network: nn.Module
    device: torch.device
    dtype: torch.dtype
    kernel: str
    flips: int

    def probabilities(self, volumes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Class probabilities `(B, C, Z, Y, X)` of volumes `(B, Z, Y, X)`, averaged over flips."""
        # A window of a memory-mapped file is read-only, which torch cannot wrap: copied if so.
        x = torch.from_numpy(np.require(volumes, np.float32, ["C", "W"]))[:, None]
        return self.averaged(x.to(self.device)).cpu().numpy()

    def averaged(self, x: Tensor) -> Tensor:
        """Class probabilities `(B, C, Z, Y, X)`, float32, of `(B, 1, Z, Y, X)`, on its device."""
        with torch.inference_mode():
            return self._mean(x, self._once)

    def particle_bytes(self, x: Tensor) -> Tensor:
        """Probability of class 1 of `(B, 1, Z, Y, X)`, `(B, Z, Y, X)` uint8: 255 for 1."""
        with torch.inference_mode():
            if self.flips == 1 and self._packed is not None:
                return self._packed.particle_bytes(x)
            return as_bytes(self._mean(x, self._particle))

    def _mean(self, x: Tensor, once: Callable[[Tensor], Tensor]) -> Tensor:
        """Mean over flips of what `once` says."""
        total: Tensor | None = None
        for axes, turned in self._turned(x):
            p = once(turned)
            p = p.flip(axes) if axes else p
            total = p if total is None else total.add_(p)
        assert total is not None
        return total.div_(self.flips)

    def _turned(self, x: Tensor) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """The flips' axes, and `(B, 1, Z, Y, X)` flipped, as the network takes it."""
        for axes in FLIP_AXES[: self.flips]:
            turned = (x.flip(axes) if axes else x).to(self.dtype)
            yield axes, turned.contiguous(memory_format=torch.channels_last_3d)

    def _once(self, x: Tensor) -> Tensor:
        if self._packed is not None:
            return self._packed.probabilities(x)
        return self.network(x).float().softmax(1)  # type: ignore[no-any-return]

    def _particle(self, x: Tensor) -> Tensor:
        if self._packed is not None:
            return self._packed.particle_probability(x)
        return self._once(x)[:, 1]

    @property
    def _packed(self) -> CpuMSDNet | TritonMSDNet | None:
        """A kernel that has the softmax in its last layer, where one runs the network."""
        kernel = getattr(self.network, "kernel", None)
        return kernel.model if isinstance(kernel, Packed) else None

    def class_bytes(self, x: Tensor) -> Tensor:
        """Labels and probabilities of `(B, 1, Z, Y, X)`, `(B, 1 + C, Z, Y, X)` uint8."""
        with torch.inference_mode():
            p = self.averaged(x)
            return torch.cat([p.argmax(1, keepdim=True).to(torch.uint8), as_bytes(p)], 1)

    def views(self, x: Tensor) -> Tensor:
        """What a network that names whole subtomograms makes of each flip of `(B, 1, Z, Y, X)`.

        Class probabilities `(B, flips, C)`, float32.
        """
        with torch.inference_mode():
            return torch.stack([self._once(turned) for _, turned in self._turned(x)], 1)

    def all_tasks(self, x: Tensor) -> Tensor:
        """What DSM-Net with all its subnets makes of `(B, 1, Z, Y, X)`: `(B, F + C + 2 Z Y X)`.

        In a row: features, class probabilities, probability that a voxel is the particle's, and
        its density; each the mean over the flips, the last two turned back. Of one that only names
        subtomograms the first two `(B, F + C)`.
        """
        network: Any = self.network
        total: Tensor | None = None
        with torch.inference_mode():
            for axes, turned in self._turned(x):
                features, found = network.described(turned)
                voxels: list[Tensor] = []
                if found.recovery is not None:
                    voxels = [found.segmentation.float().softmax(1)[:, 1:], found.recovery.float()]
                voxels = [v.flip(axes) if axes else v for v in voxels]
                parts = [features.float(), found.classes.float().softmax(1), *voxels]
                row = torch.cat([part.flatten(1) for part in parts], 1)
                total = row if total is None else total.add_(row)
            assert total is not None
            return total.div_(self.flips)


def as_bytes(p: Tensor) -> Tensor:
    """Probabilities as 0 to 255; the given ones are used up."""
    return p.mul_(255).round_().to(torch.uint8)


def choose_device(requested: str) -> torch.device:
    """`auto` takes a GPU where there is one; `cuda` without one is an error, never a fallback."""
    if requested == "cpu" or (requested == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError(
            "device cuda was asked for: expected a GPU that PyTorch can use; found none. Remedy: "
            "check the driver with `tomoline doctor`, ask the scheduler for a GPU, or set device: "
            "auto"
        )
    return torch.device("cuda")


def choose_precision(requested: str, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 where the device has instructions for it, else float32."""
    if requested != "auto":
        return torch.bfloat16 if requested == "bfloat16" else torch.float32
    native = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_has_bfloat16()
    return torch.bfloat16 if native else torch.float32


def make_runner(folder: str | Path, settings: InferenceSettings) -> Runner:
    """Load a model and set it up as the settings say; logs what was chosen."""
    device = choose_device(settings.device)
    dtype = choose_precision(settings.precision, device)
    card, network, kernel = _ready(folder, settings, device, dtype)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "processor"
    log.info("%s on %s (%s), %s, kernel %s, %d threads, %d flip(s)", card.name, device, name,
             str(dtype).removeprefix("torch."), kernel, torch.get_num_threads(),
             settings.test_time_flips)  # fmt: skip
    return Runner(card, network, device, dtype, kernel, settings.test_time_flips)


def _ready(
    folder: str | Path, settings: InferenceSettings, device: torch.device, dtype: torch.dtype
) -> tuple[ModelCard, nn.Module, str]:
    """A network on its device with its kernel: loaded, or kept where nothing of it has changed."""
    key: tuple[str, ...] = ()
    if KEPT is not None:
        card = verify_weights(folder)
        place = str(model_folder(folder).resolve())
        key = (place, card.model_dump_json(), str(device), str(dtype), settings.kernel)
        if key in KEPT:
            log.info("%s is kept from an earlier tomogram", card.name)
            KEPT[key] = KEPT.pop(key)
            _over_slices(KEPT[key][0], settings)
            return card, *KEPT[key]
    card, network = load_network(folder)
    network = network.to(device).eval()
    _over_slices(network, settings)
    kernel = speed_up(network, device, dtype) if settings.kernel == "auto" else "plain"
    # Plain layers where others were wanted may have a passing reason, such as a lack of memory.
    if KEPT is not None and (kernel != "plain" or settings.kernel == "plain"):
        KEPT[key] = network, kernel
        if len(KEPT) > KEPT_MOST:
            del KEPT[next(iter(KEPT))]
    return card, network, kernel


def _over_slices(network: nn.Module, settings: InferenceSettings) -> None:
    """Set up a network of images for the axes across which volumes are to be cut."""
    if isinstance(network, PyConvUNet):
        axes = settings.slice_axes if isinstance(settings, SegmentSettings) else "z"
        network.slice_axes = SLICE_AXES[axes]
        for_images(network)


def for_images(network: nn.Module) -> nn.Module:
    """The network with weights of images in the order that convolutions are fast in.

    On an EPYC it took two thirds of the time of the usual order, forwards and backwards. Weights of
    volumes stay as they are.
    """
    for layer in network.modules():
        # The order is for four axes; a layer of volumes would refuse it.
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that device or host memory ran out."""
    text = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(words in text for words in NO_MEMORY)
    )


def _free(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def split_on_memory(
    predict: Callable[[NDArray[np.float32]], NDArray[Any]],
    volume: NDArray[np.float32],
    *,
    halo: int,
    device: torch.device,
) -> NDArray[Any]:
    """`predict` on a window `(Z, Y, X)`, in halves with a halo where memory does not suffice.

    The halves are those of the longest axis; each reads `halo` voxels of the other, so the result
    is that of the whole window as long as the halo covers the receptive field. A halo that leaves
    no room for that is shortened to a quarter of the window, with a warning.

    Raises
    ------
    DeviceError
        When even a small window does not fit.
    """
    try:
        return predict(volume)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        message = str(error).splitlines()[0]
    _free(device)
    axis = int(np.argmax(volume.shape))
    length = volume.shape[axis]
    if length <= SMALLEST_SPLIT_VOX:
        raise DeviceError(
            f"out of memory on {device} with a window of {volume.shape} voxels: {message}. "
            "Remedy: free memory on the device, ask for a larger one, or set tiling.size_vox"
        )
    log.warning("out of memory with a window of %s voxels: halved along axis %d",
                volume.shape, axis)  # fmt: skip
    if length // 2 + halo >= length:
        log.warning(
            "the halo of %d voxels leaves no room to halve it: %d are taken, and values near the "
            "cut are approximate. Remedy: a device with more memory, or device: cpu", halo,
            length // 4,
        )  # fmt: skip
        halo = length // 4
    middle, parts = length // 2, []
    for start, stop in ((0, middle), (middle, length)):
        low, high = max(start - halo, 0), min(stop + halo, length)
        part = np.take(volume, range(low, high), axis)
        done = split_on_memory(predict, part, halo=halo, device=device)
        parts.append(np.take(done, range(start - low, stop - low), axis - volume.ndim))
    return np.concatenate(parts, axis - volume.ndim)


def window_bytes(
    runner: Runner,
    volume: NDArray[np.float32],
    boxes: Sequence[Box],
    *,
    halo: int,
    most_vox: float = math.inf,
) -> Iterator[NDArray[np.uint8]]:
    """Particle probability `(z, y, x)` in 1/255 of each box of a memory-mapped volume, in order.

    While one window is computed the next is read and copied to the device. Where windows have more
    than `most_vox` voxels, and from the first for which memory does not suffice on, they go singly,
    in halves. Each result is valid until the next one is asked for.

    Raises
    ------
    DeviceError
        When even a small window does not fit.
    """
    done = 0
    if all(_voxels(box) <= most_vox for box in boxes):
        streamed = stream_windows(runner.particle_bytes, volume, boxes, device=runner.device)
        try:
            for result in streamed:
                yield result[0]
                done += 1
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        streamed.close()  # and with it the memory of the windows under way

    def predict(part: NDArray[np.float32]) -> NDArray[np.uint8]:
        nonlocal most_vox
        if part.size > most_vox:
            raise MemoryError(f"at most {most_vox:.0f} voxels fit")
        x = torch.from_numpy(np.require(part, np.float32, ["C", "W"]))[None, None]
        try:
            return runner.particle_bytes(x.to(runner.device))[0].cpu().numpy()
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):  # others of its size are not tried
                most_vox = min(most_vox, part.size - 1)
            raise

    for box in boxes[done:]:
        _free(runner.device)
        window = np.asarray(volume[box], np.float32)
        yield split_on_memory(predict, window, halo=halo, device=runner.device)


def _voxels(box: Box) -> int:
    return math.prod(part.stop - part.start for part in box)


def batched(
    runner: Runner, boxes: NDArray[Any], *, batch_size: int, tasks: bool = False
) -> Iterator[NDArray[Any]]:
    """`Runner.class_bytes` `(1 + C, z, y, x)` of each of `boxes (N, z, y, x)`, in order.

    Of a network that names whole subtomograms it is `Runner.views` `(flips, C)`, and with `tasks`,
    of one of several tasks, `Runner.all_tasks`, all in a row. Boxes may be any
    array that is cut by slices, such as HDF5 data. Batches are halved where memory does not
    suffice.

    Raises
    ------
    DeviceError
        When even a single box does not fit.
    """
    compute = runner.views if runner.card.names_whole else runner.class_bytes
    compute = runner.all_tasks if tasks else compute
    size, done = batch_size, 0
    while done < len(boxes):
        sources = [_part(boxes, k, size) for k in range(done, len(boxes), size)]
        try:
            for batch in stream_arrays(compute, sources, device=runner.device):
                for result in batch:
                    yield result
                    done += 1
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise DeviceError(
                    f"out of memory on {runner.device} with one window of {boxes.shape[1:]} "
                    "voxels. Remedy: free memory on the device or ask for a larger one"
                ) from error
            size = max(1, min(size, len(boxes) - done) // 2)
            _free(runner.device)
            log.warning("out of memory: the batch is now %d", size)


def _part(boxes: NDArray[Any], start: int, size: int) -> Callable[[], NDArray[np.float32]]:
    return lambda: np.asarray(boxes[start : start + size], np.float32)[:, None]


def default_batch(runner: Runner, requested: int) -> int:
    """Subtomograms a pass: what was asked, else 64, or 4 where voxels are named on a processor."""
    many = runner.device.type == "cuda" or runner.card.names_whole
    return requested or (64 if many else 4)


class Progress:
    """Logs how far a stage has come and how long it will still take, at most every 20 s."""

    def __init__(self, total: int, what: str, logger: Any = log) -> None:
        self.total, self.what, self.logger = total, what, logger
        self.started = self.last = time.monotonic()
        self.done = 0

    def step(self, count: int = 1) -> None:
        """Count `count` more as done."""
        self.done += count
        now = time.monotonic()
        if now - self.last > 20 or self.done == self.total:
            self.last = now
            left = (now - self.started) / self.done * (self.total - self.done)
            self.logger.info("%s %d of %d, about %.0f s left", self.what, self.done, self.total,
                             left)  # fmt: skip
