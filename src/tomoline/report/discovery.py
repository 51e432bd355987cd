"""The page of a discovery: how many clusters, what is in them, what they look like."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from tomoline.evaluation.discovery import elbow
from tomoline.evaluation.fsc import ShellCorrelation
from tomoline.report import figures, pages, plots
from tomoline.report.densities import STYLE
from tomoline.report.isosurface import isosurface_png
from tomoline.report.pages import Column, Page

LEAST_SHARE = 0.05  # of a cluster: smaller parts are not listed with it
P_VALUE = 1e-3


@dataclass(frozen=True, kw_only=True)
class ClusterLook:
    """What a cluster looks like: `mean` (b, b, b) of the recovered densities of its `n`
    subtomograms as they lie, and `middle` (b, b, b), that of the one nearest to its middle."""

    number: int
    n: int
    mean: NDArray[np.float32]
    middle: NDArray[np.float32]
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """All that the page shows; tables as in `tomoline.evaluation.discovery`.

    `points` has a row a subtomogram, the columns of clusters.csv. `shells` are correlations of
    recovered with true densities by class, `unseen` what became of classes that the network does
    not know: `cluster`, `purity`, `recall`, `resolution_angstrom` each.
    """

    title: str
    model: str
    clustering: str
    chosen_by: str
    points: pd.DataFrame
    curve: pd.DataFrame
    enriched: pd.DataFrame
    looks: Sequence[ClusterLook]
    voxel_size_angstrom: float
    shells: Mapping[str, ShellCorrelation] = field(default_factory=dict)
    unseen: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    recovered: bool = True


def discovery_page(found: Discovery) -> str:
    """Return the page as one HTML file."""
    page = Page(
        title=f"Clusters of {found.title}",
        subtitle=f"{len(found.points):,} subtomograms by the features of {found.model}",
        style=STYLE + plots.STYLE, script_html=plots.inline_script(),
    )  # fmt: skip
    page.head_html = pages.tiles([
        (f"{len(found.points):,}", "subtomograms"), (str(len(found.looks)), "clusters"),
        (found.clustering, "mark of this clustering"),
    ])  # fmt: skip
    page.add("Classes that the network does not know", _unseen(found))
    page.add("All subtomograms", _picture(found))
    page.add("How many clusters", _curves(found))
    page.add("What is in them", _contents(found))
    page.add("What they look like", _looks(found))
    page.add("Recovered against true densities", _shells(found))
    page.add("Naming clusters", _naming(found))
    return page.html()


def _kinds(found: Discovery) -> dict[str, str]:
    kinds = {"cluster": "cluster", "named": "class by the network"}
    return kinds | ({"true": "true class"} if (found.points["true"] != "").any() else {})


def _picture(found: Discovery) -> str:
    table = found.points.rename(columns={"candidate_id": "id"})
    table = table.assign(cluster=[f"{number:02d}" for number in table["cluster"]],
                         x=table["x"].round(2), y=table["y"].round(2))  # fmt: skip
    columns = ["tomogram", "id", "x", "y", *_kinds(found)]
    spec = plots.clusters(table[columns], kinds=_kinds(found))
    words = (
        "Each point is a subtomogram; t-SNE puts those with like features beside each other. "
        "Distances between groups mean little. What clusters hold is below as a table."
    )
    return pages.paragraph(words, "note") + plots.plot(spec, label="Subtomograms by features")


def _curves(found: Discovery) -> str:
    k = found.curve["k"].to_numpy()
    marks = {"taken": float(len(found.looks))}
    charts = [
        pages.figure(
            figures.lines({word: (k, found.curve[column].to_numpy())}, title=word,
                          x_label="number of clusters", y_label=word, marks=marks),
            text,
        )
        for column, word, text in (
            ("silhouette", "silhouette", "How much nearer subtomograms are to their own cluster "
             "than to the next one: 1 is apart, 0 is not."),
            ("inertia", "inertia", "Sum of squared distances to the clusters' middles: it always "
             f"falls; it bends most at {elbow(found.curve)}."),
        )
    ]  # fmt: skip
    words = (
        f"{len(found.looks)} clusters were taken: {found.chosen_by}. Rather take more than the "
        "classes you expect (discover.clusters): two clusters can be given one name, one of two "
        "classes cannot be parted."
    )
    return pages.paragraph(words) + pages.grid(*charts)


def _contents(found: Discovery) -> str:
    column = "true" if "true" in _kinds(found) else "named"
    rows = []
    for number, own in found.enriched.groupby("cluster", sort=True):
        parts = [
            f"{escape(str(row['class']))} {row['share_of_cluster']:.0%} "
            f"({row['n']:,}, {row['fold']:.1f}-fold{'' if row['p'] < P_VALUE else ', by chance'})"
            for row in own.to_dict("records") if row["share_of_cluster"] >= LEAST_SHARE
        ]  # fmt: skip
        rows.append([str(number), f"{int(own['n'].sum()):,}", "<br>".join(parts)])
    heads = [Column(head="cluster"), Column(head="subtomograms", kind="number"),
             Column(head=f"{_kinds(found)[column]}, share of the cluster and how much more than "
                    "overall", kind="prose")]  # fmt: skip
    return pages.table(heads, rows, sort=True)


def _looks(found: Discovery) -> str:
    edge = found.looks[0].mean.shape[0] * found.voxel_size_angstrom / 10
    words = (
        f"Boxes are {edge:.0f} nm wide. Surfaces and sections are of densities that the network "
        "recovered, without noise, missing wedge and neighbours. The mean is of particles as they "
        "lie, in all orientations: it shows size and hollowness. The single one is the "
        "subtomogram nearest to the cluster's middle. What is recovered follows what the network "
        "was taught: details are a guess, to be confirmed by averaging."
    )
    if not found.recovered:
        words = (
            f"Boxes are {edge:.0f} nm wide. Each is the mean of a cluster's subtomograms as they "
            "lie, in all orientations, with noise, missing wedge and neighbours, dense is dark: "
            "it shows size and hollowness. This network recovers no densities; one with all "
            "subnets does (docs/subtomograms.md)."
        )
    cards = []
    for look in found.looks:
        images = "".join(
            f'<figure><img alt="{what} of cluster {look.number}" width="200" height="200" '
            f'src="{pages.data_uri(isosurface_png(density), "image/png")}">'
            f'<img alt="Sections of the {what}" src="{_sections(density)}">'
            f"<figcaption>{what}</figcaption></figure>"
            for what, density in (("mean", look.mean), ("single", look.middle))[
                : 2 if found.recovered else 1
            ]
        )
        named = f": {escape(look.name)}" if look.name else ""
        cards.append(
            f'<div class="card"><h3>Cluster {look.number}{named}</h3><p>{look.n:,} subtomograms'
            f"</p>{images}</div>"
        )
    return pages.paragraph(words, "note") + f'<div class="cards">{"".join(cards)}</div>'


def _sections(density: NDArray[np.float32]) -> str:
    """The three middle sections beside each other, dense is dark."""
    middle = density.shape[0] // 2
    views = [density[middle], density[:, middle], density[:, :, middle]]
    strip = np.concatenate([view[::-1] for view in views], 1)
    grey = 255 - 255 * np.clip(strip / max(float(density.max()), 1e-6), 0, 1)
    target = io.BytesIO()
    Image.fromarray(grey.round().astype(np.uint8)).save(target, "PNG", optimize=True)
    return pages.data_uri(target.getvalue(), "image/png")


def _shells(found: Discovery) -> str:
    if not found.shells:
        return ""
    curves = {
        name: (1000 * shells.frequency, shells.correlation)
        for name, shells in found.shells.items()
    }  # fmt: skip
    shown = dict(list(curves.items())[:7])  # the palette has no more
    chart = figures.lines(shown, title="Fourier shell correlation",
                          x_label="spatial frequency (1 / 1000 A)", y_label="correlation",
                          y_span=(0, 1))  # fmt: skip
    rows = [
        [escape(name), _angstrom(shells.resolution_angstrom())]
        for name, shells in found.shells.items()
    ]
    columns = [Column(head="true class"), Column(head="resolution at 0.5", kind="number")]
    words = (
        "Mean correlation of each subtomogram's recovered density with the true one in its own "
        "orientation. Twice the voxel is the best that can be."
    )
    return pages.paragraph(words, "note") + pages.grid(chart, pages.table(columns, rows))


def _unseen(found: Discovery) -> str:
    if not found.unseen:
        return ""
    rows = [
        [escape(name), f"{own['cluster']:.0f}", f"{own['purity']:.1%}", f"{own['recall']:.1%}",
         _angstrom(own["resolution_angstrom"])]
        for name, own in found.unseen.items()
    ]  # fmt: skip
    heads = ["class", "cluster with most of it", "share of the cluster", "share of the class",
             "density, resolution at FSC 0.5"]  # fmt: skip
    columns = [Column(head=h, kind="number" if k else "") for k, h in enumerate(heads)]
    return pages.table(columns, rows)


def _angstrom(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f} A"


def _naming(found: Discovery) -> str:
    largest = found.looks[0].number
    text = f"clustering: {found.clustering}\nnames:\n  {largest}: my-structure"
    words = (
        "Write these lines into a file, with the numbers and names you want, name the file in "
        "discover.names of the configuration, and run again: the named clusters are classes in "
        "the particle table and in all exports. One name may stand for several clusters."
    )
    return pages.paragraph(words) + f"<pre>{escape(text)}</pre>"
