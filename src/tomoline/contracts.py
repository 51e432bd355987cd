"""What the rooms hand to each other: file names, columns and the geometry that ties them.

Axes are (z, y, x) everywhere in memory. A coordinate is 0-based and sub-voxel; an integer is the
centre of that voxel.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

STAGES = (
    "prepare",
    "tile",
    "segment",
    "merge",
    "cluster",
    "extract",
    "classify",
    "vote",
    "export",
)

# Sheet written by `tomoline onboard`: config/datasets/<name>.tsv, one row a tomogram.
SHEET_COLUMNS = (
    "tomogram",  # unique safe name, affixes such as _rec stripped
    "path",  # as found, relative to the repository root where below it, else absolute
    "use",  # yes or no: only `yes` rows are run; a human may edit it
    "verdict",  # ok, warning or refused
    "reason",  # why, in words; empty when ok
    "voxel_size_angstrom",  # header's value (x)
    "nz", "ny", "nx",  # size on file, in file order (sections, rows, columns)
    "mode",
    "axes",  # xyz or xzy
    "tilt_series",  # name of the tilt series in RELION or Warp
    "truth",  # particle_locations.txt, or CSV with x,y,z,cls; may be empty
    "occupancy",  # volume of instance ids for SHREC scoring; may be empty
    "file_bytes", "file_mtime_ns",  # to see what changed
)  # fmt: skip

# cluster -> candidates.csv, in voxels of the prepared volume.
CANDIDATE_COLUMNS = (
    "candidate_id",  # 1..n, stable order (z, y, x)
    "z_prepared_vox", "y_prepared_vox", "x_prepared_vox",
    "status",  # accepted or rejected
    "reason",  # empty when accepted
    "score",  # peak of the smoothed probability within the cluster, 0..1
    "mean_probability",
    "size_vox",
    "contrast",  # density at the centre, in SD of the tomogram's noise
)  # fmt: skip

# vote -> particles.csv, in voxels of the tomogram as it was given. Then p_<class> columns.
PARTICLE_COLUMNS = (
    "tomogram",
    "particle_id",
    "z_vox", "y_vox", "x_vox",
    "voxel_size_angstrom",
    "tomogram_nz", "tomogram_ny", "tomogram_nx",
    "binning",  # tomogram voxel size / tilt series pixel size
    "status",  # accepted or rejected
    "reason",
    "score",
    "size_vox",  # prepared voxels in the localizer's cluster
    "class",  # empty when rejected
    "vote_share", "margin",
)  # fmt: skip

# Between those and the p_<class> columns, where the localizer's card has a precision curve or the
# classifier's says how it sifts.
EXPECTED_PRECISION = "expected_precision"  # 0..1: that there is a particle, by its score

BACKGROUND = "background"
STATISTICS = "statistics"  # of the grey values, in the `quality` of prepared.json
DOMAIN = "domain.json"  # cluster -> whether the model can judge the tomogram: in_domain, reason


@dataclass(frozen=True, kw_only=True)
class VolumeTransform:
    """How a prepared volume lies in the tomogram as it was given (written as prepared.json).

    The file's array is `(nz, ny, nx)` in file order. `axes == "xzy"` means the file is IMOD
    `tilt` output (x, depth, y): the volume in zyx order is obtained by `trimvol -rx`'s rotation,
    and *given coordinates are those of the rotated volume* (what every later program uses) unless
    `report_in_file_axes`. Rescaling keeps voxel 0's centre where it is: per axis
    `given = prepared * scale_zyx + offset_zyx`.
    """

    source: str
    file_shape: tuple[int, int, int]
    given_shape_zyx: tuple[int, int, int]
    prepared_shape_zyx: tuple[int, int, int]
    given_voxel_size_angstrom: float
    prepared_voxel_size_angstrom: float
    scale_zyx: tuple[float, float, float]
    offset_zyx: tuple[float, float, float] = (0.0, 0.0, 0.0)
    axes: str = "xyz"
    contrast: str = "dark"
    quality: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def to_given(self, zyx: NDArray[np.float64]) -> NDArray[np.float64]:
        """Coordinates `(n, 3)` of the prepared volume in voxels of the given one."""
        scale, offset = np.asarray(self.scale_zyx, float), np.asarray(self.offset_zyx, float)
        given: NDArray[np.float64] = np.asarray(zyx, float) * scale + offset
        return given

    def to_prepared(self, zyx: NDArray[np.float64]) -> NDArray[np.float64]:
        """Coordinates `(n, 3)` of the given volume in voxels of the prepared one."""
        scale, offset = np.asarray(self.scale_zyx, float), np.asarray(self.offset_zyx, float)
        prepared: NDArray[np.float64] = (np.asarray(zyx, float) - offset) / scale
        return prepared

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> VolumeTransform:
        """Read what `save` wrote."""
        raw = json.loads(Path(path).read_text())
        for key in ("file_shape", "given_shape_zyx", "prepared_shape_zyx"):
            raw[key] = tuple(int(n) for n in raw[key])
        for key in ("scale_zyx", "offset_zyx"):
            raw[key] = tuple(float(n) for n in raw[key])
        raw["warnings"] = tuple(raw["warnings"])
        return cls(**raw)


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One window, all in prepared voxels, half-open (start, stop), zyx.

    `read` is what the network sees, `keep` (inside `read`) is what the merge takes from it.
    """

    index: int
    read_start: tuple[int, int, int]
    read_stop: tuple[int, int, int]
    keep_start: tuple[int, int, int]
    keep_stop: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class TilePlan:
    """All windows of a volume (written as plan.json). `keep` boxes partition the volume."""

    shape_zyx: tuple[int, int, int]
    size_vox: int
    halo_vox: int
    tiles: tuple[Tile, ...]

    def shard(self, number: int, of: int) -> tuple[Tile, ...]:
        """Tiles of shard `number` (1-based) of `of`: every `of`-th one."""
        return self.tiles[number - 1 :: of]

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> TilePlan:
        """Read what `save` wrote."""
        raw = json.loads(Path(path).read_text())
        tiles = tuple(
            Tile(index=t["index"], **{k: tuple(v) for k, v in t.items() if k != "index"})
            for t in raw.pop("tiles")
        )
        raw["shape_zyx"] = tuple(raw["shape_zyx"])
        return cls(tiles=tiles, **raw)
