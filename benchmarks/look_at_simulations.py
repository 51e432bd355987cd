"""A contact sheet of simulated tomograms, to look at: do they look like tomograms?

    python benchmarks/look_at_simulations.py [--count 8] [--first 1] [--output PICTURE]
    python benchmarks/look_at_simulations.py --folders results/simulated/stress/*/model_1

Each row is one draw of `random_conditions`, or one tomogram on disk: the middle section across the
ice, the same with the particles marked whose centres lie within 4 voxels of it, and a section along
the beam. Grey values from -3 to 3 robust standard deviations.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tomoline.io.annotations import read_truth
from tomoline.io.atomic import atomic_path
from tomoline.io.mrc import open_volume
from tomoline.ops.normalise import normalise
from tomoline.simulation.densities import SHREC_CLASSES, load_density
from tomoline.simulation.shrec import conditions_of
from tomoline.simulation.tomogram import random_conditions, simulate_tomogram

DENSITIES = Path(__file__).parents[1] / "resources" / "densities"
NEAR_VOX = 4
WIDTH = 224
TEXT = 15

Drawn = tuple[NDArray[np.float32], NDArray[np.float64], str]


def simulated(seed: int, shape: tuple[int, int, int]) -> Drawn:
    """Volume, centres (n, 3) and a line about one draw."""
    densities = [load_density(DENSITIES, name) for name in SHREC_CLASSES]
    phantom, tilt, radial = random_conditions(seed, shape)
    made = simulate_tomogram(densities, phantom, tilt, filter_settings=radial, seed=seed)
    centres = np.asarray(made.phantom.centres_zyx, float).reshape(-1, 3)
    return made.reconstruction, centres, caption(f"seed {seed}", conditions_of(made))


def stored(folder: Path) -> Drawn:
    """Volume, centres (n, 3) and a line about a tomogram on disk."""
    table = read_truth(folder / "particle_locations.txt")
    centres = table[["z_vox", "y_vox", "x_vox"]].to_numpy(float)
    known = json.loads((folder / "conditions.json").read_text())
    name = f"{folder.parent.name}/{folder.name}"
    return np.asarray(open_volume(folder / "reconstruction.mrc")), centres, caption(name, known)


def caption(name: str, known: dict[str, object]) -> str:
    """Say the conditions that can be seen."""
    tilt, phantom = known["tilt"], known["phantom"]
    assert isinstance(tilt, dict)
    assert isinstance(phantom, dict)
    assert isinstance(known["placed"], dict)
    assert isinstance(known["beside"], dict)
    beside = ", ".join(f"{count} {kind}" for kind, count in known["beside"].items())
    return (
        f"{name}: SNR {tilt['snr']:.2f}, {sum(known['placed'].values())} particles, "
        f"defocus {tilt['defocus_um']:.1f} um{'' if tilt['phase_flipped'] else ' not flipped'}, "
        f"ice {phantom['ice_thickness_nm']:g} nm, solvent "
        f"{phantom['distractors']['solvent_rms']:.2f}; {beside or 'nothing beside'}"
    )


def row(drawn: Drawn) -> Image.Image:
    """Three pictures side by side, with a line above."""
    volume, centres, text = drawn
    grey = np.clip(normalise(volume) / 6 + 0.5, 0, 1)
    nz, ny, nx = grey.shape
    scale = WIDTH / nx
    pictures = [shown(grey[nz // 2], scale) for _ in range(2)]
    pictures.append(shown(grey[:, ny // 2], scale))
    draw = ImageDraw.Draw(pictures[1])
    for z, y, x in centres:
        if abs(z - nz // 2) <= NEAR_VOX:
            cx, cy, r = x * scale, y * scale, 6 * scale
            draw.ellipse((cx - r, cy - r, cx + r, cy + r), outline=(255, 200, 0))
    sheet = Image.new("RGB", (3 * WIDTH + 8, max(p.height for p in pictures) + TEXT), "white")
    ImageDraw.Draw(sheet).text((2, 1), text, fill="black")
    for k, picture in enumerate(pictures):
        sheet.paste(picture, (k * (WIDTH + 4), TEXT))
    return sheet


def shown(section: NDArray[np.float32], scale: float) -> Image.Image:
    """A section as a picture of the sheet's width."""
    picture = Image.fromarray((255 * section).astype(np.uint8)).convert("RGB")
    size = (round(section.shape[1] * scale), round(section.shape[0] * scale))
    return picture.resize(size, Image.Resampling.BICUBIC)


def main() -> None:
    """Draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--first", type=int, default=1, help="first seed")
    parser.add_argument("--shape", type=int, nargs=3, default=(80, 160, 160))
    parser.add_argument("--folders", type=Path, nargs="*", help="tomograms on disk instead")
    parser.add_argument("--output", type=Path, default=Path("results/simulations.png"))
    given = parser.parse_args()
    if given.folders:
        rows = [row(stored(folder)) for folder in given.folders]
    else:
        seeds = range(given.first, given.first + given.count)
        rows = [row(simulated(seed, tuple(given.shape))) for seed in seeds]
    sheet = Image.new("RGB", (rows[0].width, sum(r.height + 4 for r in rows)), "white")
    top = 0
    for picture in rows:
        sheet.paste(picture, (0, top))
        top += picture.height + 4
    given.output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(given.output) as temporary:
        sheet.quantize(64).save(temporary, "PNG", optimize=True)
    print(given.output)


if __name__ == "__main__":
    main()
