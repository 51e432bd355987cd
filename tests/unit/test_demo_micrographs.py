"""The shipped micrographs are what their settings make, and are a data set that can be run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from tomoline.io.micrograph_sheet import load_micrographs
from tomoline.io.micrographs import read_micrograph
from tomoline.io.picks import Exposure, read_truth
from tomoline.io.sheet import DATASETS_FOLDER
from tomoline.settings import (
    Config,
    PickingBenchmark,
    SimulateMicrographsSettings,
    validated,
)
from tomoline.stages.simulate_micrographs import make_numbered, structures

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "resources" / "demo" / "micrographs"


def test_the_settings_make_them_again() -> None:
    raw = yaml.safe_load((ROOT / "config" / "simulate" / "demo-micrographs.yaml").read_text())
    settings = SimulateMicrographsSettings.model_validate(raw["simulate_micrographs"])
    (own,) = settings.folders.values()
    densities = structures(ROOT / "resources" / "densities", own)
    made = make_numbered(densities, own, 2, name="all")
    shipped, facts = read_micrograph(FOLDER / "micrograph_0002.mrc")
    # Transforms of other processors differ in their last digits.
    assert np.abs(made.image - shipped).max() < 1e-3 * shipped.std()
    exposure = Exposure(micrograph="m", path="m.mrc", shape_yx=facts.shape_yx,
                        pixel_size_angstrom=7.0)  # fmt: skip
    known = read_truth(FOLDER / "micrograph_0002_picks.csv", exposure)
    assert np.abs(known[["y_px", "x_px"]].to_numpy() - made.centres_yx).max() < 1e-3


def test_they_are_a_data_set_and_small() -> None:
    dataset, rows = load_micrographs("demo_micrographs", folder=ROOT / DATASETS_FOLDER)
    assert dataset.particle_diameter_angstrom == 350
    assert len(rows) == 3
    for row in rows:
        assert row.wanted
        assert (ROOT / row.path).is_file()
        assert (ROOT / row.truth).is_file()
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 3e6


def test_the_shipped_recipes_are_settings() -> None:
    recipe = ROOT / "config" / "training" / "hydrapicker.yaml"
    config = validated(Config, yaml.safe_load(recipe.read_text()), source=recipe)
    tables = ROOT / "config" / "benchmarks" / "pickers" / "micrographs.yaml"
    compared = validated(PickingBenchmark, yaml.safe_load(tables.read_text()), source=tables)
    # What is compared as a source was a source, and no target was.
    sources = config.train_picker.sources
    assert {n: s.folder for n, s in compared.sources.items()}.items() <= {
        n: s.folder for n, s in sources.items()
    }.items()
    assert not {s.folder for s in compared.targets.values()} & {s.folder for s in sources.values()}
