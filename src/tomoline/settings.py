"""Every setting of a run: its default, its allowed values and what it means, in this one place.

`config/config.yaml`, its JSON schema (`workflow/schemas/`) and `config/README.md` are generated
from these classes (`python -m tomoline.settings`) and a test keeps them in step. Unknown keys are
refused. Lengths carry their unit in the name; voxels are those of the model (the prepared volume)
unless a name says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from tomoline.errors import InputError

SAFE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
MODULE_NAME = r"[A-Za-z0-9][A-Za-z0-9._+/-]{0,199}"


def _number(value: object) -> object:
    """A number given on the command line arrives as text, which a choice of numbers refuses."""
    return int(value) if isinstance(value, str) and value.strip().isdigit() else value


SafeName = Annotated[str, Field(pattern=SAFE_NAME)]
Flips = Annotated[Literal[1, 2, 4, 8], BeforeValidator(_number)]


class Section(BaseModel):
    """A group of settings; frozen, and strict about unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelsSettings(Section):
    """Which trained networks do the work."""

    folder: str = Field("resources/models", description="Where the models lie, one folder each.")
    localizer: str = Field(
        "msdnet-localizer",
        description="Network that finds particles; one with a slash is a path of its own, such as "
        "results/models/mine-localizer.",
    )
    classifier: str = Field(
        "dsmnet-classifier",
        description="Network that names their class: of whole subtomograms (dsmnet), which also "
        "sifts the candidates, or of their voxels, which then vote (msdnet). A path as above.",
    )

    def path_of(self, role: Literal["localizer", "classifier"]) -> Path:
        """Return the folder of the model that does a work, from the project's folder."""
        return model_path(getattr(self, role), self.folder)


def model_path(name: str, folder: str) -> Path:
    """Return a model's folder: `name` in the folder of models, or a path if it has a slash."""
    return Path(name) if "/" in name else Path(folder) / name


class PrepareSettings(Section):
    """From the tomogram as given to the volume the networks read."""

    imod: bool = Field(
        False, description="Use IMOD's trimvol, newstack and binvol instead of our own code."
    )
    rescale: Literal["auto", "never"] = Field(
        "auto",
        description="auto: Fourier crop or pad to the model's voxel size when they differ by more "
        "than rescale_tolerance; never: refuse a voxel size outside the model's range.",
    )
    rescale_tolerance: float = Field(
        0.03, ge=0, le=0.2, description="Relative difference of voxel size that is left as it is."
    )
    max_out_of_range: float = Field(
        0.001, ge=0, le=1, description="Largest share of NaN or infinite voxels that is repaired."
    )


class TilingSettings(Section):
    """How a volume is cut into overlapping windows."""

    size_vox: int = Field(
        0, ge=0, le=1024, description="Window edge in model voxels; 0 chooses by free memory."
    )
    halo_vox: int = Field(
        -1,
        ge=-1,
        description="Rim computed and thrown away on each inner face; -1 takes all that the "
        "network sees, or what was measured to matter where that costs half as much again.",
    )
    shards: int = Field(
        1, ge=1, le=256, description="Jobs that one tomogram's windows are shared between."
    )


class InferenceSettings(Section):
    """How networks are run."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: a GPU where there is one; cuda: fail where there is none."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 where the processor has instructions for it."
    )
    batch_size: int = Field(
        0,
        ge=0,
        description="classify: subtomograms a pass; 0: 64, or 4 where voxels are named on a "
        "processor.",
    )
    kernel: Literal["auto", "plain"] = Field(
        "auto", description="plain forces the reference code of each network."
    )
    test_time_flips: Flips = Field(
        1, description="Average over this many flips of the input (the missing wedge stays)."
    )


class SegmentSettings(InferenceSettings):
    """How the localizer is run on the windows."""

    test_time_flips: Flips = Field(
        4, description="Average over this many flips of the input (the missing wedge stays)."
    )
    slice_axes: Literal["z", "all"] = Field(
        "z",
        description="For a localizer that sees slices (pyconv_unet): cut across z, or the mean of "
        "cuts across z, y and x, in three times the time.",
    )


class ClassifySettings(InferenceSettings):
    """How the classifier is run on the subtomograms."""

    test_time_flips: Flips = Field(
        8, description="Average over this many flips of the input (the missing wedge stays)."
    )


class MergeSettings(Section):
    """From window probabilities to one binary mask."""

    threshold: float | None = Field(
        None, gt=0, lt=1, description="Probability that counts as particle; empty: the card's."
    )
    opening_radius_vox: int = Field(
        0, ge=0, le=10, description="Radius of the binary opening; 0 leaves small particles whole."
    )
    mask_cut_components: bool = Field(
        True,
        description="Leave out what a window's cut face has cut through (its neighbour has "
        "it whole).",
    )


class ClusterSettings(Section):
    """From the mask to candidate centres."""

    bandwidth_vox: float | None = Field(
        None, gt=0, description="Radius of the mean-shift kernel; empty: the card's."
    )
    min_size_vox: int = Field(3, ge=1, description="Smaller clusters become rejects.")
    max_size_vox: int | None = Field(
        None, ge=1, description="Larger clusters become rejects; empty: no limit."
    )
    min_score: float = Field(
        0.0, ge=0, le=1, description="Clusters with a lower peak probability become rejects."
    )
    split_above_vox: int | None = Field(
        None,
        ge=1,
        description="Components larger than this get further seeds from the distance "
        "transform; empty: the volume of a ball of the bandwidth's radius.",
    )
    merge_distance_vox: float | None = Field(
        None, ge=0, description="Centres closer than this are one particle; empty: bandwidth."
    )
    border_vox: int = Field(
        0, ge=0, description="Centres closer than this to the volume's faces become rejects."
    )


class ExtractSettings(Section):
    """Cutting subtomograms."""

    box_vox: int | None = Field(
        None, ge=8, le=256, description="Edge of a subtomogram; empty: the classifier card's."
    )


class VoteSettings(Section):
    """From voxel labels to one class a particle."""

    centre_radius_vox: float = Field(
        3.0, ge=0, description="How far from the centre the voted component may start."
    )
    radius_vox: float | None = Field(
        None,
        gt=0,
        description="Voxels farther from the centre do not vote, so that a touching "
        "neighbour cannot outvote a small particle; empty: 2.5 times the radius of the localizer's "
        "cluster.",
    )
    min_vote_share: float = Field(
        0.0, ge=0, le=1, description="Particles with a smaller share of votes become rejects."
    )
    min_probability: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Candidates that are particles with a smaller probability become rejects, "
        "where a classifier of whole subtomograms sifts them; empty: the card's; 0: none.",
    )


class ExportSettings(Section):
    """Which files are written for other programs."""

    dialects: list[str] = Field(
        ["relion5", "relion4", "csv"],
        min_length=1,
        description="Programs that get files: relion5, relion4, relion3, warp, dynamo, imod, "
        "eman2, copick, portal, csv (docs/coordinates.md).",
    )
    relion_centre: Literal["picker", "cpp"] = Field(
        "picker",
        description="RELION-5's centre: picker = (size/2 - 1) as its Python picker has it, "
        "cpp = size/2 as its C++ programs have it; one unbinned pixel apart.",
    )
    min_score: float = Field(0.0, ge=0, le=1, description="Leave out particles below this score.")
    min_expected_precision: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Leave out particles whose score promises less: the probability that there is "
        "a particle, as measured on simulated tomograms (the cards' precision_curve or sift).",
    )
    classes: list[str] = Field([], description="Only these classes; empty: all.")


class EvaluateSettings(Section):
    """How results are compared with truth, where there is one."""

    hit_distance_vox: float = Field(
        5.0, gt=0, description="One-to-one matching radius, in the given tomogram's voxels."
    )
    dilate_occupancy: bool = Field(
        True, description="SHREC'20 and '21 dilate the occupancy by one voxel; '19 did not."
    )
    beta: float = Field(4.0, gt=0, description="Weight of recall in F-beta.")
    truth_format: Literal["auto", "shrec19", "shrec20", "shrec21", "csv", "star"] = Field(
        "auto",
        description="How the truth is written; auto: by its suffix and first line, "
        "particle_locations.txt as SHREC'21 has it.",
    )
    truth_z_offset_vox: float | None = Field(
        None,
        description="Added to the truth's z; empty: the dataset's, else by how much the tomogram "
        "is deeper than its occupancy volume, else 156 for shrec20 (its slab's offset), else 0.",
    )
    ignored_classes: list[str] = Field(
        ["vesicle", "fiducial"],
        description="Classes of the truth that are no particles: a pick on one is false.",
    )
    dog_picker: bool = Field(
        True, description="Also run the difference-of-Gaussians picker for comparison."
    )


class ReportSettings(Section):
    """The pictures of the report."""

    slices: int = Field(5, ge=1, le=40, description="Slices shown for each tomogram.")


class EnvmodulesSettings(Section):
    """The site's modules that jobs load, with `--sdm env-modules` only (docs/installation.md)."""

    runtime: list[str] = Field([], description="Loaded last by every job.")
    gpu: list[str] = Field([], description="Also by the jobs that run or train a network.")
    imod: list[str] = Field([], description="Also by `prepare`, where `prepare.imod` is true.")

    @field_validator("runtime", "gpu", "imod")
    @classmethod
    def _plain_names(cls, names: list[str]) -> list[str]:
        """Refuse what a shell would take for more than a name: Snakemake writes them to one."""
        for name in names:
            if not re.fullmatch(MODULE_NAME, name):
                raise PydanticCustomError("module_name", "names of modules such as cuda/12.6")
        return names

    def of(self, kind: Literal["runtime", "gpu", "imod"]) -> list[str]:
        """Return the modules of a kind of job in the order of loading.

        The runtime's come last: Snakemake runs a script with the modules' own Python only where
        the module loaded last put it on PATH.
        """
        return self.runtime if kind == "runtime" else [*getattr(self, kind), *self.runtime]


class SpecimenSettings(Section):
    """fixed: what is in the specimen beside the particles, and the ice that holds it."""

    thickness_nm: float = Field(
        0.0, ge=0, description="Thickness of the ice, particles only within; 0: the whole depth."
    )
    ice_tilt_deg: tuple[float, float] = Field(
        (0.0, 0.0), description="How much the ice rises along y and along x."
    )
    vesicles: int = Field(0, ge=0, description="Ellipsoidal shells of a lipid bilayer.")
    membrane_sheets: int = Field(0, ge=0, description="Open sheets of a lipid bilayer.")
    gold_beads: int = Field(0, ge=0, description="Gold beads of 5 to 10 nm.")
    filaments: int = Field(0, ge=0, description="Filaments: tubes of 25 nm or rods of 7 nm.")
    contaminants: int = Field(0, ge=0, description="Crystals of ice in the surfaces.")
    solvent_rms: float = Field(
        0.0, ge=0, le=10, description="RMS of the solvent's own noise, a protein's density being 1."
    )
    list_distractors: bool = Field(
        False,
        description="Also list vesicles and gold (`vesicle`, `fiducial`) in the truth, with labels "
        "in the class mask behind the particles', as SHREC'21 does.",
    )


class MicroscopeSettings(Section):
    """fixed: how tilts are recorded, aligned and put together; formulas in docs/simulation.md."""

    phase_flipped: bool = Field(True, description="The sign of the CTF was corrected.")
    defocus_sd_um: float = Field(0.0, ge=0, description="Variation of the defocus between tilts.")
    defocus_ramp: bool = Field(False, description="Defocus varies across a tilted image.")
    mtf_sigma_nyquist: float = Field(
        0.0, ge=0, description="Detector: the signal falls as exp(-this (f / Nyquist)^2)."
    )
    mean_free_path_nm: float = Field(
        0.0, ge=0, description="Noise grows with the path through the ice; 0: not by this law."
    )
    dose_exponent: float = Field(
        0.5, ge=0, le=3, description="Noise grows as (1 / cos tilt) to this power."
    )
    dose_per_tilt: float = Field(
        0.0, ge=0, description="Electrons a square angstrom and image, for damage; 0: no damage."
    )
    dose_weighted: bool = Field(False, description="Images are weighted by their damage.")
    rotation_sd_deg: float = Field(0.0, ge=0, description="Alignment error: turn of an image (SD).")
    tilt_error_sd_deg: float = Field(0.0, ge=0, description="Error of the tilt angles (SD).")
    drift_vox: float = Field(0.0, ge=0, description="Amplitude of a slow drift over the series.")
    missing_tilts: int = Field(0, ge=0, description="Images lost, at random.")
    cutoff: float = Field(
        0.35, gt=0, le=0.5, description="Radial filter of the back-projection, cycles a pixel."
    )
    falloff: float = Field(0.05, gt=0, description="Width of its falloff beyond the cutoff.")
    contrast: Literal["dark", "bright"] = Field("dark", description="Particles' contrast.")


class SimulateSettings(Section):
    """Simulated data sets in SHREC layout: results/simulated/<name>/model_<k>."""

    name: str = Field("shrec-like", pattern=SAFE_NAME, description="Name of the data set.")
    tomograms: int = Field(10, ge=1, le=10000, description="How many tomograms.")
    first: int = Field(1, ge=0, description="Number of the first one (SHREC's is 0).")
    shape_zyx: tuple[int, int, int] = Field(
        (200, 256, 256), description="Size in voxels; with random conditions the largest depth."
    )
    voxel_size_angstrom: float = Field(
        10.0, ge=4, le=30, description="Voxel size; the density maps have 10."
    )
    classes: list[str] = Field(
        [], description="Structures; empty: the twelve of SHREC; `all`: all of resources/densities."
    )
    conditions: Literal["random", "fixed"] = Field(
        "random",
        description="random: SNR, tilt range, ice, crowding, defocus, alignment errors, filter and "
        "what is beside the particles drawn for each tomogram; fixed: the values below.",
    )
    particles: int = Field(600, ge=0, description="fixed: particles wanted; fewer if no room.")
    snr: float = Field(
        0.3,
        gt=0,
        description="fixed: variance of signal over variance of noise in the untilted projection.",
    )
    tilt_min_deg: float = Field(-60.0, gt=-90, lt=90, description="fixed: first tilt.")
    tilt_max_deg: float = Field(60.0, gt=-90, lt=90, description="fixed: last tilt.")
    tilt_step_deg: float = Field(3.0, gt=0, description="fixed: tilt step.")
    defocus_um: float = Field(0.0, ge=0, description="fixed: defocus; 0: no CTF.")
    shift_sd_vox: float = Field(0.5, ge=0, description="fixed: alignment error of an image (SD).")
    specimen: SpecimenSettings = SpecimenSettings()
    microscope: MicroscopeSettings = MicroscopeSettings()
    box_vox: int = Field(
        40, ge=8, le=128, description="Edge of a subtomogram (`snakemake simulate_subtomograms`)."
    )
    split: dict[Literal["train", "validation", "test"], list[int]] = Field(
        {}, description="Numbers of the tomograms that are for training, validation and test."
    )
    variants: dict[str, dict[str, Any]] = Field(
        {},
        description="Further data sets below this one's folder, by name: what is different in "
        "them. With the same seed they hold the same particles in the same places.",
    )
    seed: int = Field(1, ge=0, description="The same seed gives the same tomograms.")

    @model_validator(mode="after")
    def _variants_are_settings(self) -> SimulateSettings:
        for name in self.variants:
            if not re.fullmatch(SAFE_NAME.removeprefix("^").removesuffix("$"), name):
                raise PydanticCustomError("variant", "variants to have names safe for folders")
            self.variant(name)
        return self

    def variant(self, name: str) -> SimulateSettings:
        """Return the settings of a variant; those of the data set itself for an empty name."""
        if not name:
            return self
        changes = self.variants[name]
        fixed = sorted({"name", "variants", "first"} & changes.keys())
        if fixed:
            raise PydanticCustomError(
                "variant", "variants to leave {keys} alone", {"keys": ", ".join(fixed)}
            )
        base = self.model_dump(exclude_defaults=True, exclude={"variants"})
        return SimulateSettings.model_validate(_merged(base, changes))

    @property
    def sets(self) -> dict[str, SimulateSettings]:
        """Settings of each data set by its folder below results/simulated."""
        if not self.variants:
            return {self.name: self}
        return {f"{self.name}/{key}": self.variant(key) for key in self.variants}


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Lay nested `changes` over `base`."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = _merged(below, value) if both else value  # type: ignore[arg-type]
    return merged


class SimulateMicrographsSettings(Section):
    """Simulated micrographs of single particles: results/simulated/<name>/<set>.

    A pair of numbers is a range from which each micrograph draws its own.
    """

    name: str = Field("micrographs", pattern=SAFE_NAME, description="Name of the collection.")
    structures: list[str] = Field(
        ["1bxn"],
        min_length=1,
        description="Structures that lie in each micrograph together: names of "
        "resources/densities, or paths of atomic models (PDB, mmCIF) and maps (MRC).",
    )
    micrographs: int = Field(10, ge=1, le=10000, description="Micrographs of a data set.")
    shape_yx: tuple[int, int] = Field((1024, 1024), description="Size in pixels.")
    pixel_size_angstrom: float = Field(
        5.0, ge=0.5, le=20, description="Pixel size; the density maps have voxels of 10 A."
    )
    particles: tuple[int, int] = Field(
        (20, 150), description="Particles wanted; fewer where no room is left."
    )
    gap: float = Field(
        0.9, ge=0, le=10, description="Least distance of two particles, in mean diameters."
    )
    defocus_um: tuple[float, float] = Field((0.8, 3.0), description="Defocus; 0: no CTF.")
    dose: tuple[float, float] = Field(
        (25.0, 60.0), description="Exposure in electrons a square angstrom."
    )
    snr: tuple[float, float] | None = Field(
        None,
        description="Variance of the particles' image over that of the shot noise, within the "
        "circles about particles; empty: what follows from the exposure.",
    )
    mtf_sigma_nyquist: float = Field(
        0.5, ge=0, description="Detector: the signal falls as exp(-this (f / Nyquist)^2)."
    )
    ice_nm: tuple[float, float] = Field((20.0, 60.0), description="Thickness of the ice.")
    ice_gradient: float = Field(
        0.4, ge=0, le=1, description="Largest relative change of thickness, middle to corner."
    )
    carbon_share: float = Field(
        0.25, ge=0, le=1, description="Share of micrographs with the edge of a carbon hole."
    )
    ice_crystals: tuple[int, int] = Field((0, 3), description="Ice crystals.")
    dust: tuple[int, int] = Field((0, 2), description="Irregular patches of contamination.")
    gold: tuple[int, int] = Field((0, 3), description="Gold beads of 5 to 15 nm.")
    sets: dict[str, dict[str, Any]] = Field(
        {},
        description="Data sets by name: what is different in them; empty: one, named `all`.",
    )
    seed: int = Field(1, ge=0, description="The same seed gives the same micrographs.")

    @model_validator(mode="after")
    def _ranges_and_sets(self) -> SimulateMicrographsSettings:
        ranges = ("particles", "defocus_um", "dose", "snr", "ice_nm", "ice_crystals", "dust",
                  "gold")  # fmt: skip
        for key in ranges:
            pair = getattr(self, key)
            least = (
                0 if key in {"particles", "defocus_um", "ice_crystals", "dust", "gold"} else 1e-9
            )
            if pair is not None and not least <= pair[0] <= pair[1]:
                raise PydanticCustomError(
                    "range", "{key} to be two numbers that do not fall, {least} or more",
                    {"key": key, "least": "0" if least == 0 else "above 0"},
                )  # fmt: skip
        if min(self.shape_yx) < 32:
            raise PydanticCustomError("shape", "shape_yx to be at least 32 pixels each")
        for name, changes in self.sets.items():
            if not re.fullmatch(SAFE_NAME.removeprefix("^").removesuffix("$"), name):
                raise PydanticCustomError("set", "sets to have names safe for folders")
            if {"name", "sets"} & changes.keys():
                raise PydanticCustomError("set", "sets to leave name and sets alone")
            self.of(name)
        return self

    def of(self, name: str) -> SimulateMicrographsSettings:
        """Return the settings of one of the sets."""
        base = self.model_dump(exclude_defaults=True, exclude={"sets"})
        return SimulateMicrographsSettings.model_validate(_merged(base, self.sets.get(name, {})))

    @property
    def folders(self) -> dict[str, SimulateMicrographsSettings]:
        """Settings of each data set by its folder below results/simulated."""
        return {f"{self.name}/{key}": self.of(key) for key in self.sets or ("all",)}


class NetworkShape(Section):
    """Size of an MSDNet; the published ones are 49 or 100 layers of 2 maps, per channel."""

    depth: int = Field(8, ge=1, le=400, description="Layers.")
    width: int = Field(16, ge=1, le=128, description="Maps each layer adds.")
    max_dilation: int = Field(4, ge=1, le=16, description="Largest dilation.")
    dilation: Literal["per_channel", "per_layer"] = Field(
        "per_layer", description="per_channel as in the paper; per_layer is faster on processors."
    )


class DSMNetShape(Section):
    """Size of DSM-Net's backbone and classification subnet."""

    maps: tuple[int, int, int] = Field((32, 64, 128), description="Maps at each level.")
    features: int = Field(1024, ge=1, description="Size of the layer before the last.")
    dropout: float = Field(0.7, ge=0, lt=1, description="Share of them that training leaves out.")
    stem: Literal["pooled", "strided"] = Field(
        "pooled",
        description="First halving of the edge: convolution and max-pooling as in the paper, or "
        "one 5x5x5 convolution of stride 2, twice as fast on processors.",
    )


class PyConvShape(Section):
    """Size of a PyConvU-Net, which sees a tomogram slice by slice."""

    filters: list[int] = Field([8, 16, 32, 64], description="Maps at each level.")
    pyramid: list[int] = Field(
        [4, 3, 2, 1], description="Kernel sizes (3, 5, 7, 9) at each level, 1 to 4."
    )
    slices: int = Field(
        5, ge=1, le=31, description="Slices seen at once: the one that is marked and neighbours."
    )


class CandidateSettings(Section):
    """Subtomograms that a classifier of whole subtomograms learns from."""

    off_centre_vox: float = Field(
        1.3, ge=0, le=10, description="How far they are from their particle: SD a direction."
    )
    hit_vox: float = Field(
        4.5, gt=0, description="Farther from every particle is background, to be sifted out."
    )
    background_share: float = Field(
        0.35, ge=0, le=10, description="Number of background boxes, relative to particles."
    )
    anywhere: float = Field(
        0.25, ge=0, le=10, description="Places anywhere, a particle, among those that background "
        "boxes are drawn from; the others are maxima of density, and beside particles.",
    )  # fmt: skip
    views_per_particle: int = Field(
        2, ge=1, description="Boxes at each particle, flipped and changed in grey each time."
    )
    chunk_volumes: int = Field(
        12, ge=1, le=100, description="Tomograms whose boxes are shuffled among each other."
    )
    label_smoothing: float = Field(0.02, ge=0, lt=1, description="Of the loss's true labels.")
    workers: int = Field(1, ge=0, le=64, description="Processes that make tomograms meanwhile.")


class TrainSettings(Section):
    """Training of a network; the models land in results/models."""

    name: str = Field("msdnet", pattern=SAFE_NAME, description="Name of the models made.")
    network: Literal["msdnet", "dsmnet", "unet", "pyconv_unet"] = Field(
        "msdnet",
        description="Kind of network; msdnet names voxels, dsmnet whole subtomograms; unet is "
        "DeepFinder's, for comparison in the benchmarks; pyconv_unet is a light localizer of "
        "slices.",
    )
    shape: NetworkShape = NetworkShape()
    dsmnet: DSMNetShape = DSMNetShape()
    pyconv: PyConvShape = PyConvShape()
    candidates: CandidateSettings = CandidateSettings()
    filters: tuple[int, int, int] = Field(
        (32, 48, 64), description="unet: maps at each level; (32, 48, 64) is DeepFinder's size."
    )
    task: Literal["localizer", "classifier", "joint"] = Field(
        "joint", description="What is learnt; joint: both at once, sharing their layers."
    )
    classes: list[str] = Field([], description="Structures; empty: the twelve of SHREC.")
    source: Literal["simulator", "folders"] = Field(
        "simulator", description="Fresh simulated tomograms every epoch, or SHREC folders."
    )
    folders: list[str] = Field([], description="folders: tomograms to train on.")
    validation_folders: list[str] = Field([], description="folders: held-out tomograms.")
    shape_zyx: tuple[int, int, int] = Field(
        (96, 160, 160), description="simulator: size of a tomogram."
    )
    snr_range: tuple[float, float] = Field(
        (0.03, 3.0), description="simulator: signal-to-noise ratios, drawn evenly in the logarithm."
    )
    voxels_per_particle: tuple[float, float] = Field(
        (7e3, 2.6e4),
        description="simulator: crowding, the range of a tomogram's voxels for each "
        "particle in it.",
    )
    distractors: float = Field(
        1.0,
        ge=0,
        le=2,
        description="simulator: how often tomograms have membranes, gold, filaments and "
        "contamination, relative to a half, a third, a fifth and a fifth of them; 0: never.",
    )
    misalignment_vox: float = Field(
        1.2, ge=0, le=5, description="simulator: tilts are out of place by up to so much (SD)."
    )
    spectrum_jitter: float = Field(
        0.0,
        ge=0,
        le=2,
        description="simulator: how much the power spectra are varied, as other programs' filters "
        "do: SD of the logarithm of a smooth gain.",
    )
    init_from: str = Field(
        "", description="Folder of a model to start from; layers of equal shape are taken over."
    )
    crop_vox: int = Field(64, ge=16, le=256, description="Edge of a training window.")
    centred: bool = Field(
        False, description="Windows about particles, each class equally often, or anywhere."
    )
    batch_size: int = Field(1, ge=1, description="Windows a step, on each device.")
    steps_per_epoch: int = Field(32, ge=1, description="Steps an epoch.")
    volumes_per_epoch: int = Field(3, ge=1, description="New tomograms an epoch.")
    pool_volumes: int = Field(
        0,
        ge=0,
        description="Tomograms drawn from, those of earlier epochs among them; 0: only "
        "the new ones.",
    )
    validation_volumes: int = Field(2, ge=1, description="Held-out tomograms.")
    loss: Literal["focal", "tversky"] = Field(
        "focal",
        description="focal: weighted focal loss; tversky: mean overlap of the classes, as "
        "DeepFinder has it.",
    )
    gamma: float = Field(2.0, ge=0, description="Focusing of the loss; 0: cross-entropy.")
    core_alpha: float = Field(4.0, gt=0, description="Weight of the localizer's particle class.")
    background_alpha: float = Field(0.3, gt=0, description="Weight of the classifier's background.")
    radius_power: float = Field(
        1.0, ge=0, description="Class weights are (mean(R_e) / R_e) to this power."
    )
    core_loss_weight: float = Field(2.0, gt=0, description="joint: weight of the localizer.")
    optimiser: Literal["adam", "muon"] = Field(
        "adam", description="adam as in the paper; muon learns faster from few steps."
    )
    learning_rate: float = Field(1e-3, gt=0, description="Rate of the optimiser.")
    schedule: Literal["paper", "cosine"] = Field(
        "paper", description="paper: a tenth after every step_epochs; cosine: falls to zero."
    )
    step_epochs: int = Field(80, ge=1, description="paper: epochs at one rate.")
    max_epochs: int = Field(500, ge=1, description="Epochs at most.")
    stop_epochs: int = Field(
        0, ge=0, description="End after this many epochs of the schedule; 0: at its end."
    )
    stop_processor_hours: float = Field(
        0.0,
        ge=0,
        description="End after the epoch that fills this budget of processor time; 0: no limit.",
    )
    warmup_epochs: float = Field(0.0, ge=0, description="Epochs over which the rate rises.")
    patience: int = Field(
        100, ge=1, description="Stop after this many epochs without a better validation loss."
    )
    validate_every: int = Field(1, ge=1, description="Epochs between validations.")
    average_decay: float = Field(
        0.99, ge=0, lt=1, description="Exponential average of the weights; 0: none."
    )
    clip_norm: float = Field(1.0, gt=0, description="Largest norm of a gradient.")
    box_vox: int = Field(32, ge=8, le=256, description="Subtomogram edge of the classifier.")
    calibrate: bool = Field(
        True,
        description="msdnet: find threshold, bandwidth, halo and what scores are worth on the "
        "validation tomograms at the end; false where a benchmark tunes the models anyway.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 where the device has instructions for it."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="As in `segment`.")
    seed: int = Field(1, ge=0, description="The same seed gives the same training.")

    @model_validator(mode="after")
    def _task_of_network(self) -> TrainSettings:
        if self.network == "dsmnet" and self.task != "classifier":
            raise PydanticCustomError("task", "task: classifier, as dsmnet learns nothing else")
        if self.network == "pyconv_unet" and self.task != "localizer":
            raise PydanticCustomError("task", "task: localizer, as pyconv_unet learns nothing else")
        return self


class TrainImagesSettings(Section):
    """Training of segmenters of images, compared on held-out ones (docs/micrographs.md)."""

    name: str = Field("images", pattern=SAFE_NAME, description="Models are <name>-<network>.")
    networks: list[Literal["pyconv_unet", "unet2d"]] = Field(
        ["pyconv_unet"],
        min_length=1,
        description="Networks to train alike: PyConvU-Net, and the U-Net it is compared with.",
    )
    filters: list[int] = Field(
        [], description="Maps at each level; empty: each network's own (five levels)."
    )
    pyramid: list[int] = Field(
        [], description="pyconv_unet: kernel sizes at each level, 1 to 4; empty: its own."
    )
    images: list[str] = Field(
        [], description="Images (PNG, TIFF, JPG, MRC), each name with or without wildcards."
    )
    labels: list[str] = Field(
        [],
        description="Their label images in the same order: named as them, or with _mask or _label "
        "behind.",
    )
    classes: dict[SafeName, list[int]] = Field(
        {},
        description="Classes by name: the grey values they have in the labels. All others are "
        "background; empty: `foreground`, 255.",
    )
    test_images: int = Field(
        6, ge=0, description="Images, drawn by the seed, that only the comparison sees."
    )
    validation_images: int = Field(
        2, ge=1, description="Images, of the others, that choose the best epoch and the threshold."
    )
    pixel_size_angstrom: float | None = Field(
        None, gt=0, description="Pixel size of the images; empty: their headers'."
    )
    model_pixel_size_angstrom: float | None = Field(
        None,
        gt=0,
        description="Pixel size that the network sees, to which images are rescaled; empty: theirs",
    )
    invert: bool = Field(False, description="Images have the opposite contrast of the model's.")
    crop_px: int = Field(256, ge=16, le=4096, description="Edge of a training window.")
    intensity: float = Field(
        0.1, ge=0, le=1, description="Random scale, offset and noise of grey values (SD)."
    )
    batch_size: int = Field(2, ge=1, description="Windows a step.")
    steps_per_epoch: int = Field(16, ge=1, description="Steps an epoch.")
    gamma: float = Field(0.0, ge=0, description="Focusing of the loss; 0: cross-entropy.")
    dice_weight: float = Field(
        0.5, ge=0, description="Weight of 1 - soft Dice, mean of the classes, beside it."
    )
    optimiser: Literal["adam", "muon"] = Field("adam", description="As in `train`.")
    learning_rate: float = Field(1e-3, gt=0, description="Rate of the optimiser.")
    schedule: Literal["paper", "cosine"] = Field("cosine", description="As in `train`.")
    step_epochs: int = Field(80, ge=1, description="As in `train`.")
    max_epochs: int = Field(60, ge=1, description="Epochs at most.")
    stop_processor_hours: float = Field(0.0, ge=0, description="As in `train`.")
    warmup_epochs: float = Field(1.0, ge=0, description="Epochs over which the rate rises.")
    patience: int = Field(1000, ge=1, description="As in `train`.")
    validate_every: int = Field(5, ge=1, description="Epochs between validations.")
    average_decay: float = Field(0.98, ge=0, lt=1, description="As in `train`.")
    test_time_flips: Annotated[Literal[1, 4], BeforeValidator(_number)] = Field(
        4, description="Comparison: mean over flips of the image."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="As in `train`.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="As in `segment`.")
    seed: int = Field(1, ge=0, description="The same seed gives the same split and training.")

    @property
    def grey_values(self) -> dict[str, list[int]]:
        """Return the grey values of each class in the labels."""
        return dict(self.classes) or {"foreground": [255]}


class SegmentImagesSettings(Section):
    """A segmenter on images or micrographs: results/<dataset>/<image>/mask.png."""

    model: str = Field(
        "results/models/micrograph-masks-pyconv_unet",
        description="The segmenter: a folder of models.folder, or a path if it has a slash.",
    )
    dataset: str = Field("images", pattern=SAFE_NAME, description="Folder below results.")
    images: list[str] = Field(
        [], description="Images (MRC, PNG, TIFF, JPG), each name with or without wildcards."
    )
    pixel_size_angstrom: float | None = Field(
        None, gt=0, description="Pixel size of the images; empty: their headers'."
    )
    invert: bool = Field(False, description="Particles or objects are bright.")
    threshold: float | None = Field(
        None, gt=0, lt=1, description="Probability that counts; empty: the card's."
    )
    least_area_nm2: float = Field(
        0.0, ge=0, description="Smaller patches are left out of the mask."
    )
    test_time_flips: Annotated[Literal[1, 4], BeforeValidator(_number)] = Field(
        4, description="Mean over flips of the image."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="As in `segment`.")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="As in `segment`")


class FinetuneSettings(Section):
    """Models taught on with a data set's labels (docs/review.md); they land in results/models."""

    name: str = Field("tuned", pattern=SAFE_NAME, description="Name of the models made.")
    dataset: str = Field(
        "", description="Data set whose labels are learnt, one of `datasets`; empty: the first."
    )
    roles: list[Literal["classifier", "localizer"]] = Field(
        ["classifier"],
        min_length=1,
        description="Which networks learn. The classifier takes minutes, the localizer longer.",
    )
    localizer: str = Field(
        "", description="Localizer to start from, as in `models`; empty: that of `models`."
    )
    classifier: str = Field(
        "", description="Classifier to start from, as in `models`; empty: that of `models`."
    )
    labels: Literal["partial", "complete"] = Field(
        "partial",
        description="partial: what nobody labelled is unknown; complete: it is background, as "
        "every particle of the labelled tomograms' learnt part has its label.",
    )
    held_out: list[str] = Field(
        [], description="Tomograms whose labels are not learnt but measure what was; empty: a part "
        "of each tomogram."
    )  # fmt: skip
    held_out_part: float = Field(
        0.3,
        ge=0,
        le=0.9,
        description="Where held_out is empty: the part of each tomogram that is held out, at its "
        "upper end along y; 0: none, and nothing is measured.",
    )
    radius_angstrom: dict[str, float] = Field(
        {}, description="Radius of a class, where the labels have none and no density is known."
    )
    layers: Literal["head", "last_block", "all"] = Field(
        "head",
        description="Layers of a classifier of whole subtomograms that learn; head takes seconds, "
        "the others minutes.",
    )
    views: int = Field(
        12, ge=1, le=200, description="Boxes at each label, off centre, flipped and changed in grey"
    )
    keep_named: float = Field(
        0.8,
        ge=0,
        le=1,
        description="Candidates without label that the classifier named with this probability, as "
        "a class it takes no label for, keep their name in the training; 1: none do.",
    )
    low_score: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="partial: unlabelled places are background where the localizer's probability "
        "stays below this.",
    )
    simulated_share: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Share of simulated particles of the classes the model knows already, so that "
        "they are not forgotten.",
    )
    simulated_tomograms: int = Field(
        12, ge=1, le=1000, description="Simulated tomograms they are taken from."
    )
    epochs: int = Field(12, ge=1, le=10000, description="Epochs; the rate falls to zero over them.")
    steps_per_epoch: int = Field(20, ge=1, description="Steps an epoch.")
    batch_size: int = Field(64, ge=1, description="Subtomograms a step.")
    learning_rate: float = Field(5e-4, gt=0, description="Rate of Adam at the start.")
    test_time_flips: Flips = Field(
        8, description="As in `classify`, where it is measured what was learnt."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="As in `segment`.")
    seed: int = Field(1, ge=0, description="The same seed gives the same training.")


class BenchmarkTomogram(Section):
    """A tomogram of a benchmark: a folder in SHREC layout, or its files."""

    use: Literal["validation", "test"] = Field(
        description="validation: methods are tuned on it; test: they are scored on it."
    )
    group: str = Field(
        "all",
        pattern=SAFE_NAME,
        description="A test tomogram's settings are tuned on the validation tomograms of its group",
    )
    folder: str = Field("", description="Folder in SHREC layout; empty: the files named below.")
    tomogram: str = Field("", description="The tomogram's file.")
    truth: str = Field("", description="Its known particles, as in a dataset's sheet.")
    occupancy: str = Field("", description="Its volume of particle numbers; may be empty.")
    voxel_size_angstrom: float | None = Field(
        None, gt=0, description="Overrides the header's; empty: the header's."
    )
    contrast: Literal["dark", "bright"] = Field("dark", description="That of its particles.")
    axes: Literal["auto", "xyz", "xzy"] = Field("auto", description="As in a dataset.")
    tilts_deg: tuple[float, float] = Field(
        (-60.0, 60.0), description="First and last tilt, for the missing wedge of templates."
    )


class BenchmarkMethod(Section):
    """A method of a benchmark, and what it needs."""

    kind: Literal["tomoline", "dog", "pytme", "unet"] = Field(
        description="tomoline: this workflow's line; dog: difference of Gaussians; pytme: template "
        "matching; unet: a network that names every voxel of a tomogram."
    )
    folder: str = Field(
        "resources/models", description="tomoline, unet: where the models lie, one folder each."
    )
    localizer: str = Field("msdnet-localizer", description="tomoline: the localizer.")
    classifier: str = Field(
        "dsmnet-classifier", description="tomoline: the classifier; unet: the network."
    )
    centres: Literal["mean_shift", "components"] = Field(
        "mean_shift",
        description="tomoline: centres by mean-shift, or of connected components as they are.",
    )
    flips: Flips | None = Field(
        None, description="tomoline: flips of the input averaged over; empty: as in every run."
    )
    angle_deg: float = Field(20.0, gt=3, le=90, description="pytme: angular step.")
    bin: int = Field(
        1, ge=1, le=8, description="pytme: tomogram and templates are Fourier-cropped by this."
    )
    classes: list[str] = Field([], description="pytme: templates; empty: the twelve of SHREC.")
    python: str = Field(
        ".venv-peers/bin/python",
        description="pytme: the Python of its own environment (`make bench-peers`).",
    )


class BenchmarkSettings(Section):
    """Methods compared on the same tomograms, in results/benchmarks/<name>."""

    name: str = Field("first", pattern=SAFE_NAME, description="Name of the benchmark.")
    tomograms: dict[SafeName, BenchmarkTomogram] = Field(
        {}, description="Tomograms by name, each with use, group, folder or files."
    )
    methods: dict[SafeName, BenchmarkMethod] = Field(
        {}, description="Methods by name, each with its kind and what that needs."
    )
    trainings: list[str] = Field(
        [],
        description="Files with a `train` section; models of the methods that are not there are "
        "trained by them.",
    )
    experiments: str = Field(
        "", description="Folder of experiments for `snakemake experiments`; see docs/benchmarks.md."
    )
    flips: Flips | None = Field(
        None, description="experiments: `flips` of their methods of kind tomoline."
    )


class ExperimentVariant(Section):
    """One side of a comparison: what differs from the common training, and from the method."""

    train: dict[str, Any] = Field({}, description="Settings of `train` that differ.")
    method: dict[str, Any] = Field({}, description="Settings of the method that differ.")


class ExperimentSettings(Section):
    """A file of config/benchmarks/experiments: one question and the variants that answer it."""

    question: str = Field(description="What is compared.")
    paper: str = Field("", description="What the paper found, in words.")
    variants: dict[SafeName, ExperimentVariant] = Field(description="Variants by name.")


class Config(Section):
    """The whole of `config/config.yaml`."""

    datasets: list[str] = Field(
        ["demo"], min_length=1, description="Names of files in config/datasets."
    )
    models: ModelsSettings = ModelsSettings()
    prepare: PrepareSettings = PrepareSettings()
    tiling: TilingSettings = TilingSettings()
    segment: SegmentSettings = SegmentSettings()
    merge: MergeSettings = MergeSettings()
    cluster: ClusterSettings = ClusterSettings()
    extract: ExtractSettings = ExtractSettings()
    classify: ClassifySettings = ClassifySettings()
    vote: VoteSettings = VoteSettings()
    export: ExportSettings = ExportSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    report: ReportSettings = ReportSettings()
    envmodules: EnvmodulesSettings = EnvmodulesSettings()
    keep: list[Literal["prepared", "shards", "probability", "mask", "subtomograms", "classes"]] = (
        Field(
            ["prepared"],
            description="Intermediate files to keep; the others go when no longer needed. Without "
            "`prepared`, a later change of classify, evaluate or report, or a truth that is added, "
            "computes everything again.",
        )
    )
    simulate: SimulateSettings = SimulateSettings()
    simulate_micrographs: SimulateMicrographsSettings = SimulateMicrographsSettings()
    train: TrainSettings = TrainSettings()
    train_images: TrainImagesSettings = TrainImagesSettings()
    segment_images: SegmentImagesSettings = SegmentImagesSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    benchmark: BenchmarkSettings = BenchmarkSettings()


class DatasetSettings(Section):
    """One `config/datasets/<name>.yaml`, written by `tomoline onboard`."""

    name: str = Field(pattern=SAFE_NAME, description="The dataset's name, and its results folder.")
    sheet: str = Field(description="Its table of tomograms, beside this file.")
    voxel_size_angstrom: float | None = Field(
        None, gt=0, description="Overrides the headers; empty: each file's header."
    )
    contrast: Literal["dark", "bright"] = Field(
        "dark", description="Whether particles are darker or brighter than their surroundings."
    )
    axes: Literal["auto", "xyz", "xzy"] = Field(
        "auto",
        description="Axis order on file, fastest first; xzy is `tilt`'s own output, "
        "turned about x as `trimvol -rx` does; auto: as the sheet's column says.",
    )
    tilt_series_pixel_size_angstrom: float | None = Field(
        None, gt=0, description="Unbinned pixel size; empty: the tomogram is taken as unbinned."
    )
    unbinned_size_xyz: tuple[int, int, int] | None = Field(
        None,
        description="Size of the tomogram in unbinned pixels (RELION's rlnTomoSizeX, Y, Z); "
        "empty: its own size times the binning.",
    )
    binned_by: Literal["fourier", "average"] = Field(
        "fourier",
        description="How the tomogram was binned: fourier (RELION, Warp) keeps the "
        "centre of voxel 0 where it was; average (IMOD's binvol and newstack -bin) moves it half "
        "a block inwards.",
    )
    voltage_kv: float = Field(300.0, gt=0, description="For RELION's optics table.")
    spherical_aberration_mm: float = Field(2.7, ge=0, description="For RELION's optics table.")
    amplitude_contrast: float = Field(0.1, ge=0, le=1, description="For RELION's optics table.")
    classes: list[str] = Field([], description="Classes expected in it; empty: the model's.")
    truth_format: Literal["auto", "shrec19", "shrec20", "shrec21", "csv", "star"] = Field(
        "auto", description="How its truth is written, where evaluate.truth_format is auto."
    )
    truth_z_offset_vox: float | None = Field(
        None, description="Added to its truth's z, where evaluate.truth_z_offset_vox is empty."
    )


SectionT = TypeVar("SectionT", bound=Section)


def validated(kind: type[SectionT], raw: Mapping[str, Any], *, source: str | Path) -> SectionT:
    """Check `raw` against a group of settings; InputError naming every fault at once.

    Unknown keys, values of the wrong type and values out of range are refused; for an unknown key
    the known ones are listed and the nearest is proposed.
    """
    try:
        return kind.model_validate(dict(raw))
    except ValidationError as error:
        faults = error.errors()
    found, expected, remedies = [], [], []
    for fault in faults:
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            known = sorted(_section_at(kind, fault["loc"][:-1]).model_fields)
            found.append(f"the unknown key `{key}`")
            expected.append(f"one of {', '.join(known)}")
            remedies.append(_nearest(str(fault["loc"][-1]), known))
        else:
            given = "" if fault["type"] == "missing" else f" {fault['input']!r}"
            found.append(f"`{key}`{given}")
            expected.append(fault["msg"][:1].lower() + fault["msg"][1:])
            remedies.append(f"correct `{key}`")
    raise InputError(
        source,
        expected="; ".join(dict.fromkeys(expected)),
        found="; ".join(found),
        remedy="; ".join(dict.fromkeys(remedies)) + " (config/README.md explains every key)",
    )


def _section_at(kind: type[Section], location: Iterable[str | int]) -> type[Section]:
    named = False  # the next part is a name that the user gave
    for part in location:
        if named:
            named = False
            continue
        inner = kind.model_fields[str(part)].annotation
        if get_origin(inner) is dict:
            inner, named = get_args(inner)[1], True
        if isinstance(inner, type) and issubclass(inner, Section):
            kind = inner
    return kind


def _nearest(key: str, known: list[str]) -> str:
    close = get_close_matches(key, known, n=1)
    return f"did you mean `{close[0]}`?" if close else f"remove `{key}`"


if __name__ == "__main__":
    from tomoline.settings_docs import main

    main()
