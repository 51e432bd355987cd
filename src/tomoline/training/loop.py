"""One training loop for every network: Adam, schedule, validation, early stop, exact resume."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tomoline.errors import InputError
from tomoline.io.atomic import atomic_path
from tomoline.log import get_logger
from tomoline.training import distributed
from tomoline.training.optimisers import Muon
from tomoline.training.options import TrainOptions

MOMENTUM = 0.9  # of SGD
log = get_logger(__name__)


class Recipe(Protocol):
    """What a network needs to be trained; one for each kind of network."""

    @property
    def steps(self) -> int:
        """Batches of an epoch."""

    def epoch(self, epoch: int) -> Iterable[Mapping[str, Tensor]]:
        """Batches of an epoch; the same epoch gives the same batches."""

    def loss(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Scalar loss of a batch."""

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Figures on held-out tomograms; `loss` is among them and is to be made small."""


def learning_rate(options: TrainOptions, progress: float) -> float:
    """Rate at `progress` epochs: warm-up, then VP-Detector's steps, a cosine to zero, or cosines
    with warm restarts."""
    warm = min(1.0, (progress + 1e-3) / options.warmup_epochs) if options.warmup_epochs else 1.0
    if options.schedule == "paper":
        return options.learning_rate * warm * float(0.1 ** (progress // options.step_epochs))
    if options.schedule == "restarts":
        done = (progress % options.step_epochs) / options.step_epochs
    else:
        done = min(1.0, progress / options.max_epochs)
    return options.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * done))


def _processor_time() -> float:
    """Seconds of this process and of its workers that have ended, as those of an epoch have."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _optimiser(network: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    weights, rate = network.parameters(), options.learning_rate
    if options.optimiser == "sgd":
        return torch.optim.SGD(weights, lr=rate, momentum=MOMENTUM)
    kind = Muon if options.optimiser == "muon" else torch.optim.Adam
    return kind(weights, lr=rate, betas=options.betas)


class Trainer:
    """Trains `network` by `recipe` in `folder`: `checkpoint.pt`, `best.pt`, `curves.jsonl`."""

    def __init__(
        self, network: nn.Module, recipe: Recipe, options: TrainOptions, folder: Path
    ) -> None:
        self.network, self.recipe, self.options, self.folder = network, recipe, options, folder
        self.optimiser = _optimiser(network, options)
        self.average = {k: v.detach().clone() for k, v in network.state_dict().items()}
        self.next_epoch, self.steps = 0, 0
        self.best, self.best_epoch = math.inf, -1
        self.voxels_seen, self.processor_s = 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Train until `max_epochs` or until validation has not improved for `patience` epochs."""
        self.resume()
        started, first = time.monotonic(), self.next_epoch
        last = self.options.stop_epochs or self.options.max_epochs
        while self.next_epoch < last and not (self._stale() or self._spent()):
            epoch, begun = self.next_epoch, _processor_time()
            row: dict[str, Any] = {"epoch": epoch, **self._train_epoch(epoch)}
            self.processor_s += _processor_time() - begun
            if self._is_validation_epoch(epoch) or self._spent():
                row.update({f"val_{k}": v for k, v in self._validate().items()})
                if row["val_loss"] < self.best:
                    self.best, self.best_epoch = row["val_loss"], epoch
                    self._save("best.pt")
            self.next_epoch = epoch + 1
            self._record(row)
            self._save("checkpoint.pt")
            distributed.wait()
            pace = (time.monotonic() - started) / (self.next_epoch - first)
            left = pace * (last - self.next_epoch)
            figures = "  ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "epoch")
            log.info("epoch %d of %d  %s  at most %.0f min left", self.next_epoch,
                     last, figures, left / 60)  # fmt: skip

    def best_weights(self) -> dict[str, Tensor]:
        """Averaged weights of the epoch with the smallest validation loss."""
        path = self.folder / "best.pt"
        state = torch.load(path, map_location="cpu", weights_only=True)
        return dict(state["average"])

    def resume(self) -> None:
        """Go on from the checkpoint of this folder, where there is one."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        try:
            self.network.load_state_dict(state["network"])
        except RuntimeError as error:
            raise InputError(
                path, expected="a checkpoint of this network", found=str(error).splitlines()[-1],
                remedy="use the settings it was begun with, or another output folder",
            ) from error  # fmt: skip
        self.optimiser.load_state_dict(state["optimiser"])
        self.average = state["average"]
        self.next_epoch, self.steps = state["next_epoch"], state["steps"]
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.voxels_seen = state.get("voxels_seen", 0)  # a checkpoint of an earlier release
        self.processor_s = state.get("processor_s", 0.0)
        self._trim_curves()
        log.info("going on after epoch %d", self.next_epoch)

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        total, count, rate = 0.0, 0, 0.0
        self.network.train()
        for k, batch in enumerate(self.recipe.epoch(epoch)):
            rate = learning_rate(self.options, epoch + k / self.recipe.steps)
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            self.optimiser.zero_grad(set_to_none=True)
            loss = self.recipe.loss(self.network, batch)
            if not torch.isfinite(loss):
                raise InputError(
                    "train", expected="a finite loss",
                    found=f"{float(loss.detach())} in epoch {epoch}",
                    remedy="lower train.learning_rate; the last checkpoint is kept",
                )  # fmt: skip
            loss.backward()  # type: ignore[no-untyped-call]
            distributed.average_gradients(self.network)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.options.clip_norm)
            self.optimiser.step()
            self.steps += 1
            self.voxels_seen += batch["volume"].numel()
            self._update_average()
            total, count = total + float(loss.detach()), count + 1
        if count < self.recipe.steps:
            raise InputError(
                "train", expected=f"{self.recipe.steps} batches in epoch {epoch}",
                found=str(count),
                remedy="lower train.steps_per_epoch, or raise the number of tomograms",
            )  # fmt: skip
        return {"loss": total / count, "learning_rate": rate}

    def _update_average(self) -> None:
        decay = min(self.options.average_decay, (1 + self.steps) / (10 + self.steps))
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value.detach(), 1 - decay)
            else:  # such as the number of batches that a normalization has seen
                self.average[name].copy_(value)

    def _validate(self) -> dict[str, float]:
        kept = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.network.load_state_dict(self.average)
        self.network.eval()
        with torch.no_grad():
            figures = self.recipe.validate(self.network) if distributed.is_first() else {}
        self.network.load_state_dict(kept)
        return {"loss": distributed.same_everywhere(figures.get("loss", 0.0))} | figures

    def _is_validation_epoch(self, epoch: int) -> bool:
        every = self.options.validate_every
        return (epoch + 1) % every == 0 or epoch + 1 == (
            self.options.stop_epochs or self.options.max_epochs
        )

    def _stale(self) -> bool:
        return self.best_epoch >= 0 and (
            self.next_epoch - 1 - self.best_epoch >= self.options.patience
        )

    def _spent(self) -> bool:
        """Whether the budget of processor time is used up, by any of the processes."""
        hours = self.options.stop_processor_hours
        return bool(hours) and distributed.same_everywhere(self.processor_s) >= 3600 * hours

    def _save(self, name: str) -> None:
        if not distributed.is_first():
            return
        state = {
            "network": self.network.state_dict(), "optimiser": self.optimiser.state_dict(),
            "average": self.average, "next_epoch": self.next_epoch, "steps": self.steps,
            "best": self.best, "best_epoch": self.best_epoch,
            "voxels_seen": self.voxels_seen, "processor_s": self.processor_s,
        }  # fmt: skip
        with atomic_path(self.folder / name) as partial:
            torch.save(state, partial)

    def _record(self, row: Mapping[str, Any]) -> None:
        if not distributed.is_first():
            return
        with (self.folder / "curves.jsonl").open("a") as stream:
            stream.write(json.dumps(row) + "\n")

    def _trim_curves(self) -> None:
        """Drop curve rows that a killed run wrote after its last checkpoint."""
        path = self.folder / "curves.jsonl"
        if path.exists():
            rows = [r for r in path.read_text().splitlines() if r.endswith("}")]
            kept = [r for r in rows if json.loads(r)["epoch"] < self.next_epoch]
            with atomic_path(path) as partial:
                Path(partial).write_text("".join(r + "\n" for r in kept))
