"""Which benchmarks and trainings a configuration asks for: its own, and those of experiments.

An experiment (`config/benchmarks/experiments/<name>.yaml`) compares trainings that differ from the
configuration's `train` section, all else equal. Each becomes a benchmark of its own, of our line
with the models of each variant; variants that train alike share a training. Where the trainings
learn from sets of subtomograms they are compared on the sets' own test subtomograms instead.
"""

from __future__ import annotations

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
    TrainSettings,
    validated,
)
from tomoline.stages.benchmark_files import check_benchmark

MODELS = "results/models"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Benchmarks and trainings by name; `experiments` by the name of their benchmark.

    `comparisons`, of trainings on sets of subtomograms, by the name of their file: the training of
    each variant.
    """

    benchmarks: dict[str, BenchmarkSettings] = field(default_factory=dict)
    trainings: dict[str, TrainSettings] = field(default_factory=dict)
    experiments: dict[str, ExperimentSettings] = field(default_factory=dict)
    comparisons: dict[str, Comparison] = field(default_factory=dict)

    def of_task(self, task: str, *, sets: bool = False) -> list[str]:
        """Names of the trainings of a task, on tomograms or on sets of subtomograms."""
        return [
            name for name, s in self.trainings.items()
            if s.task == task and (s.source == "subtomograms") == sets
        ]  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """A question, and the names of the trainings that answer it, by variant."""

    settings: ExperimentSettings
    trainings: dict[str, str]


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
    experiments: dict[str, ExperimentSettings] = {}
    comparisons: dict[str, Comparison] = {}
    for file in _files(own, Path(root)):
        experiment = validated(ExperimentSettings, _read(file), source=file)
        name = f"{own.name}-{file.stem}"
        if config.train.source == "subtomograms":
            comparisons[file.stem] = _comparison(config, file, experiment, trainings)
            continue
        methods = {}
        for label, variant in experiment.variants.items():
            source = f"{file}, variant {label}"
            settings = _training(config, file.stem, label, variant.train, source=source)
            _check_joint(settings, source)
            trainings.setdefault(settings.name, settings)
            models = {part: f"{settings.name}-{part}" for part in ("localizer", "classifier")}
            chosen = {"kind": "tomoline", "folder": MODELS, **models, **variant.method}
            methods[label] = validated(BenchmarkMethod, chosen, source=source)
        benchmarks[name] = own.model_copy(update={"name": name, "methods": methods})
        experiments[name] = experiment
    for benchmark in benchmarks.values():
        check_benchmark(benchmark)
    return Plan(
        benchmarks=benchmarks, trainings=trainings, experiments=experiments, comparisons=comparisons
    )


def _comparison(
    config: Config, file: Path, experiment: ExperimentSettings, trainings: dict[str, TrainSettings]
) -> Comparison:
    """The trainings of a file's variants, added to the others."""
    names = {}
    for label, variant in experiment.variants.items():
        source = f"{file}, variant {label}"
        if variant.method:
            raise InputError(
                source, expected="settings of `train` alone, as trainings on subtomograms are "
                "compared on subtomograms", found="settings of `method`",
                remedy="leave `method` out",
            )  # fmt: skip
        settings = _training(config, file.stem, label, variant.train, source=source)
        # Another question may have asked for the same.
        same = (t.name for t in trainings.values() if _alike(t, settings))
        names[label] = next(same, settings.name)
        trainings.setdefault(names[label], settings)
    return Comparison(experiment, names)


def _training(
    config: Config, experiment: str, label: str, changed: dict[str, Any], *, source: str
) -> TrainSettings:
    """A variant's training; those that change nothing share the common one."""
    own = config.benchmark.name
    name = f"{own}-{experiment}-{label}" if changed else f"{own}-common"
    common = config.train.model_dump(mode="json", exclude_defaults=True)
    return validated(TrainSettings, {**_merged(common, changed), "name": name}, source=source)


def _alike(one: TrainSettings, other: TrainSettings) -> bool:
    return one.model_copy(update={"name": other.name}) == other


def _check_joint(settings: TrainSettings, source: str) -> None:
    if settings.task != "joint":
        raise InputError(
            source, expected="task joint, which makes the localizer and the classifier of a line",
            found=f"task {settings.task}", remedy="leave `task` out",
        )  # fmt: skip


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
