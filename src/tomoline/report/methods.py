"""The methods paragraph and the literature that a user of the results should cite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tomoline.networks.cards import NAME_WHOLE
from tomoline.report.figures import number

CITATIONS = (
    "Hao Y, Wan X, Yan R, Liu Z, Li J, Zhang S, Cui X, Zhang F. VP-Detector: a 3D multi-scale "
    "dense convolutional neural network for macromolecule localization and classification in "
    "cryo-electron tomograms. Comput Methods Programs Biomed 221, 106871 (2022). "
    "[the method: networks, mean-shift, vote]",
    "Lin T-Y, Goyal P, Girshick R, He K, Dollár P. Focal loss for dense object detection. "
    "Proc ICCV (2017). [the loss that the networks were trained with]",
    "Wang P, Chen P, Yuan Y, Liu D, Huang Z, Hou X, Cottrell G. Understanding convolution for "
    "semantic segmentation. Proc WACV (2018). [hybrid dilated convolution]",
    "Gubins I, Chaillet ML, van der Schot G, et al. SHREC 2020: classification in cryo-electron "
    "tomograms. Comput Graph 91, 279–289 (2020). [the benchmark's structures and measures]",
    "Mölder F, Jablonski KP, Letcher B, et al. Sustainable data analysis with Snakemake. "
    "F1000Research 10, 33 (2021). [the workflow]",
)
WHOLE_CITATION = (
    "Liu C, Zeng X, Wang K, Guo Q, Xu M. Multi-task learning for macromolecule classification, "
    "segmentation and coarse structural recovery in cryo-tomography. Proc BMVC (2018). "
    "[the network that names whole subtomograms]"
)
EVALUATION_CITATION = (
    "Pei L, Xu M, Frazier Z, Alber F. Simulating cryo electron tomograms of crowded cell "
    "cytoplasm for assessment of automated particle picking. BMC Bioinformatics 17, 405 (2016). "
    "[the difference-of-Gaussians picker that stands beside our figures]"
)


def methods_text(*, version: str, localizer: Mapping[str, Any], classifier: Mapping[str, Any],
                 n_tomograms: int, n_particles: int,
                 evaluated: bool = False) -> str:  # fmt: skip
    """Return a paragraph for a paper's methods section, from what was really used.

    `localizer` and `classifier` are model cards; what a card does not say is left out. Works are
    cited by author and year, as `CITATIONS` lists them.
    """
    voxel = localizer.get("voxel_size_angstrom", classifier.get("voxel_size_angstrom"))
    scale = f" rescaled to {number(float(voxel))} Å a voxel where needed," if voxel else ""
    classes = [name for name in classifier.get("classes", []) if name != "background"]
    into = f" into {len(classes)} classes" if classes else ""
    named = (
        f"named{into} as a whole by {_network(classifier)}, each in several mirrored views, whose "
        "mean probability decides (Liu et al., 2018)"
        if classifier.get("network") in NAME_WHOLE
        else f"labelled voxel by voxel by {_network(classifier)}; the component at the centre "
        f"voted for the particle's class{into}"
    )
    sifted = _sifted(localizer, classifier)
    return (
        f"Particles were found and classified with Tomoline {version}, which follows VP-Detector "
        "(Hao et al., 2022) and runs in Snakemake (Mölder et al., 2021). Tomograms were"
        f"{scale} normalised to zero mean and unit standard deviation, and searched in "
        f"overlapping windows by {_network(localizer)}, which gives each voxel the probability "
        "of lying in a particle (with hybrid dilated convolution, Wang et al., 2018; trained with "
        "the focal loss, Lin et al., 2017). The thresholded map was split into connected "
        "components, whose centroids and distance-transform peaks seeded a flat-kernel mean-shift; "
        "its modes are the particle centres. Subtomograms cut at these centres were "
        f"{named}{sifted}. "
        f"In all, {n_particles:,} particle{' was' if n_particles == 1 else 's were'} kept in "
        f"{n_tomograms:,} "
        f"tomogram{'' if n_tomograms == 1 else 's'}."
        + (
            " Where the truth was known, picks were compared with it as in SHREC (Gubins et al., "
            "2020), beside a difference-of-Gaussians picker (Pei et al., 2016)."
            if evaluated
            else ""
        )
    )


def _sifted(localizer: Mapping[str, Any], classifier: Mapping[str, Any]) -> str:
    """How a classifier of whole subtomograms sifted the candidates, if it did."""
    if classifier.get("network") not in NAME_WHOLE:
        return ""
    fit = classifier.get("sift") or {}
    known = fit.get("localizer_sha256")
    if known and known == localizer.get("weights_sha256"):
        contrast = fit.get("contrast") and ", the density's contrast to the tomogram's noise"
        return (
            f". From the same network's probability of background{contrast or ''} and the map's "
            "value a logistic regression gave the probability that a centre is a particle, by "
            "which it was kept"
        )
    return ". Centres that the same network took for background were left out"


def _network(card: Mapping[str, Any]) -> str:
    if not card:
        return "a three-dimensional MSDNet"
    details = []
    if card.get("n_parameters"):
        details.append(f"{int(card['n_parameters']):,} parameters")
    if card.get("weights_sha256"):
        details.append(f"weights {str(card['weights_sha256'])[:12]}")
    tail = f" ({', '.join(details)})" if details else ""
    return f"the network {card.get('name', 'without a name')}{tail}"
