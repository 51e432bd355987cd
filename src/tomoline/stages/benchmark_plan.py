"""Which benchmarks and trainings a configuration asks for: its own, and those of experiments.

An experiment (`config/benchmarks/experiments/<name>.yaml`) compares trainings that differ from the
configuration's `train` section, all else equal. The variants of all experiments are the methods of
one benchmark, so that what stands in several experiments is trained and run once; each experiment
has a table of its own methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tomoline.errors import InputError
from tomoline.settings import (
    BenchmarkMethod,
    BenchmarkSettings,
    Config,
    ExperimentSettings,
    ExperimentVariant,
    TrainSettings,
    validated,
)
from tomoline.stages.benchmark_files import check_benchmark

MODELS = "results/models"
COMMON = "common"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A question and, by the label of each variant, the method that answers it."""

    settings: ExperimentSettings
    methods: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Benchmarks and trainings by name; `experiments` by the name of their tables.

    `variants` names the benchmark that runs the methods of all experiments.
    """

    benchmarks: dict[str, BenchmarkSettings] = field(default_factory=dict)
    trainings: dict[str, TrainSettings] = field(default_factory=dict)
    experiments: dict[str, Experiment] = field(default_factory=dict)
    variants: str = ""

    def of_task(self, task: str) -> list[str]:
        """Names of the trainings of a task."""
        return [name for name, s in self.trainings.items() if s.task == task]

    def table(self, name: str) -> tuple[BenchmarkSettings, dict[str, str]]:
        """A table's benchmark with the methods in it, and what the table calls them."""
        if name not in self.experiments:
            return self.benchmarks[name], {}
        labels = {key: label for label, key in self.experiments[name].methods.items()}
        whole = self.benchmarks[self.variants]
        methods = {key: whole.methods[key] for key in labels}
        return whole.model_copy(update={"methods": methods}), labels


def make_plan(config: Config, *, root: str | Path = ".") -> Plan:
    """Read the files that the section `benchmark` names.

    Raises
    ------
    InputError
        A file that is missing or wrong, a name that is given twice, or a benchmark that cannot run.
    """
    own = config.benchmark
    trainings: dict[str, TrainSettings] = {}
    for given in own.trainings:
        raw = _read(Path(root) / given).get("train", {})
        settings = validated(TrainSettings, raw, source=given)
        if settings.name in trainings:
            raise InputError(
                given, expected="a training of another name", found=settings.name,
                remedy="give each training its own `name`",
            )  # fmt: skip
        trainings[settings.name] = settings
    benchmarks: dict[str, BenchmarkSettings] = {}
    if own.methods:
        benchmarks[own.name] = own
    experiments: dict[str, Experiment] = {}
    methods: dict[str, BenchmarkMethod] = {}
    for file in _files(own, Path(root)):
        experiment = validated(ExperimentSettings, _read(file), source=file)
        chosen: dict[str, str] = {}
        for label, variant in experiment.variants.items():
            source = f"{file}, variant {label}"
            settings = _training(config, file.stem, label, variant, source=source)
            trainings.setdefault(settings.name, settings)
            method = _method(settings, variant, flips=own.flips, source=source)
            key = next((key for key, known in methods.items() if known == method), None)
            if key is None:
                alone = variant.train or variant.method
                key = f"{file.stem}-{label}" if alone else COMMON
                methods[key] = method
            if key in chosen.values():
                raise InputError(
                    source, expected="a variant unlike the others", found="the same settings",
                    remedy="change what the question is about, or leave the variant out",
                )  # fmt: skip
            chosen[label] = key
        experiments[f"{own.name}-{file.stem}"] = Experiment(settings=experiment, methods=chosen)
    variants = f"{own.name}-variants" if experiments else ""
    if experiments:
        benchmarks[variants] = own.model_copy(update={"name": variants, "methods": methods})
    for benchmark in benchmarks.values():
        check_benchmark(benchmark)
    return Plan(
        benchmarks=benchmarks, trainings=trainings, experiments=experiments, variants=variants
    )


def _method(
    training: TrainSettings, variant: ExperimentVariant, *, flips: int | None, source: str
) -> BenchmarkMethod:
    """The line, or what the variant has instead, with the models of its training."""
    models = {part: f"{training.name}-{part}" for part in ("localizer", "classifier")}
    if training.task != "joint":
        del models["localizer"]
    chosen = {"kind": "tomoline", "folder": MODELS, **models, **variant.method}
    if chosen["kind"] == "tomoline":
        chosen = {"flips": flips, **chosen}
    return validated(BenchmarkMethod, chosen, source=source)


def _training(
    config: Config, experiment: str, label: str, variant: ExperimentVariant, *, source: str
) -> TrainSettings:
    """A variant's training; those that change nothing share the common one."""
    own, changed = config.benchmark.name, variant.train
    name = f"{own}-{experiment}-{label}" if changed else f"{own}-{COMMON}"
    common = config.train.model_dump(mode="json", exclude_defaults=True)
    settings = validated(TrainSettings, {**_merged(common, changed), "name": name}, source=source)
    voxels = variant.method.get("kind") == "unet"  # needs no localizer
    if settings.task != ("classifier" if voxels else "joint"):
        raise InputError(
            source, expected="task joint, which makes the localizer and the classifier of a line, "
            "or task classifier for a method of kind unet",
            found=f"task {settings.task}", remedy="correct the variant's `task` or its `kind`",
        )  # fmt: skip
    return settings


def _merged(common: dict[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
    """The common settings with what is changed, group by group."""
    both = dict(common)
    for key, value in changed.items():
        before = both.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            value = _merged(before, value)  # noqa: PLW2901
        both[key] = value
    return both


def _files(settings: BenchmarkSettings, root: Path) -> list[Path]:
    if not settings.experiments:
        return []
    folder = root / settings.experiments
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise InputError(
            folder, expected="files of experiments (*.yaml)", found="none",
            remedy="correct benchmark.experiments",
        )  # fmt: skip
    return files


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raw = "no such file"
    except yaml.YAMLError as error:
        raw = str(error)
    if not isinstance(raw, dict):
        raise InputError(
            path, expected="settings in YAML", found=str(raw), remedy="correct the file or its name"
        )
    return raw
