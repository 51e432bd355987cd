"""Simulated micrographs with truth, a data set at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from tomoline import __version__
from tomoline.io.atomic import write_json, write_text
from tomoline.io.mrc import write_volume
from tomoline.io.png import write_grey
from tomoline.log import get_logger
from tomoline.settings import SimulateMicrographsSettings
from tomoline.simulation.contaminants import KINDS, ContaminantSettings
from tomoline.simulation.coordinates import is_file_of_structure, load_structure
from tomoline.simulation.densities import Density
from tomoline.simulation.micrograph import (
    MicrographSettings,
    SimulatedMicrograph,
    simulate_micrograph,
)

SETTINGS = SimulateMicrographsSettings
log = get_logger(__name__)

PICK_COLUMNS = "x_px,y_px,diameter_px,structure"


def run(
    inputs: Mapping[str, Any], outputs: Mapping[str, Any], *, settings: SimulateMicrographsSettings
) -> None:
    """Write a data set's micrographs, their picks and masks beside `conditions.json`.

    Input `densities` (folder); output `conditions` (JSON), which is written last. Of micrograph k
    there are `micrograph_<k>.mrc` (electrons a pixel), `micrograph_<k>_picks.csv` (centres in its
    pixels, 0-based) and `micrograph_<k>_mask.png` (0 clean; else the place of the kind in `kinds`).
    """
    folder = Path(inputs["densities"])
    target = Path(outputs["conditions"])
    densities = structures(folder, settings)
    rows = []
    for number in range(1, settings.micrographs + 1):
        made = make_numbered(densities, settings, number, name=target.parent.name)
        rows.append(_write(target.parent, f"micrograph_{number:04d}", made))
        log.info("micrograph %d of %d: %d particles, SNR %.3g", number, settings.micrographs,
                 len(made.classes), made.snr)  # fmt: skip
    write_json(target, {
        "tomoline_version": __version__,
        "name": target.parent.name,
        "pixel_size_angstrom": settings.pixel_size_angstrom,
        "particle_diameter_angstrom": round(_diameter(densities) * settings.pixel_size_angstrom, 1),
        "contrast": "dark",
        "structures": [d.name for d in densities],
        "densities_sha256": _sums(folder, settings),
        "kinds": dict(enumerate(KINDS, 1)),
        "micrographs": rows,
        "settings": settings.model_dump(mode="json", exclude_defaults=True),
    })  # fmt: skip


def structures(folder: Path, settings: SimulateMicrographsSettings) -> list[Density]:
    """Densities of the settings' structures, at their pixel size."""
    size = settings.pixel_size_angstrom
    return [load_structure(folder, name, size) for name in settings.structures]


def make_numbered(
    densities: list[Density], settings: SimulateMicrographsSettings, number: int, *, name: str = ""
) -> SimulatedMicrograph:
    """Micrograph `number` of the data set `name`; both with the settings' seed give its own."""
    key = [settings.seed, crc32(name.encode()), number]
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    return simulate_micrograph(densities, conditions(settings, seed), seed=seed)


def conditions(settings: SimulateMicrographsSettings, seed: int) -> MicrographSettings:
    """Draw what a micrograph is made with."""
    rng = np.random.default_rng([seed, 11])

    def number(pair: tuple[int, int]) -> int:
        return int(rng.integers(pair[0], pair[1] + 1))

    def value(pair: tuple[float, float]) -> float:
        return float(rng.uniform(*pair))

    spoilt = ContaminantSettings(
        carbon_share=settings.carbon_share, ice_crystals=number(settings.ice_crystals),
        dust=number(settings.dust), gold=number(settings.gold),
    )  # fmt: skip
    return MicrographSettings(
        shape_yx=settings.shape_yx, pixel_size_angstrom=settings.pixel_size_angstrom,
        particles=number(settings.particles), gap=settings.gap,
        defocus_um=value(settings.defocus_um), dose=value(settings.dose),
        snr=None if settings.snr is None else value(settings.snr),
        mtf_sigma_nyquist=settings.mtf_sigma_nyquist, ice_nm=value(settings.ice_nm),
        ice_gradient=settings.ice_gradient, contaminants=spoilt,
    )  # fmt: skip


def _write(folder: Path, name: str, made: SimulatedMicrograph) -> dict[str, Any]:
    """Write a micrograph's files; what `conditions.json` says of it."""
    own = made.settings
    files = {"file": f"{name}.mrc", "picks": f"{name}_picks.csv", "mask": f"{name}_mask.png"}
    write_volume(folder / files["file"], made.image[None], own.pixel_size_angstrom)
    lines = [
        f"{x:.3f},{y:.3f},{diameter:.1f},{kind}"
        for (y, x), diameter, kind in zip(
            made.centres_yx, made.diameters_px, made.classes, strict=True
        )
    ]
    write_text(folder / files["picks"], "\n".join([PICK_COLUMNS, *lines]) + "\n")
    write_grey(folder / files["mask"], made.contamination.mask)
    return {
        "name": name, **files, "particles": dict(sorted(Counter(made.classes).items())),
        "defocus_um": round(own.defocus_um, 4), "dose": round(own.dose, 3),
        "snr": float(f"{made.snr:.6g}"), "ice_nm": round(own.ice_nm, 2),
        "contaminants": dict(made.contamination.numbers),
        "contaminated_share": round(float((made.contamination.mask > 0).mean()), 5),
    }  # fmt: skip


def _diameter(densities: list[Density]) -> float:
    """Diameter in pixels of the largest structure."""
    return 2 * max(d.radius_vox for d in densities)


def _sums(folder: Path, settings: SimulateMicrographsSettings) -> dict[str, str]:
    """Checksums of the structures' files."""
    sums = {}
    for name in sorted(settings.structures):
        path = Path(name) if is_file_of_structure(name) else folder / f"{name}.mrc.gz"
        sums[path.name] = sha256(path.read_bytes()).hexdigest()
    return sums
