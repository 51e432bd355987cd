"""What a network costs: parameters, and multiply-adds of a pass.

A multiply-add (Mac) is one product that is added to a sum. Counted are convolutions,
up-convolutions and linear layers, as the papers do: of a convolution, output values x kernel x
inputs of a group (Li et al. 2021, eq. 6 and 8). Normalisation, activation, pooling and biases are
left out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tomoline.networks.blocks import count_parameters

__all__ = ["count_multiply_adds", "count_parameters"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
UP_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def count_multiply_adds(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds of one pass over an input of `shape`, batch and channels included.

    The network is run once on the shape alone, without computing anything (torch's device `meta`).
    """
    counted: list[int] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counted.append(_of_layer(layer, inputs[0], output))

    kinds = (*CONVOLUTIONS, *UP_CONVOLUTIONS, nn.Linear)
    hooks = [m.register_forward_hook(note) for m in network.modules() if isinstance(m, kinds)]
    training, places = network.training, {p.device for p in network.parameters()}
    state = {k: v.clone() for k, v in network.state_dict().items()}
    try:
        with torch.no_grad():
            network.eval().to("meta")(torch.empty(shape, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
        network.to_empty(device=next(iter(places))).load_state_dict(state)
        network.train(training)
    return sum(counted)


def _of_layer(layer: nn.Module, x: Tensor, y: Tensor) -> int:
    if isinstance(layer, nn.Linear):
        return y.numel() * layer.in_features
    if isinstance(layer, CONVOLUTIONS):
        return y.numel() * (layer.in_channels // layer.groups) * math.prod(layer.kernel_size)
    assert isinstance(layer, UP_CONVOLUTIONS)
    return x.numel() * (layer.out_channels // layer.groups) * math.prod(layer.kernel_size)
