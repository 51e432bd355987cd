"""Options of the training loop (what the `train` section of the configuration turns into)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Optimiser, schedule and stopping; epochs are counted from 0."""

    optimiser: Literal["adam", "muon", "sgd"] = "adam"
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)  # of Adam
    schedule: Literal["paper", "cosine", "restarts"] = "paper"
    step_epochs: int = 80  # paper: divided by 10 after every 80 epochs; restarts: one cosine
    max_epochs: int = 500
    stop_epochs: int = 0  # end here, on the schedule for max_epochs; 0: at its end
    stop_processor_hours: float = 0.0  # end after the epoch that fills it; 0: no limit
    warmup_epochs: float = 0.0
    patience: int = 100  # epochs without a better validation loss before stopping
    validate_every: int = 1
    average_decay: float = 0.99  # exponential average of the weights, what is validated and kept
    clip_norm: float = 1.0
