"""The methods paragraph and the literature that a user of the results should cite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
# Of the networks that name whole subtomograms, as cited and in full.
WHOLE_CITATIONS = {
    "dsmnet": (
        "Liu et al., 2018",
        "Liu C, Zeng X, Wang K, Guo Q, Xu M. Multi-task learning for macromolecule classification, "
        "segmentation and coarse structural recovery in cryo-tomography. Proc BMVC (2018). "
        "[a network that names whole subtomograms]",
    ),
    "densenet": (
        "Gao et al., 2020",
        "Gao S, Han R, Zeng X, Cui X, Liu Z, Xu M, Zhang F. Dilated-DenseNet for macromolecule "
        "classification in cryo-electron tomography. Bioinformatics Research and Applications, "
        "LNCS 12304, 82–94 (2020). [a network that names whole subtomograms]",
    ),
    "vgg": (
        "Che et al., 2018",
        "Che C, Lin R, Zeng X, Elmaaroufi K, Galeotti J, Xu M. Improved deep learning-based "
        "macromolecules structure classification from electron cryotomograms. Mach Vis Appl 29, "
        "1227–1236 (2018). [a plain network that names whole subtomograms]",
    ),
}
ENSEMBLE_CITATION = (
    "Genest C, Zidek JV. Combining probability distributions: a critique and an annotated "
    "bibliography. Stat Sci 1, 114–135 (1986). [how several classifiers name a particle together]"
)
EVALUATION_CITATION = (
    "Pei L, Xu M, Frazier Z, Alber F. Simulating cryo electron tomograms of crowded cell "
    "cytoplasm for assessment of automated particle picking. BMC Bioinformatics 17, 405 (2016). "
    "[the difference-of-Gaussians picker that stands beside our figures]"
)


def citations_of(classifiers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Works to cite for the networks that named particles."""
    kinds = dict.fromkeys(str(card.get("network")) for card in classifiers)
    cited = [WHOLE_CITATIONS[kind][1] for kind in kinds if kind in WHOLE_CITATIONS]
    return cited + ([ENSEMBLE_CITATION] if len(classifiers) > 1 else [])


def methods_text(*, version: str, localizer: Mapping[str, Any],
                 classifiers: Sequence[Mapping[str, Any]], n_tomograms: int, n_particles: int,
                 evaluated: bool = False) -> str:  # fmt: skip
    """Return a paragraph for a paper's methods section, from what was really used.

    `localizer` and `classifiers` are model cards; what a card does not say is left out. Works are
    cited by author and year, as `CITATIONS` lists them.
    """
    classifier = classifiers[0] if classifiers else {}
    voxel = localizer.get("voxel_size_angstrom", classifier.get("voxel_size_angstrom"))
    scale = f" rescaled to {number(float(voxel))} Å a voxel where needed," if voxel else ""
    classes = [name for name in classifier.get("classes", []) if name != "background"]
    into = f" into {len(classes)} classes" if classes else ""
    named = _named(classifier, into) if len(classifiers) < 2 else _together(classifiers, into)
    sifted = _sifted(localizer, classifiers)
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


def _named(classifier: Mapping[str, Any], into: str) -> str:
    """How one classifier named subtomograms."""
    if classifier.get("network") not in NAME_WHOLE:
        return (
            f"labelled voxel by voxel by {_network(classifier)}; the component at the centre "
            f"voted for the particle's class{into}"
        )
    cited = WHOLE_CITATIONS.get(str(classifier.get("network")), ("",))[0]
    return (
        f"named{into} as a whole by {_network(classifier)}, each in several mirrored views, whose "
        f"mean probability decides{f' ({cited})' if cited else ''}"
    )


def _together(classifiers: Sequence[Mapping[str, Any]], into: str) -> str:
    """How several classifiers named subtomograms."""
    each = "; ".join(_named(card, "") for card in classifiers)
    return (
        f"named{into} by {len(classifiers)} networks together: {each}. The logarithms of their "
        "probabilities, each calibrated by a temperature of its own, were averaged (Genest and "
        "Zidek, 1986), and the most probable class was taken"
    )


def _sifted(localizer: Mapping[str, Any], classifiers: Sequence[Mapping[str, Any]]) -> str:
    """How classifiers of whole subtomograms sifted the candidates, if they did."""
    wholes = [card for card in classifiers if card.get("network") in NAME_WHOLE]
    if not wholes:
        return ""
    fits = [fit for card in wholes if (fit := _fit(localizer, card))]
    networks = "networks' mean" if len(fits or wholes) > 1 else "network's"
    if fits:
        contrast = any(fit.get("contrast") for fit in fits)
        own = ", the density's contrast to the tomogram's noise" if contrast else ""
        return (
            f". From the same {networks} probability of background{own} and the map's "
            "value a logistic regression gave the probability that a centre is a particle, by "
            "which it was kept"
        )
    return f". Centres that {_took(len(wholes))} for background were left out"


def _fit(localizer: Mapping[str, Any], classifier: Mapping[str, Any]) -> Mapping[str, Any]:
    """The classifier's sift, if it is for this localizer."""
    fit: Mapping[str, Any] = classifier.get("sift") or {}
    known = fit.get("localizer_sha256")
    return fit if known and known == localizer.get("weights_sha256") else {}


def _took(count: int) -> str:
    return "the same network took" if count == 1 else "the same networks took on average"


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
