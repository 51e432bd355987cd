"""What the picks of a class look like: their mean, its profile, and single picks of every rank.

No orientations are known, so the mean is of boxes as they lie: it shows size, hollowness and
whether the picks are centred, not the structure. All geometry is in voxels of the prepared volume,
zyx, where particles are dark.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tomoline.report import figures, pages
from tomoline.report.palette import ClassStyle
from tomoline.report.slices import SLAB_ANGSTROM, Picks

BOX_VOX = (20, 56)  # least and largest edge of what is cut out around a pick
MOST_AVERAGED = 1000  # picks of a class; more change a mean no more, and cost reading
MOST_CLASSES = 24  # shown on a page, those with the most picks
EACH = 4  # single picks shown of a rank
PICTURE_BYTES = 320_000  # of all pictures of a page, before base64 adds a third

STYLE = (
    ".cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,250px),1fr));"
    "gap:18px 26px}.card{break-inside:avoid;border-top:1px solid var(--line);padding-top:6px;"
    "min-width:0}.card h3{margin:2px 0 4px}.card img{display:block;width:100%;max-width:360px;"
    "image-rendering:auto;margin:2px 0}.card p{margin:4px 0 2px;font-size:.86rem}"
)


@dataclass(frozen=True, kw_only=True)
class Density:
    """One class's picks.

    `mean` (b, b, b) is the plain mean of the boxes about `n_averaged` picks, in standard
    deviations of the tomogram; what lay outside the tomogram did not count. `profile` and
    `error` (r,) are the density (up is dense: the sign is turned) in shells of one voxel about
    the centre, and its standard error over the picks; NaN where no voxel was. `ranks` maps
    "best", "middle", "worst" to scores and pictures (b, b) of single picks.
    """

    name: str
    n: int
    n_averaged: int
    mean: NDArray[np.float32]
    profile: NDArray[np.float64]
    error: NDArray[np.float64]
    ranks: Mapping[str, Sequence[tuple[float, NDArray[np.float32]]]]


def box_edge(radii_vox: Sequence[float]) -> int:
    """Return the edge of the boxes: the same for all classes of a page, so that sizes compare."""
    largest = max(radii_vox, default=0.0)
    return int(np.clip(2 * math.ceil(1.8 * largest), *BOX_VOX))


def densities(volume: NDArray[Any], picks: Picks, *, voxel_size_angstrom: float) -> list[Density]:
    """Return what the classes that have picks look like, at most `MOST_CLASSES` of them.

    `volume` (z, y, x) may be memory-mapped: one box at a time is read, so the memory needed does
    not grow with the number of picks.
    """
    names, counts = np.unique(picks.names.astype(str), return_counts=True)
    shown = names[np.argsort(-counts, kind="stable")][:MOST_CLASSES]
    edge = box_edge([picks.radius(str(name)) for name in shown])
    half = max(round(SLAB_ANGSTROM / voxel_size_angstrom) // 2, 0)
    return [
        _density(volume, picks, str(name), edge=edge, half=half)
        for name in shown
        if np.any(picks.names == name)
    ]


def _density(volume: NDArray[Any], picks: Picks, name: str, *, edge: int, half: int) -> Density:
    mine = np.flatnonzero(picks.names == name)
    ranked = mine[np.argsort(-picks.scores[mine], kind="stable")]
    n = len(ranked)
    evenly = np.unique(np.linspace(0, n - 1, min(n, MOST_AVERAGED)).round().astype(int))
    grid = np.indices((edge,) * 3) - edge // 2
    shell = np.sqrt((grid**2).sum(axis=0)).round().astype(np.intp)
    n_shells = edge // 2
    total = np.zeros((edge,) * 3)
    seen = np.zeros((edge,) * 3)
    profiles = np.full((len(evenly), n_shells), np.nan)
    for row, place in enumerate(ranked[evenly]):
        box = cut(volume, picks.zyx[place], edge)
        inside = np.isfinite(box)
        values = np.where(inside, box, 0.0)
        total += values
        seen += inside
        sums = np.bincount(shell.ravel(), values.ravel(), n_shells)[:n_shells]
        voxels = np.bincount(shell.ravel(), inside.ravel(), n_shells)[:n_shells]
        np.divide(sums, voxels, out=profiles[row], where=voxels > 0)
    known = np.isfinite(profiles).sum(axis=0)
    sums = np.nansum(profiles, axis=0)
    mean = np.divide(sums, known, out=np.full(n_shells, np.nan), where=known > 0)
    squares = np.nansum((profiles - mean) ** 2, axis=0)
    deviation = np.sqrt(squares / np.maximum(known - 1, 1))
    return Density(
        name=name,
        n=n,
        n_averaged=len(evenly),
        mean=(total / np.maximum(seen, 1)).astype(np.float32),
        profile=-mean,
        error=np.where(known > 1, deviation / np.sqrt(np.maximum(known, 1)), np.nan),
        ranks={
            word: [
                (float(picks.scores[i]), _flat(cut(volume, picks.zyx[i], edge, depth=2 * half + 1)))
                for i in ranked[places]
            ]
            for word, places in rank_places(n).items()
        },
    )


def rank_places(n: int) -> dict[str, list[int]]:
    """Return which of `n` picks, sorted from the best, stand for the best, middle and worst."""
    if n < 3:
        return {"all": list(range(n))} if n else {}
    each = min(EACH, n // 3)
    first = (n - each) // 2
    return {
        "best": list(range(each)),
        "middle": list(range(first, first + each)),
        "worst": list(range(n - each, n)),
    }


def cut(volume: NDArray[Any], zyx: NDArray[np.float64], edge: int, depth: int | None = None
        ) -> NDArray[np.float32]:  # fmt: skip
    """Return the box about a place, whose nearest voxel comes to `shape // 2`.

    It is (depth, edge, edge), a cube if no depth is given; NaN where it leaves the volume.
    """
    shape = (edge if depth is None else depth, edge, edge)
    box = np.full(shape, np.nan, np.float32)
    centre = np.floor(zyx + 0.5).astype(int)
    from_volume, to_box = [], []
    for place, size, length in zip(centre, shape, volume.shape, strict=True):
        start = int(place) - size // 2
        low, high = max(start, 0), min(start + size, length)
        if low >= high:
            return box
        from_volume.append(slice(low, high))
        to_box.append(slice(low - start, high - start))
    box[tuple(to_box)] = np.asarray(volume[tuple(from_volume)], np.float32)
    return box


def _flat(box: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean over z of what is there; the tomogram's mean (0) where nothing is."""
    inside = np.isfinite(box)
    flat: NDArray[np.float32] = (
        np.where(inside, box, 0).sum(axis=0) / np.maximum(inside.sum(axis=0), 1)
    ).astype(np.float32)
    return flat


def densities_html(shown: Sequence[Density], styles: Mapping[str, ClassStyle], *,
                   voxel_size_angstrom: float) -> str:  # fmt: skip
    """Return a card a class: its mean from three sides, its profile, single picks."""
    if not shown:
        return ""
    edge = shown[0].mean.shape[0]
    singles = np.concatenate(
        [image.ravel() for density in shown for rank in density.ranks.values() for _, image in rank]
    )
    window = _window(singles)
    ordered = sorted(shown, key=lambda density: list(styles).index(density.name))
    strips = [_strips(density, window) for density in ordered]
    quality = next((q for q in (82, 68, 50) if _bytes(strips, q) <= PICTURE_BYTES), 40)
    cards = [
        _card(density, styles[density.name], pictures, quality, voxel_size_angstrom)
        for density, pictures in zip(ordered, strips, strict=True)
    ]
    note = (
        f"Each picture is {edge * voxel_size_angstrom / 10:.0f} nm wide, dark is dense. Since no "
        "orientations are known, the mean is of particles as they lie, cut through its middle "
        "from above (x to the right, y up), from the front (z up) and from the side (y to the "
        "right): it shows size and whether picks are centred, not the structure. It is stretched "
        "to its own range; the curve below is its rotational average, with heights. Single picks "
        "are of the best, middle and worst scores, all in the same greys: a class whose worst "
        "look like nothing wants a higher least score."
    )
    return pages.paragraph(note, "note") + f'<div class="cards">{"".join(cards)}</div>'


def _card(density: Density, style: ClassStyle, strips: Mapping[str, NDArray[np.uint8]],
          quality: int, voxel_size_angstrom: float) -> str:  # fmt: skip
    nm = voxel_size_angstrom / 10
    radii = np.arange(len(density.profile)) * nm
    chart = figures.lines(
        {"mean": (radii, density.profile, density.error)},
        title=f"Density of {density.name} about its centre", x_label="from the centre (nm)",
        y_label="density (SD)", size=(270, 150),
    )  # fmt: skip
    of = f"{density.n:,}" if density.n == density.n_averaged else (
        f"{density.n_averaged:,} of {density.n:,}, evenly by score"
    )  # fmt: skip
    rows = []
    for word, rank in density.ranks.items():
        scores = [score for score, _ in rank]
        low, high = f"{min(scores):.3f}", f"{max(scores):.3f}"
        span = f"score {high}" if low == high else f"scores {high} to {low}"
        rows.append(
            f"<p>{escape(word.capitalize())}: {span}</p>"
            + _picture(strips[word], quality, f"{word} picks of {density.name}")
        )
    return (
        f'<div class="card"><h3>{figures.swatch(style)}{escape(density.name)}</h3>'
        f"<p>Mean of {of}</p>"
        + _picture(strips["mean"], quality, f"Mean of {density.name} from three sides")
        + chart
        + f'<details class="singles" open><summary>Single picks</summary>{"".join(rows)}</details>'
        + "</div>"
    )


def _strips(density: Density, window: tuple[float, float]) -> dict[str, NDArray[np.uint8]]:
    middle = density.mean.shape[0] // 2
    mean = density.mean
    views = [mean[middle], mean[:, middle], mean[:, :, middle]]
    found = {"mean": _strip(views, _window(np.stack(views)))}
    for word, rank in density.ranks.items():
        images = [image for _, image in rank]
        blank = np.full_like(images[0], np.nan)
        found[word] = _strip([*images, *[blank] * (EACH - len(images))], window)
    return found


def _strip(images: Sequence[NDArray[np.float32]], window: tuple[float, float]) -> NDArray[np.uint8]:
    """Pictures in a row with a white line between them, the first axis upwards."""
    low, high = window
    parts: list[NDArray[np.uint8]] = []
    for image in images:
        grey = np.clip((image[::-1] - low) / max(high - low, 1e-9), 0, 1) * 255
        grey = np.where(np.isfinite(grey), grey, 255).round().astype(np.uint8)
        if parts:
            parts.append(np.full((len(image), 1), 255, np.uint8))
        parts.append(grey)
    return np.concatenate(parts, axis=1)


def _window(values: NDArray[np.float32]) -> tuple[float, float]:
    low, high = np.percentile(values[np.isfinite(values)], (0.5, 99.5))
    return float(low), float(high)


def _jpeg(strip: NDArray[np.uint8], quality: int) -> bytes:
    target = io.BytesIO()
    Image.fromarray(strip).save(target, "JPEG", quality=quality, optimize=True)
    return target.getvalue()


def _bytes(strips: Sequence[Mapping[str, NDArray[np.uint8]]], quality: int) -> int:
    return sum(len(_jpeg(strip, quality)) for one in strips for strip in one.values())


def _picture(strip: NDArray[np.uint8], quality: int, alt: str) -> str:
    address = pages.data_uri(_jpeg(strip, quality), "image/jpeg")
    height, width = strip.shape
    return f'<img alt="{escape(alt)}" width="{width}" height="{height}" src="{address}">'
