"""Several processes, one a GPU, started by `torchrun`: gradients are averaged, rank 0 writes."""

from __future__ import annotations

import os

import torch
from torch import distributed, nn


def begin(device: str) -> tuple[int, int]:
    """Join the group that `torchrun` started; returns (rank, number of processes)."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return 0, 1
    if not distributed.is_initialized():
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    return distributed.get_rank(), distributed.get_world_size()


def average_gradients(network: nn.Module) -> None:
    """Replace each gradient by its mean over all processes; nothing to do for one."""
    if not distributed.is_initialized():
        return
    for parameter in network.parameters():
        if parameter.grad is not None:
            distributed.all_reduce(parameter.grad)
            parameter.grad /= distributed.get_world_size()


def is_first() -> bool:
    """Whether this process writes files and validates."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def same_everywhere(value: float) -> float:
    """Rank 0's value, on every rank: stopping early must be decided together."""
    if not distributed.is_initialized():
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def wait() -> None:
    """Until every process has come here."""
    if distributed.is_initialized():
        distributed.barrier()
