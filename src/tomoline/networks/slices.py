"""A network of images over the slices of a volume.

Each slice becomes an image whose channels are the slice and its neighbours; at the volume's faces
the last slice stands for those that are missing. With several axes the class probabilities of the
slicings are averaged. What comes back is as from a network of volumes.

Axes: B batch, C classes, Z, Y, X voxels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Pixels of the slices that are computed together: bounds the memory, whatever the volume's size.
CHUNK_PIXELS = 1 << 18


def over_slices(
    network: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    in_channels: int = 1,
    axes: tuple[int, ...] = (0,),
) -> Tensor:
    """Logits `(B, C, Z, Y, X)` of volumes `(B, 1, Z, Y, X)` by a network of images.

    `axes` are those across which slices are cut: 0 (z), 1 (y), 2 (x). Of several, the logits are
    logarithms of the mean probabilities.
    """
    if len(axes) == 1:
        return _along(network, x, axes[0], in_channels)
    mean = sum(_along(network, x, axis, in_channels).float().softmax(1) for axis in axes)
    assert isinstance(mean, Tensor)
    return (mean / len(axes)).clamp_min(1e-12).log()


def _along(network: Callable[[Tensor], Tensor], x: Tensor, axis: int, in_channels: int) -> Tensor:
    stack = x[:, 0].movedim(axis + 1, 1)
    depth, reach = stack.shape[1], in_channels // 2
    place = torch.arange(depth, device=x.device)[:, None]
    near = torch.arange(-reach, in_channels - reach, device=x.device)[None]
    index = (place + near).clamp(0, depth - 1)
    step = max(1, CHUNK_PIXELS // (stack.shape[2] * stack.shape[3]))
    done = []
    for volume in stack:
        parts = [
            network(volume[index[k : k + step]].contiguous(memory_format=torch.channels_last))
            for k in range(0, depth, step)
        ]
        done.append(torch.cat(parts).movedim(0, 1))
    return torch.stack(done).movedim(2, axis + 2)
