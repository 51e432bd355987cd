"""From the tomogram as given to the volume that the networks read.

In: the tomogram, the localizer's card. Out: the prepared volume (zyx, the model's voxel size,
particles dark, background mean 0 and SD 1), the way back to the given voxels with quality figures
(`VolumeTransform`), and a grey picture of the middle slice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tomoline.contracts import STATISTICS, VolumeTransform
from tomoline.errors import InputError
from tomoline.io import imod
from tomoline.io.atomic import atomic_path, scratch_beside
from tomoline.io.mrc import MrcHeader, open_volume, read_header, to_zyx, write_volume
from tomoline.io.png import write_grey
from tomoline.log import get_logger
from tomoline.networks.cards import ModelCard, load_card
from tomoline.ops.normalise import Scale, apply_scale, blocks, clipped_share, repair, robust_scale
from tomoline.ops.rescale import plan_axis, rescale, rescale_axis
from tomoline.ops.statistics import grey_statistics
from tomoline.settings import PrepareSettings

SETTINGS = PrepareSettings

# Rounding in headers stays below it, real differences of binning lie far above.
_VOXEL_SIZE_TOLERANCE = 0.005
_THIN_ANGSTROM = 500.0
# Detail that was not recorded cannot be made: from here on small particles suffer.
_COARSE_RATIO = 1.5
_BRIGHT_SKEWNESS = 0.4
_PICTURE_EDGE = 512
_SLAB_SECTIONS = 5

_LOG = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Given:
    """The tomogram as read: `volume` is repaired and in file order, `axes` names that order."""

    header: MrcHeader
    volume: NDArray[Any]
    axes: str
    voxel_size_angstrom: float
    not_finite_share: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Scaled:
    """The volume (zyx) at the model's voxel size: `given = scaled * scale_zyx + offset_zyx`.

    `is_own` says that it is a float32 array of ours, which may be overwritten.
    """

    volume: NDArray[Any]
    is_own: bool
    scale_zyx: tuple[float, float, float]
    offset_zyx: tuple[float, float, float] = (0.0, 0.0, 0.0)


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    settings: PrepareSettings,
    dataset: Mapping[str, Any],
    axes: str = "",
) -> None:
    """Prepare one tomogram.

    Parameters
    ----------
    inputs:
        `tomogram` (MRC, gzip and bzip2 too) and `model` (the localizer's card).
    outputs:
        `volume` (float32 MRC), `transform` (JSON) and `picture` (PNG).
    dataset:
        Settings of the dataset: `voxel_size_angstrom` overrides the header, `contrast`, `axes`.
    axes:
        Axis order from the sheet's row, used where the dataset says auto.

    Raises
    ------
    InputError
        For a tomogram that cannot be used; it names the file, what was expected, and the remedy.
    ToolError
        With `imod: true`, where IMOD is missing or fails.
    """
    card = load_card(str(inputs["model"]))
    given = _read(Path(str(inputs["tomogram"])), settings, dataset, axes)
    figures = _figures(given)
    scale = _wanted_scale(given, settings, card)
    if settings.imod:
        scaled = _imod_route(given, scale, output=str(outputs["volume"]))
    else:
        scaled = _native_route(given, scale)
    contrast = str(dataset.get("contrast") or "dark")
    grey = _grey_scale(given, scaled)
    reuse = scaled.volume if scaled.is_own else None
    prepared = apply_scale(scaled.volume, grey, invert=contrast == "bright", out=reuse)
    _write(prepared, outputs, _transform(given, scaled, prepared, contrast, figures | _of(grey)))


def _read(path: Path, settings: PrepareSettings, dataset: Mapping[str, Any], axes: str) -> _Given:
    header = read_header(path)
    override = dataset.get("voxel_size_angstrom")
    voxel_size, notes = _voxel_size(header, None if override is None else float(override))
    order = str(dataset.get("axes") or "auto")
    if order == "auto":
        order = axes or "xyz"
    if min(header.file_shape) < 2:
        raise InputError(
            path,
            expected="a volume of several sections",
            found=f"an image of {' x '.join(str(n) for n in header.file_shape[::-1])} voxels",
            remedy="give the reconstructed tomogram, not a projection or a slice",
        )
    volume, bad = repair(open_volume(path, header))
    if bad > settings.max_out_of_range:
        raise InputError(
            path,
            expected=f"at most {settings.max_out_of_range:.4g} of the voxels NaN or infinite",
            found=f"{bad:.4g}",
            remedy="reconstruct it again, or raise prepare.max_out_of_range",
        )
    if bad:
        notes.append(f"{bad:.3g} of the voxels were NaN or infinite and were set to the mean")
    warnings = (*header.warnings, *notes)
    for warning in warnings:
        _LOG.warning("%s: %s", path, warning)
    return _Given(
        header=header,
        volume=volume,
        axes=order,
        voxel_size_angstrom=voxel_size,
        not_finite_share=bad,
        warnings=warnings,
    )


def _voxel_size(header: MrcHeader, override: float | None) -> tuple[float, list[str]]:
    """Return the voxel size to use, and what to tell about it; InputError if there is none."""
    found = " x ".join(f"{size:g}" for size in header.voxel_size_xyz)
    own = header.voxel_size_angstrom
    if override is None and own is None:
        raise InputError(
            header.path,
            expected="a voxel size in the header",
            found=f"{found} angstrom, which programs write when they do not know it",
            remedy="set voxel_size_angstrom in the dataset's file in config/datasets",
        )
    if override is None:
        if header.anisotropic:
            raise InputError(
                header.path,
                expected="equal voxel sizes along x, y and z",
                found=f"{found} angstrom",
                remedy="resample the tomogram to cubic voxels, or, if the header is wrong, set "
                "voxel_size_angstrom in the dataset's file in config/datasets",
            )
        assert own is not None
        return own, []
    if own is None:
        return override, [
            f"the header's voxel size is {found} angstrom; {override:g}, the dataset's, is used"
        ]
    differs = any(
        abs(size / override - 1) > _VOXEL_SIZE_TOLERANCE for size in header.voxel_size_xyz
    )
    if differs:
        return override, [
            f"the header's voxel size, {found} angstrom, disagrees with the dataset's, "
            f"{override:g}, which is used"
        ]
    return override, []


def _figures(given: _Given) -> dict[str, Any]:
    """Return statistics of the given voxels; InputError for a constant volume."""
    low, high, total, squares = np.inf, -np.inf, 0.0, 0.0
    shift = float(given.volume[0, 0, 0])  # keeps digits where the offset is large
    for part in blocks(given.volume):
        values = np.ascontiguousarray(given.volume[part], np.float64)
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        total += float((values - shift).sum())
        squares += float(np.square(values - shift).sum())
    if low == high:
        raise InputError(
            given.header.path,
            expected="a tomogram with varying grey values",
            found=f"every voxel is {low:g}",
            remedy="reconstruct it again, or leave it out",
        )
    mean = total / given.volume.size
    return {
        "given_mean": mean + shift,
        "given_sd": float(np.sqrt(max(0.0, squares / given.volume.size - mean**2))),
        "given_min": low,
        "given_max": high,
        "not_finite_share": given.not_finite_share,
        "header_voxel_size_xyz_angstrom": list(given.header.voxel_size_xyz),
        "header_origin_xyz_angstrom": list(given.header.origin_xyz),
        "header_mode": given.header.mode,
    }


def _grey_scale(given: _Given, scaled: _Scaled) -> Scale:
    grey = robust_scale(scaled.volume)
    if grey.sd <= 0:
        raise InputError(
            given.header.path,
            expected="a tomogram with varying grey values",
            found="99% of its voxels are equal",
            remedy="reconstruct it again, or leave it out",
        )
    return grey


def _of(grey: Scale) -> dict[str, Any]:
    return {"robust_mean": grey.mean, "robust_sd": grey.sd}


def _wanted_scale(given: _Given, settings: PrepareSettings, card: ModelCard) -> float:
    """Return given voxels per prepared voxel; exactly 1 where the voxel size is near enough."""
    scale = card.voxel_size_angstrom / given.voxel_size_angstrom
    if abs(scale - 1) <= settings.rescale_tolerance:
        return 1.0
    if settings.rescale == "auto":
        return scale
    low, high = card.voxel_size_range_angstrom
    if low <= given.voxel_size_angstrom <= high:
        return 1.0
    raise InputError(
        given.header.path,
        expected=f"a voxel size of {low:g} to {high:g} angstrom, which {card.name} reads",
        found=f"{given.voxel_size_angstrom:g} angstrom, with prepare.rescale never",
        remedy="set prepare.rescale to auto, or correct voxel_size_angstrom of the dataset",
    )


def _native_route(given: _Given, scale: float) -> _Scaled:
    volume = to_zyx(given.volume, given.axes)
    if scale == 1.0:
        return _Scaled(volume=volume, is_own=False, scale_zyx=(1.0, 1.0, 1.0))
    rescaled, reached = rescale(volume, scale)
    return _Scaled(volume=rescaled, is_own=True, scale_zyx=reached)


def _imod_route(given: _Given, scale: float, *, output: str) -> _Scaled:
    """Do the same with IMOD's programs.

    They get a clean copy of what was read, because they write beside their input, and read neither
    compressed files nor an overridden voxel size. A whole factor is binned by binvol; any other is
    done by newstack in x and y and, as newstack leaves z alone, by our own Fourier crop in z.
    """
    with scratch_beside(output) as folder:
        current, following = folder / "a.mrc", folder / "b.mrc"
        write_volume(current, np.asarray(given.volume, np.float32), given.voxel_size_angstrom)
        if given.axes == "xzy":
            imod.rotate_rx(current, following)
            current, following = following, current
        offset, reached = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        if scale != 1.0:
            whole = round(scale)
            if whole >= 2 and abs(scale / whole - 1) < 1e-4:
                geometry = imod.bin_volume(current, following, whole)
            else:
                geometry = imod.scale_sections(current, following, scale)
            offset, reached = geometry.offset_zyx, geometry.scale_zyx
            current = following
        volume = np.array(open_volume(current), np.float32)
    if scale != 1.0 and reached[0] == 1.0:
        plan = plan_axis(volume.shape[0], scale)
        volume = rescale_axis(volume, plan, 0)
        reached = (plan.scale, *reached[1:])
    return _Scaled(volume=volume, is_own=True, scale_zyx=reached, offset_zyx=offset)


def _transform(
    given: _Given,
    scaled: _Scaled,
    prepared: NDArray[np.float32],
    contrast: str,
    figures: Mapping[str, Any],
) -> VolumeTransform:
    voxel_size = given.voxel_size_angstrom * float(np.mean(scaled.scale_zyx))
    added = {
        "clipped_share": clipped_share(prepared),
        "skewness": _skewness(prepared),
        "depth_vox": prepared.shape[0],
        "thin": prepared.shape[0] * voxel_size < _THIN_ANGSTROM,
        # For the verdict on whether the model knows such tomograms, which `cluster` gives.
        STATISTICS: {k: float(f"{v:.5g}") for k, v in grey_statistics(prepared).items()},
    }
    notes = _notes(given, added, voxel_size, contrast)
    nz, ny, nx = to_zyx(given.volume, given.axes).shape
    pz, py, px = prepared.shape
    return VolumeTransform(
        source=str(given.header.path),
        file_shape=given.header.file_shape,
        given_shape_zyx=(nz, ny, nx),
        prepared_shape_zyx=(pz, py, px),
        given_voxel_size_angstrom=given.voxel_size_angstrom,
        prepared_voxel_size_angstrom=voxel_size,
        scale_zyx=scaled.scale_zyx,
        offset_zyx=scaled.offset_zyx,
        axes=given.axes,
        contrast=contrast,
        quality={**figures, **added},
        warnings=(*given.warnings, *notes),
    )


def _notes(
    given: _Given, quality: Mapping[str, Any], voxel_size: float, contrast: str
) -> list[str]:
    """Return, and log, what the user should know of the prepared volume."""
    notes = []
    depth = quality["depth_vox"]
    if quality["thin"]:
        notes.append(
            f"thin: {depth} sections, {depth * voxel_size:.0f} angstrom; particles near its two "
            "faces are found less surely"
        )
    if given.voxel_size_angstrom > _COARSE_RATIO * voxel_size:
        notes.append(
            f"its voxels of {given.voxel_size_angstrom:g} angstrom are coarser than the model's "
            f"{voxel_size:.4g}; detail that the model uses is missing"
        )
    if quality["skewness"] > _BRIGHT_SKEWNESS:
        notes.append(
            f"with contrast {contrast} its strongest features are bright, where particles should "
            "be dark; if it is the wrong way round, change contrast in the dataset's file"
        )
    for note in notes:
        _LOG.warning("%s: %s", given.header.path, note)
    return notes


def _slab(prepared: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of the middle sections, `(y, x)`."""
    first = max(0, (prepared.shape[0] - _SLAB_SECTIONS) // 2)
    slab: NDArray[np.float32] = prepared[first : first + _SLAB_SECTIONS].mean(
        axis=0, dtype=np.float32
    )
    return slab


def _skewness(prepared: NDArray[np.float32]) -> float:
    """Return the skewness of the middle slab between 2 and 20 voxels: below 0 if dark on bright."""
    slab = _slab(prepared)
    band = ndimage.gaussian_filter(slab, 2.0) - ndimage.gaussian_filter(slab, 20.0)
    spread = float(band.std())
    if spread <= 1e-6:
        return 0.0
    return float((((band - band.mean()) / spread) ** 3).mean())


def _picture(prepared: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the middle slab, lightly smoothed, at most 512 pixels an edge, y up as in IMOD."""
    slab = ndimage.gaussian_filter(_slab(prepared), 0.8)
    step = -(-max(slab.shape) // _PICTURE_EDGE)
    ny, nx = (max(1, size // step) for size in slab.shape)
    step_y, step_x = (min(step, size) for size in slab.shape)
    binned = slab[: ny * step_y, : nx * step_x].reshape(ny, step_y, nx, step_x).mean(axis=(1, 3))
    low, high = np.percentile(binned, (0.5, 99.5))
    grey = np.clip((binned - low) / max(float(high - low), 1e-6), 0, 1)
    pixels: NDArray[np.uint8] = np.round(255 * grey[::-1]).astype(np.uint8)
    return pixels


def _write(
    prepared: NDArray[np.float32], outputs: Mapping[str, Any], transform: VolumeTransform
) -> None:
    write_volume(str(outputs["volume"]), prepared, transform.prepared_voxel_size_angstrom)
    write_grey(str(outputs["picture"]), _picture(prepared))
    with atomic_path(str(outputs["transform"])) as temporary:
        transform.save(temporary)
    _LOG.info(
        "%s: %s voxels of %.4g angstrom became %s of %.4g",
        transform.source,
        "x".join(str(n) for n in transform.given_shape_zyx),
        transform.given_voxel_size_angstrom,
        "x".join(str(n) for n in transform.prepared_shape_zyx),
        transform.prepared_voxel_size_angstrom,
    )
