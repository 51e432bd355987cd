"""This workflow's own line as one of a benchmark's methods: the stages that a user runs.

The response is the localizer's merged probability; clusters with the tuned settings then go
through extraction, classifier and vote as in every run. Where the classifier sifts the candidates,
the probability from which on they are particles is tuned, and not their least size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from tomoline.contracts import VolumeTransform
from tomoline.io.atomic import atomic_stream
from tomoline.io.mrc import open_volume
from tomoline.io.tables import ACCEPTED, read_particles, write_candidates
from tomoline.networks.cards import CARD, load_card
from tomoline.ops.clusters import Clusters, connected_clusters, find_clusters
from tomoline.peers.base import SIZES_VOX, Case, Found, Scene, Tuned, best_of, combinations
from tomoline.settings import (
    ClassifySettings,
    ClusterSettings,
    ExtractSettings,
    MergeSettings,
    SegmentSettings,
    TilingSettings,
    VoteSettings,
)
from tomoline.stages import classify, cluster, extract, merge, segment, tile, vote

# As `train` tries them for a model's card.
THRESHOLDS = tuple(round(0.3 + 0.05 * k, 3) for k in range(14))  # 0.3 to 0.95
BANDWIDTHS_VOX = (2.5, 3.0, 3.5, 4.0)
SIFTED_BANDWIDTHS_VOX = (3.0, 3.5)
PROBABILITIES = tuple(round(0.02 * k, 3) for k in range(5, 46))  # 0.1 to 0.9


@dataclass(frozen=True, kw_only=True)
class OwnLine:
    """Localizer and classifier (folders of models); `components`: centres without mean-shift.

    `flips` of the input are averaged over; None: as many as in every run.
    """

    localizer: Path
    classifier: Path
    components: bool = False
    flips: int | None = None

    def respond(self, scene: Scene, response: Path) -> None:
        """Write `particle (Z, Y, X)` uint8, the localizer's probability in 1/255."""
        torch.set_num_threads(scene.threads)
        scene.work.mkdir(parents=True, exist_ok=True)
        plan, shard = str(scene.work / "plan.json"), str(scene.work / "shard.h5")
        probability, mask = str(scene.work / "probability.mrc"), str(scene.work / "mask.mrc")
        given: dict[str, Any] = {
            "volume": str(scene.volume), "transform": str(scene.transform), "plan": plan,
            "card": str(self.localizer / CARD), "shards": [shard],
        }  # fmt: skip
        tile.run(given, {"plan": plan}, settings=TilingSettings())
        segment.run(given, {"probability": shard}, settings=SegmentSettings(**self._flips()))
        merge.run(given, {"probability": probability, "mask": mask}, settings=MergeSettings())
        with atomic_stream(response) as stream, h5py.File(stream, "w") as file:
            values = np.rint(np.asarray(open_volume(probability)) * 255).astype(np.uint8)
            file.create_dataset("particle", data=values, track_times=False)
        for path in (shard, probability, mask):
            Path(path).unlink()

    def tune(self, cases: Sequence[Case]) -> dict[str, Any]:
        """Threshold, bandwidth and least size, without the classes; or the least probability."""
        localizer, classifier = load_card(self.localizer), load_card(self.classifier)
        if classifier.names_whole:
            sift = classifier.sift_for(localizer)
            usual = localizer.threshold if sift is None else sift.threshold
            return self._tune_sifted(cases, usual or 0.5)
        bandwidths = BANDWIDTHS_VOX[:1] if self.components else BANDWIDTHS_VOX
        tried = combinations(threshold=THRESHOLDS, bandwidth_vox=bandwidths, min_size_vox=SIZES_VOX)

        def picks(k: int, settings: Tuned) -> Found:
            found = self._clusters(cases[k].response, settings)
            large = found.size_vox >= settings["min_size_vox"]
            return Found(zyx_vox=found.centres[large], score=found.score[large])

        return best_of(cases, tried, picks)

    def _tune_sifted(self, cases: Sequence[Case], usual: float) -> dict[str, Any]:
        """Threshold near the card's, bandwidth and least probability."""
        best: dict[str, Any] = {}
        for own in combinations(
            threshold=(round(usual - 0.1, 3), usual, round(usual + 0.1, 3)),
            bandwidth_vox=BANDWIDTHS_VOX[:1] if self.components else SIFTED_BANDWIDTHS_VOX,
            min_size_vox=SIZES_VOX[:1],
        ):
            found = [
                self.picks(case.scene, case.response, {**own, "min_probability": 0.0})
                for case in cases
            ]
            tried = [{**own, "min_probability": least} for least in PROBABILITIES]

            def picks(k: int, settings: Tuned, found: Sequence[Found] = found) -> Found:
                kept = found[k].score >= settings["min_probability"]
                names = found[k].classes or []
                return Found(
                    zyx_vox=found[k].zyx_vox[kept], score=found[k].score[kept],
                    classes=[name for name, keep in zip(names, kept, strict=True) if keep],
                )  # fmt: skip

            one = best_of(cases, tried, picks)
            if not best or one["figures"]["goal"] > best["figures"]["goal"]:
                best = one
        return best

    def picks(self, scene: Scene, response: Path, tuned: Tuned) -> Found:
        """Particles that the vote accepts, with its classes."""
        torch.set_num_threads(scene.threads)
        scene.work.mkdir(parents=True, exist_ok=True)
        found = self._clusters(response, tuned)
        given: dict[str, Any] = {
            "volume": str(scene.volume), "transform": str(scene.transform),
            "card": str(self.classifier / CARD), "localizer": str(self.localizer / CARD),
            "classifier": str(self.classifier / CARD),
        }  # fmt: skip
        files = {
            "candidates": "candidates.csv", "subtomograms": "subtomograms.h5",
            "classes": "classes.h5", "particles": "particles.csv", "segmentation": "labels.mrc.gz",
        }  # fmt: skip
        given |= {name: str(scene.work / file) for name, file in files.items()}
        volume = open_volume(scene.volume)
        own = ClusterSettings(min_size_vox=int(tuned["min_size_vox"]), border_vox=0)
        reasons = cluster.reasons_of(found, volume.shape, own)
        write_candidates(given["candidates"], cluster.table_of(found, reasons, volume))
        extract.run(given, given, settings=ExtractSettings())
        classify.run(given, given, settings=ClassifySettings(**self._flips()))
        least = tuned.get("min_probability")
        vote.run(given, given, settings=VoteSettings(min_probability=least), tomogram="benchmark",
                 dataset={"name": "benchmark", "sheet": "none"})  # fmt: skip
        table = read_particles(given["particles"])
        table = table[table["status"] == ACCEPTED]
        zyx = VolumeTransform.load(scene.transform).to_prepared(
            table[["z_vox", "y_vox", "x_vox"]].to_numpy(float)
        )
        return Found(zyx_vox=zyx, score=table["score"].to_numpy(float),
                     classes=[str(name) for name in table["class"]])  # fmt: skip

    def _flips(self) -> dict[str, Any]:
        return {} if self.flips is None else {"test_time_flips": self.flips}

    def _clusters(self, response: Path, settings: Tuned) -> Clusters:
        return _clusters(
            response, float(settings["threshold"]),
            None if self.components else float(settings["bandwidth_vox"]),
        )  # fmt: skip


@lru_cache(maxsize=256)
def _clusters(response: Path, threshold: float, bandwidth_vox: float | None) -> Clusters:
    """By mean-shift, or with no bandwidth the connected components as they are."""
    probability = _probability(response)
    mask = probability >= threshold
    if bandwidth_vox is None:
        return connected_clusters(mask, probability)
    return find_clusters(mask, probability, bandwidth_vox=bandwidth_vox)


@lru_cache(maxsize=4)
def _probability(response: Path) -> Any:
    with h5py.File(response, "r") as file:
        return file["particle"][...] / np.float32(255)
