"""What a tomogram file is, from its header and a look at its voxels, and whether it can be used.

`survey` gathers the facts of one file; `judge` turns facts into a verdict with reasons. Nothing
here writes or decides silently: whatever is assumed becomes a reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tomoline.errors import InputError
from tomoline.io.mrc import MrcHeader, open_volume, read_header, to_zyx
from tomoline.io.sheet import Verdict
from tomoline.settings import PrepareSettings

Axes = Literal["xyz", "xzy"]
Contrast = Literal["dark", "bright"]

# Volumes of at most this many voxels are read whole, of larger ones some sections.
_WHOLE_VOXELS = 64 * 1024**2
_SECTIONS = 15
_SLAB_SECTIONS = 5
_PICTURE_EDGE = 256
# Half a per cent: rounding in headers stays below it, real differences of binning lie above.
_VOXEL_TOLERANCE = 0.005
# Particles of 70 to 300 A need some room above and below them.
_THIN_ANGSTROM = 500.0
_THIN_VOX = 48
_LEAST_EDGE_VOX = 16
_SMALL_VOX = 80
# `tilt` writes (x, depth, y): a middle dimension this much smaller than the last is the depth.
_SWAPPED_RATIO = 0.75
# Seen on real and simulated tomograms: -2.9 to -2.0 dark, +1.1 to +2.6 bright; noise within 0.1.
_SKEWNESS_LEAST = 0.4
_MOST_NOT_FINITE = PrepareSettings().max_out_of_range


@dataclass(frozen=True, kw_only=True)
class Look:
    """Statistics of the sampled voxels, and the middle slice.

    `picture` is a slab mean `(y, x)` float32 of the volume in zyx order, binned to at most 256
    pixels an edge. `skewness` is that of the low-passed slab: negative where the strongest
    features are dark.
    """

    picture: NDArray[np.float32]
    not_finite: float
    constant: bool
    empty_sections: float
    skewness: float

    @property
    def contrast(self) -> Contrast | None:
        """What the particles look like, or None where the picture does not say."""
        if abs(self.skewness) < _SKEWNESS_LEAST:
            return None
        return "dark" if self.skewness < 0 else "bright"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that is known of one file. `trouble` is set where it could not be read as a volume."""

    path: Path
    file_bytes: int | None
    file_mtime_ns: int | None
    header: MrcHeader | None = None
    axes: Axes = "xyz"
    axes_notes: tuple[str, ...] = ()
    look: Look | None = None
    trouble: str = ""


@dataclass(frozen=True, kw_only=True)
class Expectations:
    """What the dataset and the model ask of a file.

    `voxel_size_angstrom` overrides the header; `usual_voxel_size_angstrom` is what most files of
    the dataset have; `voxel_range_angstrom` is what the model reads, `rescaled` whether other
    sizes are brought to it.
    """

    voxel_size_angstrom: float | None = None
    usual_voxel_size_angstrom: float | None = None
    voxel_range_angstrom: tuple[float, float] | None = None
    rescaled: bool = True
    contrast: Contrast = "dark"


def survey(path: str | Path, *, axes: Literal["auto", "xyz", "xzy"] = "auto") -> Facts:
    """Read header and sample voxels of one file; problems are recorded, not raised."""
    path = Path(path)
    try:
        stat = path.stat()
    except OSError as error:
        reason = error.strerror or "unknown error"
        return Facts(path=path, file_bytes=None, file_mtime_ns=None, trouble=reason)
    facts = Facts(path=path, file_bytes=stat.st_size, file_mtime_ns=stat.st_mtime_ns)
    try:
        header = read_header(path)
        facts = replace(facts, header=header)
        if min(header.file_shape) < _LEAST_EDGE_VOX:
            return facts  # an image or a stub: nothing to look at
        order, notes = (axes, ()) if axes != "auto" else guess_axes(header)
        volume = to_zyx(open_volume(path, header), order)
        scale = header.voxel_size_angstrom or 10.0
        look = look_at(volume, voxel_size_angstrom=scale)
        return replace(facts, axes=order, axes_notes=notes, look=look)
    except InputError as error:
        trouble = f"{error.found} (expected {error.expected}); {error.remedy}"
        return replace(facts, trouble=trouble)
    except (OSError, MemoryError, ValueError) as error:
        return replace(facts, trouble=f"cannot be read ({type(error).__name__}: {error})")


def guess_axes(header: MrcHeader) -> tuple[Axes, tuple[str, ...]]:
    """Tell from shape and IMOD's labels whether a file is `tilt`'s own output (x, depth, y).

    Labels alone do not settle it, because some programs copy them and turn the volume without
    adding one; where they disagree with the shape, the shape decides and both are told.
    """
    nz, ny, _ = header.shape_zyx
    turned = _turn_since_tilt(header.labels)
    if turned == "flipped":
        return "xyz", (
            "IMOD's label says that y and z were swapped (trimvol -yz or clip flipyz), which "
            "mirrors the specimen; use trimvol -rx",
        )
    if ny < _SWAPPED_RATIO * nz:
        how = (
            "IMOD's label says that it came straight from tilt"
            if turned == "raw"
            else "no label of IMOD tells; if the specimen is really thin in y, set axes to xyz"
        )
        return "xzy", (f"y and z are swapped (the middle dimension, {ny}, is the depth; {how}); "
                       "it will be turned about x as trimvol -rx does",)  # fmt: skip
    if turned == "raw" and nz < _SWAPPED_RATIO * ny:
        return "xyz", (
            "IMOD's label says that it came straight from tilt, yet the last dimension is the "
            "thin one; taken as x, y, z",
        )
    if turned == "raw":
        return "xzy", (
            "IMOD's label says that it came straight from tilt (x, depth, y), and its shape does "
            "not tell; it will be turned about x as trimvol -rx does. If that is wrong, set axes "
            "to xyz",
        )
    return "xyz", ()


def look_at(volume: NDArray[Any], *, voxel_size_angstrom: float) -> Look:
    """Sample a `(z, y, x)` volume: finite, varying, its contrast, and a picture of its middle.

    Small volumes are read whole, of large ones 15 sections, so that a folder of large tomograms
    takes seconds each.
    """
    nz = volume.shape[0]
    count = nz if volume.size <= _WHOLE_VOXELS else min(nz, _SECTIONS)
    bad, empty, lows, highs = 0, 0, [], []
    sections = np.unique(np.linspace(0, nz - 1, count).round().astype(int))
    for k in sections:
        plane = np.asarray(volume[k], np.float32)
        finite = plane[np.isfinite(plane)]
        bad += plane.size - finite.size
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
        empty += int(low == high)
        lows.append(low)
        highs.append(high)
    slab = _middle_slab(volume)
    return Look(
        picture=_binned(slab),
        not_finite=bad / (len(sections) * volume[0].size),
        constant=bool(min(lows) == max(highs)),
        empty_sections=empty / len(sections),
        skewness=_contrast_skewness(slab, voxel_size_angstrom),
    )


def judge(facts: Facts, expected: Expectations) -> tuple[Verdict, list[str]]:
    """Return the verdict and its reasons, refusals first."""
    if facts.trouble or facts.header is None:
        return "refused", [facts.trouble or "no header"]
    refusals, warnings = _judge_shape(facts)
    voxel_refusals, voxel_warnings = _judge_voxel_size(facts.header, expected)
    refusals += voxel_refusals
    warnings += [*voxel_warnings, *facts.axes_notes, *facts.header.warnings]
    if facts.look is not None:
        look_refusals, look_warnings = _judge_look(facts.look, expected.contrast)
        refusals += look_refusals
        warnings += look_warnings
    if refusals:
        return "refused", refusals + warnings
    return ("warning" if warnings else "ok"), warnings


def grey_picture(picture: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Stretch a slice between its 0.5 and 99.5 percentiles to 0..255."""
    low, high = np.percentile(picture, (0.5, 99.5))
    scaled = (picture - low) / max(float(high - low), 1e-30)
    grey: NDArray[np.uint8] = (np.clip(scaled, 0, 1) * 255).round().astype(np.uint8)
    return grey


def _turn_since_tilt(labels: Sequence[str]) -> Literal["raw", "turned", "flipped", "unknown"]:
    state: Literal["raw", "turned", "flipped", "unknown"] = "unknown"
    for label in labels:
        text = label.lower()
        if text.startswith("tilt:") or "tomographic reconstruction" in text:
            state = "raw"
        elif "flipyz" in text or "flipzy" in text:
            state = "flipped" if state in ("raw", "unknown") else state
        elif "rotx" in text or "rotatevol" in text:
            state = "turned"
    return state


def _judge_shape(facts: Facts) -> tuple[list[str], list[str]]:
    assert facts.header is not None
    nz, ny, nx = facts.header.file_shape
    size = f"{nx} x {ny} x {nz} voxels"
    if 1 in (nz, ny, nx):
        return [f"an image, not a volume ({size}); give reconstructed tomograms"], []
    if min(nz, ny, nx) < _LEAST_EDGE_VOX:
        return [f"too small ({size}; every edge must have {_LEAST_EDGE_VOX} at least)"], []
    if max(nz, ny, nx) < _SMALL_VOX:
        return [], [f"small ({size}); more like a subtomogram than a tomogram"]
    depth = ny if facts.axes == "xzy" else nz
    voxel = facts.header.voxel_size_angstrom
    thin = depth * voxel < _THIN_ANGSTROM if voxel else depth < _THIN_VOX
    if thin:
        thickness = f"{depth} sections" + (f", {depth * voxel:.0f} A" if voxel else "")
        return [], [f"thin ({thickness}); particles near its two faces are found less surely"]
    return [], []


def _judge_voxel_size(header: MrcHeader, expected: Expectations) -> tuple[list[str], list[str]]:
    given, override = header.voxel_size_angstrom, expected.voxel_size_angstrom
    remedy = "give it: --voxel-size A"
    raw = ", ".join(f"{value:g}" for value in header.voxel_size_xyz)
    if given is None and override is None:
        return [f"the header's voxel size is {raw} A, which says nothing; {remedy}"], []
    if override is None and header.anisotropic:
        return [f"anisotropic voxels ({raw} A); resample it to cubes, or {remedy}"], []
    warnings = []
    used = override if override is not None else given
    assert used is not None
    if given is None:
        warnings.append(f"the header's voxel size is {raw} A; {used:g} A, as given, is used")
    elif header.anisotropic:
        warnings.append(f"anisotropic voxels in the header ({raw} A); taken as {used:g} A")
    elif _differs(used, given):
        warnings.append(f"the header says {given:g} A; {used:g} A, as given, is used")
    usual = expected.usual_voxel_size_angstrom
    if override is None and usual is not None and _differs(used, usual):
        warnings.append(f"voxel size {used:g} A, others of the dataset have {usual:g} A")
    if expected.voxel_range_angstrom is not None:
        low, high = expected.voxel_range_angstrom
        reason = f"voxel size {used:g} A; the model reads {low:g} to {high:g} A"
        if not expected.rescaled and not low <= used <= high:
            return [f"{reason}, and prepare.rescale is never"], warnings
        if used > high:
            warnings.append(f"{reason}; finer detail than it has cannot be made by rescaling")
    return [], warnings


def _judge_look(look: Look, contrast: Contrast) -> tuple[list[str], list[str]]:
    if look.not_finite >= 1:
        return ["every voxel looked at is NaN or infinite"], []
    if look.constant:
        return ["constant: every voxel looked at has the same value"], []
    if look.not_finite > _MOST_NOT_FINITE:
        share = f"{100 * look.not_finite:.2g} %"
        return [f"{share} of the voxels are NaN or infinite; reconstruct it again"], []
    warnings = []
    if look.not_finite > 0:
        share = f"{100 * look.not_finite:.2g} %"
        warnings.append(f"{share} of the voxels are NaN or infinite; they will be repaired")
    if look.empty_sections > 0.1:
        warnings.append(f"{100 * look.empty_sections:.0f} % of the sections are empty; trim it")
    if look.contrast is not None and look.contrast != contrast:
        warnings.append(
            f"its features look {look.contrast} (skewness {look.skewness:+.1f}) but the dataset's "
            f"contrast is {contrast}; look at its picture, and if particles are "
            f"{look.contrast}, use --contrast {look.contrast}"
        )
    return [], warnings


def _differs(a: float, b: float) -> bool:
    return abs(a - b) > _VOXEL_TOLERANCE * max(a, b)


def _middle_slab(volume: NDArray[Any]) -> NDArray[np.float32]:
    """Mean of the five middle sections `(y, x)`, voxels that are not finite left out."""
    nz = volume.shape[0]
    start = max(0, nz // 2 - _SLAB_SECTIONS // 2)
    planes = np.asarray(volume[start : start + _SLAB_SECTIONS], np.float32)
    finite = np.isfinite(planes)
    total = np.where(finite, planes, 0).sum(axis=0, dtype=np.float64)
    number = finite.sum(axis=0)
    mean = total / np.maximum(number, 1)
    fill = mean[number > 0].mean() if (number > 0).any() else 0.0
    slab: NDArray[np.float32] = np.where(number > 0, mean, fill).astype(np.float32)
    return slab


def _contrast_skewness(slab: NDArray[np.float32], voxel_size_angstrom: float) -> float:
    """Skewness of the slab between 20 and 200 A: its sign is that of the strongest features."""
    fine = float(np.clip(20.0 / voxel_size_angstrom, 1.0, 10.0))
    band = ndimage.gaussian_filter(slab, fine)
    band = band - ndimage.gaussian_filter(slab, 10 * fine)
    band = band.astype(np.float64)
    spread = float(band.std())
    if spread <= 1e-6 * max(1e-30, float(np.abs(slab).max())):
        return 0.0
    return float((((band - band.mean()) / spread) ** 3).mean())


def _binned(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average blocks until no edge is longer than the picture's."""
    factor = -(-max(plane.shape) // _PICTURE_EDGE)
    if factor == 1:
        return plane
    ny, nx = (size // factor for size in plane.shape)
    blocks = plane[: ny * factor, : nx * factor].reshape(max(ny, 1), factor, max(nx, 1), factor)
    mean: NDArray[np.float32] = blocks.mean(axis=(1, 3), dtype=np.float32)
    return mean
