"""Training volumes read from SHREC folders, split by tomogram."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tomoline.errors import InputError
from tomoline.io.annotations import TruthOptions, read_truth
from tomoline.io.mrc import open_volume
from tomoline.io.shrec import model_in
from tomoline.ops.normalise import normalise
from tomoline.training.data import TrainingVolume, core_mask, core_radius


class FolderSource:
    """Tomograms of SHREC folders, split by tomogram into training and validation."""

    def __init__(
        self, train: Sequence[Path], validation: Sequence[Path], classes: Sequence[str],
        radii_vox: Sequence[float], *, seed: int,
    ) -> None:  # fmt: skip
        both = set(map(str, train)) & set(map(str, validation))
        if both or not train or not validation:
            raise InputError(
                "train.folders", expected="training and validation tomograms, none in both",
                found=f"{len(train)} and {len(validation)}, {len(both)} in both",
                remedy="list different tomograms under train.folders and train.validation_folders",
            )  # fmt: skip
        self.train, self.held_out = list(train), list(validation)
        self.classes, self.radii, self.seed = list(classes), list(radii_vox), seed

    def volumes(self, epoch: int, count: int, pool: int = 0) -> list[TrainingVolume]:
        """`count` tomograms, or `pool`, drawn without repetition while there are enough."""
        count = max(pool, count)
        rng = np.random.default_rng([self.seed, epoch, 3])
        order = np.concatenate([rng.permutation(len(self.train)) for _ in range(count)])[:count]
        return [self._read(self.train[k]) for k in order]

    def validation(self, count: int) -> list[TrainingVolume]:
        """The first `count` held-out tomograms."""
        return [self._read(folder) for folder in self.held_out[:count]]

    def _read(self, folder: Path) -> TrainingVolume:
        model = model_in(folder)
        assert model.locations is not None
        if model.occupancy is None:
            raise InputError(
                folder, expected="occupancy_mask.mrc or hitbox_<k>.mrc", found="neither",
                remedy="train on a folder that has it, or on the simulator",
            )  # fmt: skip
        above = model.z_offset_vox() or 0
        table = read_truth(model.locations, TruthOptions(layout=model.layout, z_offset_vox=0))
        # '21 writes PDB codes in capitals
        known = {name.casefold(): k for k, name in enumerate(self.classes, 1)}
        table = table[table["class"].str.casefold().isin(known)]
        labels = np.array([known[c.casefold()] for c in table["class"]], np.int64)
        centres = table[["z_vox", "y_vox", "x_vox"]].to_numpy(float)
        instances = np.asarray(open_volume(model.occupancy)).astype(np.uint16)
        volume = normalise(np.asarray(open_volume(model.reconstruction), np.float32))
        # SHREC'19 and '20: sections above and below the truth's slab teach nothing.
        volume = volume[above : above + len(instances)]
        lookup = np.zeros(max(int(instances.max()), int(table["id"].max())) + 1, np.uint8)
        lookup[table["id"].to_numpy(int)] = labels
        radii = [core_radius(self.radii[k - 1]) for k in labels]
        return TrainingVolume(
            volume, core_mask(volume.shape, centres, radii), lookup[instances], instances,
            centres, labels,
        )  # fmt: skip
