"""A model's card, which says everything about it, and the check that its weights are its own.

The card holds the hash of the weight file, so that a card and weights that do not belong together
are refused before any work is done. Nothing here loads torch: every job of a run reads cards.
"""

from __future__ import annotations

import hashlib
import re
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tomoline.contracts import BACKGROUND
from tomoline.errors import InputError
from tomoline.io.atomic import write_text

# A class's name goes into tables and other programs' files: no quotes, no control characters.
_CLASS_NAME = re.compile(r"""[^\x00-\x1f\x7f"']{1,100}""")
CARD, WEIGHTS = "card.yaml", "weights.safetensors"
ROLES = ("localizer", "classifier", "segmenter", "picker")
CardT = TypeVar("CardT", bound=BaseModel)
# Networks that name a subtomogram as a whole; the others name each of its voxels.
NAME_WHOLE = frozenset({"densenet", "dsmnet", "vgg"})
MULTITASK = frozenset({"classification", "segmentation", "recovery"})  # DSM-Net's subnets
# Networks of images; volumes are run through them slice by slice.
OF_IMAGES = frozenset({"pyconv_unet", "unet2d"})


def is_class_name(name: str) -> bool:
    """Whether every program's files can hold a class of this name."""
    return _CLASS_NAME.fullmatch(name) is not None and name == name.strip()


class Range(BaseModel):
    """Where a statistic lay over tomograms: its 5, 50 and 95 per cent quantiles."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: float
    median: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low <= self.median <= self.high:
            raise ValueError("low, median and high must not fall")
        return self


class Domain(BaseModel):
    """The kind of tomogram a model was made for, by the statistics of `tomoline.ops.statistics`.

    `source` says which tomograms they were taken from, `tomograms` how many. `spectra` are the
    power spectra of each (lower bands), with the nearest of which a new one is compared.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    tomograms: int = Field(ge=1)
    statistics: dict[str, Range]
    spectra: list[list[float]] = []


class Sift(BaseModel):
    """How a classifier of whole subtomograms sifts the candidates of one localizer.

    With it the localizer works at the lower `threshold`, and candidates are particles from the
    probability `least` on (`tomoline.evaluation.sifting` has the formula of the weights).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    localizer_sha256: str
    threshold: float = Field(gt=0, lt=1)
    least: float = Field(ge=0, le=1)
    intercept: float
    score: float = Field(ge=0)
    background: float = Field(ge=0)
    contrast: float = Field(0.0, ge=0)


class ModelCard(BaseModel):
    """What a model is, what it needs and what it was measured to do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str = ""
    network: str
    parameters: dict[str, Any]
    # A segmenter marks parts of images, such as contamination, or a subtomogram's own voxels.
    role: Literal["localizer", "classifier", "segmenter"]
    classes: list[str] = Field(min_length=2)
    voxel_size_angstrom: float = Field(gt=0)
    voxel_size_range_angstrom: tuple[float, float]
    contrast: Literal["dark", "bright"] = "dark"
    threshold: float | None = Field(None, gt=0, lt=1)
    bandwidth_vox: float | None = Field(None, gt=0)
    box_vox: int | None = Field(None, ge=8)
    receptive_field_vox: int = Field(ge=1)
    # Beyond it a change of the input was measured to change no probability by a byte's half step.
    halo_vox: int | None = Field(None, ge=1)
    # A classifier's voted probabilities are taken to the power 1 / temperature.
    temperature: float | None = Field(None, gt=0)
    # Pairs of a localizer's score and the probability that there is a particle, both rising.
    precision_curve: list[tuple[float, float]] | None = Field(None, min_length=2)
    sift: Sift | None = None
    domain: Domain | None = None
    n_parameters: int = Field(ge=1)
    weights_sha256: str = ""
    training: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    licence: str = "MIT"

    @model_validator(mode="after")
    def _consistent(self) -> ModelCard:
        if self.classes[0] != BACKGROUND:
            raise ValueError(f"classes must begin with {BACKGROUND!r}")
        bad = [name for name in self.classes if not is_class_name(name)]
        if bad or len(set(self.classes)) < len(self.classes):
            raise ValueError(
                "classes must be names of 1 to 100 characters without quotes and control "
                f"characters, none twice, not {', '.join(map(repr, bad or self.classes))}"
            )
        low, high = self.voxel_size_range_angstrom
        if not low <= self.voxel_size_angstrom <= high:
            raise ValueError("voxel_size_angstrom lies outside voxel_size_range_angstrom")
        whole = "threshold" if self.network in OF_IMAGES else "box_vox"
        needed = ("threshold", "bandwidth_vox") if self.role == "localizer" else (whole,)
        for key in needed:
            if getattr(self, key) is None:
                raise ValueError(f"a {self.role} needs {key}")
        self._check_curve()
        return self

    @property
    def names_whole(self) -> bool:
        """Whether it names a subtomogram as a whole, and not each of its voxels."""
        return self.network in NAME_WHOLE

    @property
    def of_images(self) -> bool:
        """Whether it is a network of images, which sees a volume slice by slice."""
        return self.network in OF_IMAGES

    def sift_for(self, localizer: ModelCard) -> Sift | None:
        """How this classifier sifts the candidates of a localizer; None where it was not fitted
        to that one."""
        known = self.sift is not None and self.sift.localizer_sha256 == localizer.weights_sha256
        return self.sift if known else None

    def not_fitted(self, localizer: ModelCard) -> str:
        """What follows for a classifier of wholes that was not fitted to a localizer, and the
        remedy; empty where it was, and for classifiers of voxels, which sift nothing."""
        if not self.names_whole or self.sift_for(localizer) is not None:
            return ""
        return (
            f"{self.name} was not fitted to {localizer.name}: candidates are sifted by its "
            f"probability of background alone. Remedy: tomoline calibrate {localizer.name} "
            f"{self.name}"
        )

    def _check_curve(self) -> None:
        points = self.precision_curve or []
        if any(not (0 <= score <= 1 and 0 <= p <= 1) for score, p in points):
            raise ValueError("precision_curve must lie between 0 and 1")
        if any(b[0] <= a[0] or b[1] < a[1] for a, b in pairwise(points)):
            raise ValueError("precision_curve must rise")


def model_folder(path: str | Path) -> Path:
    """Return the folder of a model that was named by it or by its card."""
    path = Path(path)
    return path.parent if path.name == CARD else path


def load_card(path: str | Path) -> ModelCard:
    """Read and check a card; `path` is the model's folder or its card.

    Raises
    ------
    InputError
        If it is missing or says something that cannot be.
    """
    remedy = "correct `models` in the configuration, or train one"
    return read_card(path, ModelCard, called="a model's card", remedy=remedy)


def read_card(path: str | Path, kind: type[CardT], *, called: str, remedy: str) -> CardT:
    """Read and check a card of any kind; InputError as `load_card`, with `remedy` if it is not
    there or belongs to a network of other work than `kind` has."""
    card = model_folder(path) / CARD
    if not card.is_file():
        known = sorted(p.parent.name for p in card.parent.parent.glob(f"*/{CARD}"))
        raise InputError(
            card, expected=f"{called} ({', '.join(known) or 'none found'} are there)",
            found="no such file", remedy=remedy,
        )  # fmt: skip
    try:
        raw = yaml.safe_load(card.read_text(encoding="utf-8"))
        role = raw.get("role") if isinstance(raw, dict) else None
        if role in ROLES and role not in get_args(kind.model_fields["role"].annotation):
            raise InputError(card, expected=called, found=f"that of a {role}", remedy=remedy)
        return kind.model_validate(raw)
    except (ValidationError, yaml.YAMLError) as error:
        raise InputError(
            card, expected=f"{called}, complete", found=str(error),
            remedy="restore the card that came with the weights",
        ) from error  # fmt: skip


def write_card(path: str | Path, card: ModelCard) -> None:
    """Write a card into a model's folder, atomically; its weights stay as they are."""
    text = yaml.safe_dump(
        card.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100,
        default_flow_style=None,  # lists of numbers on one line
    )  # fmt: skip
    write_text(model_folder(path) / CARD, text)


def verify_weights(path: str | Path) -> ModelCard:
    """Check that the weight file is there and is the one its card was written for."""
    card = load_card(path)
    check_digest(model_folder(path), card.weights_sha256)
    return card


def check_digest(folder: Path, sha256: str) -> None:
    """Refuse a folder whose weights are missing or have another hash than its card says."""
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise InputError(
            weights, expected="the model's weights", found="no such file",
            remedy="copy the weights beside their card, or train the model",
        )  # fmt: skip
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    if found != sha256:
        raise InputError(
            weights, expected=f"SHA-256 {sha256[:16]}... as its card says",
            found=f"{found[:16]}...",
            remedy="the file is damaged or belongs to another card: copy both again",
        )  # fmt: skip


def check_multitask(card: ModelCard, source: str, *, masks: bool = False) -> None:
    """Refuse a model that gives no features of subtomograms.

    Raises
    ------
    InputError
        Unless it is a DSM-Net that names them, alone or with both of its other subnets; where
        `masks` are wanted, with both.
    """
    found = set(card.parameters.get("subnets", ["classification"]))
    legal = [set(MULTITASK)] if masks else [set(MULTITASK), {"classification"}]
    if card.network != "dsmnet" or found not in legal:
        wanted = " or ".join(", ".join(sorted(subnets)) for subnets in legal)
        raise InputError(
            source, expected=f"a dsmnet with the subnets {wanted}",
            found=f"{card.network} with {', '.join(sorted(found))}",
            remedy="name another model in discover.model, or train one "
            "(config/training/dsmnet-multitask.yaml)",
        )  # fmt: skip
