"""What the line makes of tomograms that it should find nothing in, or that its models do not know.

    snakemake simulate --cores all --configfile config/simulate/stress.yaml
    python benchmarks/out_of_depth.py [--cores 2] [--each 2]   # half an hour on two cores; then
                                                               # benchmarks_page.py

Runs the whole workflow with the configuration as shipped, in a project of its own below
results/benchmarks/out-of-depth, and writes table.md there: of each tomogram how many particles
there are, how many picks were kept, how many of these are false, and what the flag says.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tomoline.io.annotations import read_truth
from tomoline.io.atomic import write_text
from tomoline.io.mrc import open_volume
from tomoline.io.tables import ACCEPTED, read_particles
from tomoline.stages.onboard import Request, onboard
from tomoline.stages.project import init_project
from tomoline.stages.status import read_domain

ROOT = Path(__file__).parents[1]
STRESS = ROOT / "results" / "simulated" / "stress"
WORK = ROOT / "results" / "benchmarks" / "out-of-depth"
NAME = "out-of-depth"
VOXEL_SIZE = 10.0
NO_PARTICLES = ("vesicle", "fiducial")
WORDS = {
    "white-noise": "white noise, no tomogram at all",
    "noise": "noise alone, projected and reconstructed",
    "membranes-gold": "membranes and gold beads, no particle",
    "inverted": "particles bright, given as dark",
    "voxel-13.5": "voxels of 13.5 Å, and the header says so",
    "called-10": "voxels of 13.5 Å, the header says 10 Å",
    "called-14": "voxels of 10 Å, the header says 14 Å",
    "usual": "the same simulation as it should be",
}


@dataclass(frozen=True)
class Case:
    """One tomogram: what is wrong with it, its volume, its voxel size, and where particles are."""

    kind: str
    number: int
    volume: NDArray[np.float32]
    voxel_size: float
    truth: pd.DataFrame | None = None

    @property
    def name(self) -> str:
        """The tomogram's name in the data set."""
        return f"{self.kind}_{self.number}"


def simulated(kind: str, number: int) -> Case:
    """A tomogram of config/simulate/stress.yaml."""
    folder = STRESS / kind / f"model_{number}"
    path = folder / "reconstruction.mrc"
    truth = read_truth(folder / "particle_locations.txt")
    truth = truth[~truth["class"].isin(NO_PARTICLES)]
    with mrcfile.open(path, header_only=True) as file:
        size = round(float(file.voxel_size.x), 3)
    volume = np.asarray(open_volume(path), np.float32)
    return Case(kind, number, volume, size, truth if len(truth) else None)


def cases(each: int) -> list[Case]:
    """All tomograms that are run, so many of each kind."""
    found = []
    for number in range(1, each + 1):
        noise = np.random.default_rng(number).normal(size=(100, 256, 256)).astype(np.float32)
        found.append(Case("white-noise", number, noise, VOXEL_SIZE))
        found += [simulated(kind, number) for kind in ("noise", "membranes-gold", "inverted")]
        usual = simulated("inverted", number)
        found.append(Case("usual", number, -usual.volume, VOXEL_SIZE, usual.truth))
        found.append(Case("called-14", number, -usual.volume, 14.0, usual.truth))
        coarse = simulated("voxel-13.5", number)
        found.append(coarse)
        found.append(Case("called-10", number, coarse.volume, VOXEL_SIZE, coarse.truth))
    return found


def write(case: Case, folder: Path) -> None:
    """Write the tomogram, and beside it its truth, as a data set of a user's would lie."""
    with mrcfile.new(folder / f"{case.name}.mrc", overwrite=True) as file:
        file.set_data(case.volume)
        file.voxel_size = case.voxel_size
    if case.truth is not None:
        columns = {"x_vox": "x", "y_vox": "y", "z_vox": "z", "class": "cls"}
        table = case.truth[list(columns)].rename(columns=columns)
        table.to_csv(folder / f"{case.name}_particles.csv", index=False)


def row(case: Case, results: Path) -> list[str]:
    """The table's cells of one tomogram."""
    particles = read_particles(results / case.name / "particles.csv")
    kept = int((particles["status"] == ACCEPTED).sum())
    true, false = 0, kept
    if case.truth is not None:
        score = json.loads((results / case.name / "evaluation.json").read_text())["one_to_one"]
        true, false = len(case.truth), int(score["fp"])
    domain = read_domain(results / case.name)
    flag, reason = domain["in_domain"], domain["reason"]
    held = false <= 5 or flag in ("doubtful", "no")
    cells = [WORDS[case.kind], str(true), str(kept), str(false), flag, reason.split(";")[0]]
    return [*cells, "" if case.kind == "usual" else "yes" if held else "**no**"]


def main() -> None:
    """Make the project, run it, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", default="all")
    parser.add_argument("--each", type=int, choices=(1, 2), default=2, help="tomograms of a kind")
    arguments = parser.parse_args()
    cores, todo = arguments.cores, cases(arguments.each)
    project, given = WORK / "project", WORK / f"tomograms-{arguments.each}"
    given.mkdir(parents=True, exist_ok=True)
    for case in todo:
        write(case, given)
    if not (project / "Snakefile").is_file():
        init_project(project, root=ROOT)
    onboard(Request(name=NAME, paths=(given,), contrast="dark"), project=project)
    done = subprocess.run(
        [str(Path(sys.executable).with_name("snakemake")), "--cores", cores,
         "--config", f"datasets=['{NAME}']"],
        cwd=project, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.returncode)
    head = [
        "tomogram",
        "particles",
        "kept",
        "false",
        "flag",
        "what it says",
        "at most 5 or flagged",
    ]
    rows = [row(case, project / "results" / NAME) for case in sorted(todo, key=lambda c: c.kind)]
    lines = ["# Out of its depth", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(cells) + " |" for cells in rows]
    write_text(WORK / "table.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
