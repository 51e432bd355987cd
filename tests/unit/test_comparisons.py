"""Trainings on sets of subtomograms that are compared: their plan, and their table."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tomoline.errors import InputError
from tomoline.settings import Config
from tomoline.stages import compare_trainings
from tomoline.stages.benchmark_plan import make_plan

ROOT = Path(__file__).parents[2]


def config_of(*names):
    merged = {}
    for name in names:
        given = yaml.safe_load((ROOT / "config" / "benchmarks" / name).read_text())
        for section, values in given.items():
            merged[section] = _laid(merged.get(section, {}), values)
    return Config(**merged)


def _laid(below, values):
    if not isinstance(values, dict) or not isinstance(below, dict):
        return values
    return {**below, **{k: _laid(below.get(k, {}), v) for k, v in values.items()}}


@pytest.mark.parametrize("names", [["dsmnet.yaml"], ["dsmnet.yaml", "dsmnet-small.yaml"]])
def test_the_papers_tables_are_planned_and_share_trainings(names):
    config = config_of(*names)
    plan = make_plan(config, root=ROOT)
    assert not plan.benchmarks and not plan.experiments
    tables = {name: comparison.trainings for name, comparison in plan.comparisons.items()}
    assert set(tables) == {"subnets", "weights", "low-snr"}
    rows = {label: plan.trainings[name] for label, name in tables["subnets"].items()}
    subnets = {label: tuple(s.dsmnet.subnets) for label, s in rows.items()}
    assert len(set(subnets.values())) == 7  # each alone, each pair, all
    assert {s.task for s in rows.values() if "classification" not in s.dsmnet.subnets} == {
        "segmenter"
    }
    assert tables["weights"]["cls-seg-1-10"] == tables["subnets"]["cls-seg"]
    assert tables["weights"]["cls-rec-1-1"] == tables["subnets"]["cls-rec"]
    assert len(plan.trainings) == 7 + 2 + 3
    of_sets = plan.of_task("classifier", sets=True) + plan.of_task("segmenter", sets=True)
    assert sorted(of_sets) == sorted(plan.trainings) and not plan.of_task("classifier")
    heavy = plan.trainings[tables["weights"]["cls-seg-1-100"]].sets.weights
    assert (heavy.classification, heavy.segmentation) == (1.0, 100.0)
    if len(names) == 1:  # as the paper has it (sections 3.2 and 3.3)
        common = plan.trainings[tables["subnets"]["dsmnet"]]
        assert common.dsmnet.maps == (32, 64, 128) and common.dsmnet.dropout == 0.7
        assert (common.learning_rate, common.betas, common.batch_size) == (1e-3, (0.9, 0.99), 64)
        assert (common.max_epochs, common.patience, common.step_epochs) == (100, 15, 100)


def test_a_method_has_no_place_among_trainings_on_subtomograms(tmp_path):
    (tmp_path / "one.yaml").write_text(
        "question: q\nvariants: {a: {method: {centres: components}}, b: {}}\n"
    )
    config = Config(
        train={"network": "dsmnet", "task": "classifier", "source": "subtomograms"},
        benchmark={"name": "x", "experiments": "."},
    )
    with pytest.raises(InputError, match="settings of `train` alone"):
        make_plan(config, root=tmp_path)


def test_the_table_has_every_figure_and_a_dash_for_what_a_network_has_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    figures = {
        "all": {"test": {"object_accuracy": 0.9375, "mean_iou": 0.89}, "mean_f1": 0.9},
        "seg": {"test": {"mean_iou": 0.87, "voxel_accuracy": 0.99}},
    }
    for name, own in figures.items():
        folder = tmp_path / "results" / "models" / name
        folder.mkdir(parents=True)
        own["subtomograms"] = {"train": 2560, "validation": 320, "test": 320}
        (folder / "figures.json").write_text(json.dumps(own))
        (folder / "curves.jsonl").write_text("{}\n" * 12)
    comparisons = {"subnets": {
        "settings": {"question": "Together?", "paper": "yes", "variants": {"a": {}, "b": {}}},
        "trainings": {"a": "all", "b": "seg"},
    }}  # fmt: skip
    outputs = {"table": tmp_path / "t.csv", "page": tmp_path / "t.md"}
    compare_trainings.run({}, outputs, comparisons=comparisons)
    table = pd.read_csv(outputs["table"]).set_index("variant")
    assert table.loc["a", "object_accuracy"] == 0.9375 and table.loc["b", "mean_iou"] == 0.87
    assert table.loc["b", ["object_accuracy", "mean_f1"]].isna().all()
    assert table["epochs"].tolist() == [12, 12]
    page = outputs["page"].read_text()
    assert "| a | 2560 | 12 | 0.9375 | 0.9000 | - | 0.8900 | - |" in page
    assert "| b | 2560 | 12 | - | - | 0.9900 | 0.8700 | - |" in page
    assert "In the paper (not the same data): yes" in page
    comparisons["subnets"]["trainings"]["b"] = "gone"
    with pytest.raises(InputError, match="figures of a training"):
        compare_trainings.run({}, outputs, comparisons=comparisons)
