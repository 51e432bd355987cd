"""Windows of a volume through a device, with reading, copying and computing at the same time.

While window k is computed, window k + 1 is read from the (memory-mapped) volume by a thread into
pinned memory and copied to the device on a stream of its own, and the result of window k - 1 comes
back on a third stream. On a processor the same code runs, one step after the other but for the
reading.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LANES = 3  # one read, one computed, one in the caller's hands
Box = tuple[slice, slice, slice]


class _Lane:
    """Pinned buffers of one window under way, and the events that say when they are free."""

    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"
        self._buffers: dict[str, Tensor] = {}
        self.sent = _event() if self.gpu else None
        self.arrived = _event() if self.gpu else None
        self.result: Tensor | None = None

    def buffer(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory of this shape; grows where a later window is larger."""
        size = math.prod(shape)
        have = self._buffers.get(name)
        if have is None or have.dtype != dtype or len(have) < size:
            have = torch.empty(size, dtype=dtype, pin_memory=self.gpu)
            self._buffers[name] = have
        return have[:size].view(*shape)


class _Streams:
    """Three streams of a GPU; nothing on a processor."""

    def __init__(self, device: torch.device) -> None:
        self._streams: dict[str, Any] = {}
        if device.type == "cuda":
            make: Any = torch.cuda.Stream
            for name in ("inward", "work", "outward"):
                self._streams[name] = make(device)
                # Whatever made the weights may still be at work.
                self._streams[name].wait_stream(torch.cuda.current_stream(device))

    @contextlib.contextmanager
    def step(self, name: str, after: str = "", uses: Tensor | None = None) -> Iterator[None]:
        """Run on one stream, when `after` has come so far; `uses` was made there."""
        if not self._streams:
            yield
            return
        stream = self._streams[name]
        if after:
            stream.wait_stream(self._streams[after])
        if uses is not None:
            uses.record_stream(stream)  # its memory is not given away before
        with torch.cuda.stream(stream):
            yield


def _event() -> Any:
    make: Any = torch.cuda.Event
    return make()


def stream_arrays(
    compute: Callable[[Tensor], Tensor],
    sources: Sequence[Callable[[], NDArray[np.float32]]],
    *,
    device: torch.device,
) -> Generator[NDArray[Any]]:
    """`compute` of each source's array, in order; see the module's text.

    Parameters
    ----------
    compute:
        Of a float32 tensor on `device`, such as `TritonMSDNet.particle_bytes`.
    sources:
        Each gives an array when called (in a thread), such as a window of a memory-mapped file.

    Yields
    ------
    Each result as an array, valid until the next one is asked for.
    """
    lanes = [_Lane(device) for _ in range(LANES)]
    streams = _Streams(device)

    def read(k: int) -> Tensor:
        lane = lanes[k % LANES]
        if lane.sent is not None:
            lane.sent.synchronize()  # its former window has left the buffer
        array = sources[k]()
        target = lane.buffer("in", array.shape, torch.float32)
        np.copyto(target.numpy(), array)
        return target

    def launch(lane: _Lane, host: Tensor) -> None:
        with streams.step("inward"):
            x = host.to(device, non_blocking=True)
            if lane.sent is not None:
                lane.sent.record()
        with streams.step("work", after="inward", uses=x):
            y = compute(x)
        with streams.step("outward", after="work", uses=y):
            lane.result = lane.buffer("out", y.shape, y.dtype)
            lane.result.copy_(y, non_blocking=True)
            if lane.arrived is not None:
                lane.arrived.record()

    def finish(k: int) -> NDArray[Any]:
        lane = lanes[k % LANES]
        if lane.arrived is not None:
            lane.arrived.synchronize()
        assert lane.result is not None
        return lane.result.numpy()

    if not sources:
        return
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read, 0)
        for k in range(len(sources)):
            host = reading.result()
            # Of three lanes this one is busy, and the one before may be in the caller's hands.
            if k + 1 < len(sources):
                reading = pool.submit(read, k + 1)
            launch(lanes[k % LANES], host)
            if k:
                yield finish(k - 1)
        yield finish(len(sources) - 1)


def stream_windows(
    compute: Callable[[Tensor], Tensor],
    volume: NDArray[np.float32],
    boxes: Sequence[Box],
    *,
    device: torch.device,
) -> Generator[NDArray[Any]]:
    """`compute((1, 1, z, y, x))` of each box of a (memory-mapped) volume `(Z, Y, X)`, in order.

    With `TritonMSDNet.particle_bytes` each result is `(1, z, y, x)` uint8, valid until the next
    one is asked for. Boxes of one size are best: the buffers then fit without asking for memory.
    """

    def source(box: Box) -> Callable[[], NDArray[np.float32]]:
        return lambda: volume[box][None, None]

    return stream_arrays(compute, [source(box) for box in boxes], device=device)
