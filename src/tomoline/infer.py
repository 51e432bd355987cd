"""Running a trained network: device, precision, kernel, batches and memory."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tomoline.errors import DeviceError
from tomoline.kernels.choose import speed_up
from tomoline.log import get_logger
from tomoline.networks.weights import ModelCard, load_network
from tomoline.settings import InferenceSettings

log = get_logger(__name__)

FLIP_AXES = [axes for n in range(4) for axes in itertools.combinations((-3, -2, -1), n)]
SMALLEST_SPLIT_VOX = 32
CPU_BF16_FLAGS = ("avx512_bf16", "amx_bf16")


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
        with torch.inference_mode():
            total: Tensor | None = None
            for axes in FLIP_AXES[: self.flips]:
                turned = x.flip(axes) if axes else x
                turned = turned.to(self.device, self.dtype)
                turned = turned.contiguous(memory_format=torch.channels_last_3d)
                p = self.network(turned).float().softmax(1)
                p = p.flip(axes) if axes else p
                total = p if total is None else total + p
            assert total is not None
            return (total / self.flips).cpu().numpy()


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


def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor multiplies bfloat16 natively (elsewhere float32 is faster)."""
    if not cpuinfo.is_file():
        return False
    flags = next((r for r in cpuinfo.read_text().splitlines() if r.startswith("flags")), "")
    return any(flag in flags.split() for flag in CPU_BF16_FLAGS)


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
    card, network = load_network(folder)
    network = network.to(device).eval()
    kernel = speed_up(network, device, dtype) if settings.kernel == "auto" else "plain"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "processor"
    log.info("%s on %s (%s), %s, kernel %s, %d threads, %d flip(s)", card.name, device, name,
             str(dtype).removeprefix("torch."), kernel, torch.get_num_threads(),
             settings.test_time_flips)  # fmt: skip
    return Runner(card, network, device, dtype, kernel, settings.test_time_flips)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that device or host memory ran out."""
    text = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError)
        and ("can't allocate memory" in text or "CUBLAS_STATUS_ALLOC" in text)
    )


def _free(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def split_on_memory(
    predict: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    volume: NDArray[np.float32],
    *,
    halo: int,
    device: torch.device,
) -> NDArray[np.float32]:
    """`predict` on a window `(Z, Y, X)`, in halves with a halo where memory does not suffice.

    The halves are those of the longest axis; each reads `halo` voxels of the other, so the result
    is that of the whole window as long as the halo covers the receptive field.

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
    if length <= max(SMALLEST_SPLIT_VOX, 2 * halo // 2):
        raise DeviceError(
            f"out of memory on {device} with a window of {volume.shape} voxels: {message}. "
            "Remedy: free memory on the device, ask for a larger one, or set tiling.size_vox"
        )
    log.warning("out of memory with a window of %s voxels: halved along axis %d",
                volume.shape, axis)  # fmt: skip
    middle, parts = length // 2, []
    for start, stop in ((0, middle), (middle, length)):
        low, high = max(start - halo, 0), min(stop + halo, length)
        if high - low >= length:
            raise DeviceError(
                f"out of memory on {device} with a window of {volume.shape} voxels, which the "
                f"halo of {halo} voxels leaves no room to halve: {message}. Remedy: a device with "
                "more memory, or device: cpu"
            )
        part = np.take(volume, range(low, high), axis)
        done = split_on_memory(predict, part, halo=halo, device=device)
        parts.append(np.take(done, range(start - low, stop - low), axis - volume.ndim))
    return np.concatenate(parts, axis - volume.ndim)


def batched(
    runner: Runner,
    items: Iterator[NDArray[np.float32]],
    *,
    batch_size: int,
) -> Iterator[NDArray[np.float32]]:
    """Probabilities `(C, Z, Y, X)` of equal windows, one by one; halves the batch on no memory."""
    size = batch_size
    while group := list(itertools.islice(items, size)):
        position = 0
        while position < len(group):
            chunk = np.stack(group[position : position + size])
            try:
                done = runner.probabilities(chunk)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(chunk) == 1:
                    raise DeviceError(
                        f"out of memory on {runner.device} with one window of {chunk.shape[1:]} "
                        "voxels. Remedy: free memory on the device or ask for a larger one"
                    ) from error
                size = max(1, len(chunk) // 2)
                _free(runner.device)
                log.warning("out of memory: the batch is now %d", size)
                continue
            position += len(chunk)
            yield from done


def default_batch(device: torch.device, requested: int) -> int:
    """Subtomograms a pass: what was asked, else 4 on a processor and 64 on a GPU."""
    return requested or (64 if device.type == "cuda" else 4)


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
