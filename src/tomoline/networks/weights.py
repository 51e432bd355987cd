"""Trained models on disk: a card and, beside it, weights as safetensors, never pickles."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tomoline.errors import InputError
from tomoline.io.atomic import atomic_path
from tomoline.networks.cards import (
    CARD,
    WEIGHTS,
    ModelCard,
    load_card,
    model_folder,
    verify_weights,
    write_card,
)
from tomoline.networks.registry import build

__all__ = [
    "CARD",
    "WEIGHTS",
    "ModelCard",
    "load_card",
    "load_network",
    "save_model",
    "verify_weights",
    "write_card",
]


def load_network(path: str | Path) -> tuple[ModelCard, nn.Module]:
    """Read a model, its weights checked against the card's hash and the network's shapes."""
    card = verify_weights(path)
    weights = model_folder(path) / WEIGHTS
    network = build(card.network, card.parameters, source=str(model_folder(path) / CARD))
    try:
        state = load_file(weights)
        network.load_state_dict(state)
    except (RuntimeError, SafetensorError) as error:
        raise InputError(
            weights, expected=f"weights of {card.network} with {card.parameters}",
            found=str(error).strip().splitlines()[-1].strip(),
            remedy="the card and the weights do not belong together: copy both again",
        ) from error  # fmt: skip
    return card, network.eval()


def write_weights(folder: Path, state: dict[str, Tensor]) -> str:
    """Write weights into a model's folder, atomically; returns their SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / WEIGHTS) as partial:
        save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, partial)
        partial.chmod(0o644)  # safetensors writes for its user alone
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def save_model(folder: str | Path, card: ModelCard, state: dict[str, Tensor]) -> ModelCard:
    """Write weights and card; returns the card with hash and parameter count filled in."""
    folder = Path(folder)
    digest = write_weights(folder, state)
    trained = dict(build(card.network, card.parameters).named_parameters())
    count = sum(v.numel() for k, v in state.items() if k in trained)
    card = card.model_copy(update={"weights_sha256": digest, "n_parameters": count})
    write_card(folder, card)
    return card
