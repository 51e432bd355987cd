"""The page of class activation maps: a row a particle, as figure 5 of Gao et al. 2020."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tomoline.report import pages
from tomoline.report.figures import number

STYLE = """
td img { width: 9rem; height: 9rem; image-rendering: pixelated; display: block; }
td small, th small { display: block; font-weight: normal; }
"""
_MAP = "inferno"


@dataclass(frozen=True, kw_only=True)
class NetworkMap:
    """What one network saw: the class it named with its probability among the structures, and the
    middle section `(Y, X)` of the map of that class."""

    network: str
    named: str
    probability: float
    section: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ShownParticle:
    """A particle with the middle sections `(Y, X)` of its subtomogram, and where it is known of the
    true particle (1 inside); `true` is its true class, empty where not known."""

    particle_id: int
    name: str
    score: float
    section: NDArray[np.float32]
    true: str
    truth: NDArray[np.uint8] | None
    maps: Sequence[NetworkMap]


def activation_page(
    particles: Sequence[ShownParticle], *, tomogram: str, dataset: str, voxel_size_angstrom: float
) -> str:
    """Return the page's HTML."""
    page = pages.Page(
        title=f"{tomogram}: where the class was seen",
        subtitle=f"Data set {dataset} · class activation maps",
        style=STYLE,
        above_html='<a class="folder" href="tomogram.html">The tomogram</a>',
    )
    page.add("Maps", _table(particles, voxel_size_angstrom))
    return page.html()


def _table(particles: Sequence[ShownParticle], voxel_size_angstrom: float) -> str:
    if not particles:
        return pages.paragraph("No particle was accepted that could be shown.")
    has_truth = any(particle.truth is not None for particle in particles)
    networks = [one.network for one in particles[0].maps]
    heads = ["Particle", "Subtomogram", *(["Truth"] if has_truth else []), *networks]
    columns = [pages.Column(head=head) for head in heads]
    rows = [_row(particle, has_truth=has_truth) for particle in particles]
    nm = particles[0].section.shape[0] * voxel_size_angstrom / 10
    note = (
        f"Middle sections (x to the right, y upwards), {number(nm)} nm wide; in the subtomogram "
        "dark is dense. A network's map is that of the class which it names: bright is where the "
        "subtomogram speaks for this class, dark where it speaks against it, each map stretched to "
        "its own range. A map that lights up beside the particle says that its neighbours or the "
        "noise were named. Maps are as coarse as the network's last layer."
    )
    return pages.paragraph(note, "note") + pages.table(columns, rows)


def _row(particle: ShownParticle, *, has_truth: bool) -> list[str]:
    said = f"{escape(particle.name)}<small>number {particle.particle_id}</small>"
    said += f"<small>score {particle.score:.2f}</small>"
    if particle.true:
        said += f"<small>truly {escape(particle.true)}</small>"
    cells = [said, _picture(particle.section, "gray", "Subtomogram", cut=0.5)]
    if has_truth:
        truth = particle.truth
        known = truth is not None
        cells.append(_picture(truth, "gray", "Truth", cut=0.0) if known else "not known")  # type: ignore[arg-type]
    for one in particle.maps:
        cells.append(
            _picture(one.section, _MAP, f"Map of {one.network}", cut=0.0)
            + f"<small>{escape(one.named)}, p {one.probability:.2f}</small>"
        )
    return cells


def _picture(section: NDArray[Any], colours: str, what: str, *, cut: float) -> str:
    """A section as a picture, between its own percentiles."""
    values = np.asarray(section, np.float64)[::-1]
    low, high = np.percentile(values, (cut, 100 - cut))
    scaled = np.clip((values - low) / max(float(high - low), 1e-12), 0, 1)
    pixels = (mpl.colormaps[colours](scaled)[..., :3] * 255).round().astype(np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG", optimize=True)
    return f'<img alt="{escape(what)}" src="{pages.data_uri(target.getvalue(), "image/png")}">'
