"""Slices of a tomogram with its picks: as SVG over JPEG for the page, and as one PNG.

All geometry is in voxels of the prepared volume, zyx. Pictures are drawn with y (or z) upwards and
x to the right, as 3dmod shows them.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from tomoline.report.figures import marker, svg
from tomoline.report.pages import data_uri
from tomoline.report.palette import ClassStyle

SLAB_ANGSTROM = 50.0  # thickness that is averaged, so that particles rise above the noise
DEFAULT_RADIUS_VOX = 5.0  # of a class whose picks have no size
MAX_MARKS = 400  # on one slice; more would hide the tomogram
MAX_MARKS_PAGE = 4000  # on all slices together; more would fatten the page
PAGE_PICTURE_BYTES = 760_000  # for all slices of a page, before base64 adds a third
_AXES = ("z", "y", "x")
_MPL_SHAPES = {"circle": "o", "square": "s", "diamond": "D", "triangle": "^"}


@dataclass(frozen=True, kw_only=True)
class Picks:
    """Accepted particles: `zyx` (n, 3) in prepared voxels, `names` (n,) classes, `scores` (n,)."""

    zyx: NDArray[np.float64]
    names: NDArray[np.object_]
    scores: NDArray[np.float64]
    radius_vox: Mapping[str, float]  # a class's marker radius

    def radius(self, name: str) -> float:
        """Marker radius of a class in voxels."""
        return self.radius_vox.get(name, DEFAULT_RADIUS_VOX)


@dataclass(frozen=True, kw_only=True)
class Plane:
    """One slice, or with `index` -1 the mean along the whole axis.

    `pixels` (rows, columns) uint8, row 0 at the top; `marks` (n, 2) column, row.
    """

    axis: int
    index: int
    pixels: NDArray[np.uint8]
    marks: NDArray[np.float64]
    picked: NDArray[np.intp]  # rows of `Picks` that the marks stand for
    n_left_out: int

    @property
    def name(self) -> str:
        """The slice's direction and place, for instance "z = 64"."""
        if self.index < 0:
            return f"along {_AXES[self.axis]}"
        return f"{_AXES[self.axis]} = {self.index}"


def planes(volume: NDArray[Any], picks: Picks, *, n_slices: int,
           voxel_size_angstrom: float) -> list[Plane]:  # fmt: skip
    """Return `n_slices` slices along z, evenly spread, and the middle ones along y and x.

    `volume` (z, y, x) may be memory-mapped: only the slabs shown are read.
    """
    depth = volume.shape[0]
    places = [(2 * i + 1) * depth // (2 * n_slices) for i in range(n_slices)]
    wanted = [(0, place) for place in sorted(set(places))]
    wanted += [(1, volume.shape[1] // 2), (2, volume.shape[2] // 2)]
    half = max(round(SLAB_ANGSTROM / voxel_size_angstrom) // 2, 0)
    most = min(MAX_MARKS, MAX_MARKS_PAGE // len(wanted))
    return [
        _plane(volume, picks, axis=axis, index=index, half=half, most=most)
        for axis, index in wanted
    ]


def projections(volume: NDArray[Any], picks: Picks) -> list[Plane]:
    """Return the means of the whole volume along z and along y, with the picks of best score.

    The volume is read once, a few slices at a time.
    """
    nz, ny, nx = volume.shape
    along_z = np.zeros((ny, nx))
    along_y = np.zeros((nz, nx))
    for start in range(0, nz, 8):
        part = np.asarray(volume[start : start + 8], np.float32)
        along_z += part.sum(axis=0, dtype=np.float64)
        along_y[start : start + 8] = part.mean(axis=1, dtype=np.float64)
    every = np.arange(len(picks.zyx))
    return [
        _with_marks(_grey(image)[::-1], picks, every, axis=axis, index=-1, most=MAX_MARKS)
        for axis, image in ((0, along_z / max(nz, 1)), (1, along_y))
    ]


def _plane(volume: NDArray[Any], picks: Picks, *, axis: int, index: int, half: int,
           most: int) -> Plane:  # fmt: skip
    start, stop = max(index - half, 0), min(index + half + 1, volume.shape[axis])
    slab = np.asarray(volume[(slice(None),) * axis + (slice(start, stop),)], np.float32)
    pixels = _grey(slab.mean(axis=axis))[::-1]
    # Drawn are the particles that the slab cuts: a mark far above its particle would mislead.
    reach = np.array([picks.radius(name) for name in picks.names]) + half
    chosen = np.flatnonzero(np.abs(picks.zyx[:, axis] - index) <= reach)
    return _with_marks(pixels, picks, chosen, axis=axis, index=index, most=most)


def _with_marks(pixels: NDArray[np.uint8], picks: Picks, chosen: NDArray[np.intp], *, axis: int,
                index: int, most: int) -> Plane:  # fmt: skip
    best = chosen[np.argsort(-picks.scores[chosen], kind="stable")][:most]
    up, right = [a for a in range(3) if a != axis]
    # A voxel's centre lies half a pixel inside its square of the picture.
    column = picks.zyx[best, right] + 0.5
    row = pixels.shape[0] - (picks.zyx[best, up] + 0.5)
    return Plane(
        axis=axis,
        index=index,
        pixels=np.ascontiguousarray(pixels),
        marks=np.column_stack([column, row]),
        picked=best,
        n_left_out=len(chosen) - len(best),
    )


def _grey(image: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    finite = image[np.isfinite(image)]
    if finite.size == 0:
        return np.zeros(image.shape, np.uint8)
    low, high = np.percentile(finite, (0.5, 99.5))
    scaled = (np.nan_to_num(image) - low) / max(float(high - low), 1e-12)
    grey: NDArray[np.uint8] = (np.clip(scaled, 0, 1) * 255).round().astype(np.uint8)
    return grey


def encode(shown: Sequence[Plane], limit_bytes: int = PAGE_PICTURE_BYTES) -> list[bytes]:
    """Return each plane as JPEG, all together no larger than `limit_bytes`.

    Quality falls first, then size: a page that opens slowly is worse than a coarser picture.
    """
    encoded: list[bytes] = []
    for edge in (900, 640, 448, 320, 224, 128):
        for quality in (88, 75, 60):
            encoded = [_jpeg(plane.pixels, edge, quality) for plane in shown]
            if sum(map(len, encoded)) <= limit_bytes:
                return encoded
    return encoded


def _jpeg(pixels: NDArray[np.uint8], edge: int, quality: int) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    target = io.BytesIO()
    image.save(target, "JPEG", quality=quality, optimize=True)
    return target.getvalue()


def plane_svg(plane: Plane, jpeg: bytes, picks: Picks, styles: Mapping[str, ClassStyle], *,
              voxel_size_angstrom: float) -> str:  # fmt: skip
    """Return the slice with its marks; each mark is in group `c<index>` of its class."""
    height, width = plane.pixels.shape
    line = max(width, height) / 330  # marks keep their look whatever the tomogram's size
    line *= 0.6 if plane.index < 0 else 1
    groups = []
    for style in styles.values():
        mine = np.flatnonzero(picks.names[plane.picked] == style.name)
        if mine.size == 0:
            continue
        # All picks of a tomogram upon one picture: small marks, or nothing else would be seen.
        radius = picks.radius(style.name) * (0.4 if plane.index < 0 else 1)
        shapes = "".join(
            marker(style.shape, float(x), float(y), radius) for x, y in plane.marks[mine]
        )
        groups.append(
            f'<g class="c{style.index}" fill="none" stroke-linejoin="round">'
            f"<title>{escape(style.name)}</title>"
            f'<g stroke="#000" stroke-opacity=".65" stroke-width="{3.2 * line:.2f}">{shapes}</g>'
            f'<g stroke="{style.colour}" stroke-width="{1.8 * line:.2f}">{shapes}</g></g>'
        )
    body = (
        f'<image width="{width}" height="{height}" preserveAspectRatio="none" '
        f'href="{data_uri(jpeg, "image/jpeg")}"/>{"".join(groups)}'
        f"{_scale_bar(width, height, voxel_size_angstrom)}"
    )
    kind = "Projection" if plane.index < 0 else "Slice"
    title = f"{kind} {plane.name} with {len(plane.marks)} picks"
    return svg(body, width=width, height=height, title=title, kind="plane")


def _scale_bar(width: int, height: int, voxel_size_angstrom: float) -> str:
    nanometres = scale_bar_nm(width * voxel_size_angstrom / 10)
    length = nanometres * 10 / voxel_size_angstrom
    unit = max(width, height) / 100
    x, y = 2 * unit, height - 2.4 * unit
    type_size = f"font-size:{2.9 * unit:.1f}px;fill:#fff"
    return (
        f'<g><rect x="{x - unit:.1f}" y="{y - 4.4 * unit:.1f}" width="{length + 2 * unit:.1f}" '
        f'height="{5.8 * unit:.1f}" fill="#000" fill-opacity=".55"/>'
        f'<rect x="{x:.1f}" y="{y - 0.4 * unit:.1f}" width="{length:.1f}" '
        f'height="{0.8 * unit:.1f}" fill="#fff"/>'
        f'<text x="{x:.1f}" y="{y - 1.2 * unit:.1f}" style="{type_size}">'
        f"{nanometres:g} nm</text></g>"
    )


def scale_bar_nm(width_nm: float) -> float:
    """Return a round length (1, 2 or 5 times a power of ten) of at most a quarter of the width."""
    most = max(width_nm / 4, 1e-9)
    power = 10.0 ** math.floor(math.log10(most))
    return max(m * power for m in (1, 2, 5) if m * power <= most * 1.0001)


def marker_radii(sizes_vox: Mapping[str, float]) -> dict[str, float]:
    """Return a marker radius in voxels for each class from its picks' median cluster size.

    The localizer marks a particle's core, a ball of about half its radius, so the particle's
    radius is about twice that of a ball of the cluster's volume. Kept within 3 and 20 voxels.
    """
    return {
        name: float(np.clip(2 * (3 * max(size, 0.0) / (4 * math.pi)) ** (1 / 3), 3, 20))
        for name, size in sizes_vox.items()
        if math.isfinite(size)
    }


def write_png(path: Path, shown: Sequence[Plane], picks: Picks, styles: Mapping[str, ClassStyle], *,
              title: str) -> None:  # fmt: skip
    """Write all planes with their marks and a legend as one PNG (same input, same bytes)."""
    columns = min(len(shown), 4)
    rows = math.ceil(len(shown) / columns)
    with mpl.rc_context({"font.size": 8, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(2.7 * columns, 2.85 * rows + 0.9), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes[len(shown) :]:
            axis.set_axis_off()
        for axis, plane in zip(axes, shown, strict=False):
            _draw(axis, plane, picks, styles)
        counts = {name: int((picks.names == name).sum()) for name in styles}
        _legend(figure, {styles[n]: count for n, count in counts.items() if count})
        figure.suptitle(title)
        figure.savefig(path, format="png", metadata={"Software": None})


def _draw(axis: Any, plane: Plane, picks: Picks, styles: Mapping[str, ClassStyle]) -> None:
    height, width = plane.pixels.shape
    axis.imshow(plane.pixels, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
    axis.set_title(plane.name)
    axis.set_axis_off()
    points_per_voxel = 2.6 * 72 / max(width, height)
    for name, style in styles.items():
        mine = plane.marks[picks.names[plane.picked] == name]
        size = max(2 * picks.radius(name) * points_per_voxel, 2.5)
        axis.scatter(
            mine[:, 0], mine[:, 1], s=size**2, marker=_MPL_SHAPES[style.shape],
            facecolors="none", edgecolors=style.colour, linewidths=0.9,
        )  # fmt: skip
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)


def _legend(figure: Figure, counts: Mapping[ClassStyle, int]) -> None:
    handles = [
        mpl.lines.Line2D(
            [], [], linestyle="none", marker=_MPL_SHAPES[style.shape], markersize=5,
            markerfacecolor=style.colour, markeredgecolor="#222", markeredgewidth=0.5,
            label=f"{style.name}: {count}",
        )
        for style, count in counts.items()
    ]  # fmt: skip
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)
