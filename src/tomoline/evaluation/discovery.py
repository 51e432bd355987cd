"""Discovery of structures that no one named, from features of subtomograms (Liu et al. 2018, 3.5).

Features `(n, f)` are brought to length 1, so that how sure the network is does not count, and to
their main directions (at most 64, principal components, which keeps what tells clusters apart and
makes them quick to find). k-means gives the clusters, the largest number 1; t-SNE the picture. All
is the same for the same features and seed, on any number of processors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import hypergeom
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from threadpoolctl import threadpool_limits

from tomoline.errors import InputError

DIRECTIONS = 64
STARTS = 8  # of k-means; the best is kept
MOST_IN_SILHOUETTE = 2000  # its cost grows with the square
LEAST = 8  # subtomograms that clusters can be sought among
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Chosen:
    """Clusters `(n,)` from 1, by falling size, and the distance `(n,)` to the cluster's middle.

    `curve` has a row for each k that was tried: `k`, `inertia`, `silhouette`.
    """

    cluster: Ints
    distance: Floats
    curve: pd.DataFrame

    @property
    def count(self) -> int:
        """Number of clusters."""
        return int(self.cluster.max())


def main_directions(features: NDArray[np.floating]) -> Floats:
    """Bring features `(n, f)` to length 1 and to at most 64 directions `(n, d)`.

    Raises
    ------
    InputError
        For fewer than `LEAST`.
    """
    if len(features) < LEAST:
        raise InputError(
            "discover", expected=f"at least {LEAST} subtomograms", found=str(len(features)),
            remedy="take more tomograms together, or switch `discover` off for this data set",
        )  # fmt: skip
    x = np.asarray(features, np.float64)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    with threadpool_limits(1):
        reduced: Floats = PCA(min(DIRECTIONS, *x.shape), svd_solver="full").fit_transform(x)
    return reduced


def find_clusters(directions: Floats, *, clusters: int, most: int, seed: int) -> Chosen:
    """k-means for every number of clusters from 2 to `most`; of `clusters`, or 0: of the number
    with the largest silhouette."""
    n = len(directions)
    tried = sorted({k for k in [*range(2, most + 1), clusters] if 2 <= k < n})
    rng = np.random.default_rng([seed, 31])
    sample = np.sort(rng.permutation(n)[:MOST_IN_SILHOUETTE])
    fits, rows = {}, []
    with threadpool_limits(1):
        for k in tried:
            fit = KMeans(k, n_init=STARTS, random_state=seed).fit(directions)
            own = fit.labels_[sample]
            many = len(np.unique(own))
            score = silhouette_score(directions[sample], own) if 1 < many < len(own) else -1.0
            rows.append({"k": k, "inertia": float(fit.inertia_), "silhouette": float(score)})
            fits[k] = fit
    curve = pd.DataFrame(rows)
    best = clusters if clusters in fits else tried[int(curve["silhouette"].to_numpy().argmax())]
    fit = fits[best]
    number = _by_size(fit.labels_, best)[fit.labels_]
    apart = np.linalg.norm(directions - fit.cluster_centers_[fit.labels_], axis=1)
    return Chosen(number, apart, curve)


def _by_size(labels: NDArray[np.integer], k: int) -> Ints:
    """New numbers from 1: the largest first, of equals the one that appears first."""
    sizes = np.bincount(labels, minlength=k)
    first = np.array([np.flatnonzero(labels == c)[0] if sizes[c] else len(labels)
                      for c in range(k)])  # fmt: skip
    numbers = np.empty(k, np.int64)
    numbers[np.lexsort((first, -sizes))] = np.arange(1, k + 1)
    return numbers


def embedded(directions: Floats, *, perplexity: float, seed: int) -> Floats:
    """Places `(n, 2)` of a t-SNE picture (van der Maaten and Hinton 2008)."""
    n = len(directions)
    with threadpool_limits(1):
        tsne = TSNE(
            2, perplexity=min(perplexity, (n - 1) / 3), init="pca", random_state=seed, n_jobs=1
        )
        places: Floats = tsne.fit_transform(directions).astype(np.float64)
    return places


def enrichment(cluster: Ints, classes: Sequence[str]) -> pd.DataFrame:
    """Which classes are more frequent in which clusters than overall.

    A row for each pair that occurs: `cluster`, `class`, `n`, `share_of_cluster`, `share_of_class`,
    `fold` (share of the cluster over the share of all) and `p`, the probability of as many or more
    by chance (hypergeometric).
    """
    names, total = np.array(classes), len(classes)
    rows = []
    for number in np.unique(cluster):
        own = names[cluster == number]
        for name in sorted(set(own)):
            n, of_class = int((own == name).sum()), int((names == name).sum())
            rows.append({
                "cluster": int(number), "class": name, "n": n, "share_of_cluster": n / len(own),
                "share_of_class": n / of_class, "fold": n / len(own) / (of_class / total),
                "p": float(hypergeom.sf(n - 1, total, of_class, len(own))),
            })  # fmt: skip
    table = pd.DataFrame(rows)
    return table.sort_values(["cluster", "n"], ascending=[True, False], kind="stable")


def best_cluster(table: pd.DataFrame, name: str) -> dict[str, float]:
    """Of an `enrichment` the cluster that holds most of a class: `cluster`, `purity` (its share of
    the cluster) and `recall` (the cluster's share of the class)."""
    row = table[table["class"] == name].sort_values("n", ascending=False, kind="stable").iloc[0]
    return {
        "cluster": int(row["cluster"]), "purity": float(row["share_of_cluster"]),
        "recall": float(row["share_of_class"]),
    }  # fmt: skip


def elbow(curve: pd.DataFrame) -> int:
    """The k at which the inertia's curve bends most: farthest below the chord of its ends."""
    k, inertia = curve["k"].to_numpy(float), curve["inertia"].to_numpy(float)
    if len(k) < 3:
        return int(k[0])
    x, y = ((v - v.min()) / max(float(np.ptp(v)), 1e-12) for v in (k, inertia))
    assert all(b > a for a, b in pairwise(k))
    return int(k[int(np.argmax((1 - x) - y))])
