"""What a benchmark consists of: its tomograms' files, its own files, and what cannot be run.

Below results/benchmarks/<name> lie, for each tomogram, its prepared volume and a folder a method
(`response.h5`, `picks.csv`, `scores.json`); `tuned/<group>/<method>.json`; and the table. Nothing
here loads torch: every job of a run reads it.
"""

from __future__ import annotations

from pathlib import Path

from tomoline.errors import InputError
from tomoline.settings import BenchmarkMethod, BenchmarkSettings, BenchmarkTomogram

FOLDER = Path("results/benchmarks")
STEPS = ("respond", "tune", "score")


def model_cards(settings: BenchmarkMethod) -> list[str]:
    """Cards of the models that a method runs; a training makes those that are not there."""
    names = {
        "tomoline": [settings.localizer, settings.classifier], "unet": [settings.classifier],
    }.get(settings.kind, [])  # fmt: skip
    return [f"{settings.folder}/{name}/card.yaml" for name in names]


def files_of(tomogram: BenchmarkTomogram) -> dict[str, str]:
    """`tomogram`, `truth` and, where there is one, `occupancy`."""
    if tomogram.folder:
        names = {
            "tomogram": "reconstruction.mrc", "truth": "particle_locations.txt",
            "occupancy": "occupancy_mask.mrc",
        }  # fmt: skip
        return {key: f"{tomogram.folder}/{name}" for key, name in names.items()}
    given = {key: getattr(tomogram, key) for key in ("tomogram", "truth", "occupancy")}
    return {key: path for key, path in given.items() if path}


def check_benchmark(settings: BenchmarkSettings) -> None:
    """Refuse what cannot be run before the first job.

    Raises
    ------
    InputError
        No method, no test tomogram, one without files or without a validation tomogram to tune
        on, or a tomogram that is both.
    """
    where = f"benchmark {settings.name}"
    if not settings.methods or not any(t.use == "test" for t in settings.tomograms.values()):
        raise InputError(
            where, expected="methods and test tomograms",
            found=f"{len(settings.methods)} methods, {len(settings.tomograms)} tomograms",
            remedy="give a file of config/benchmarks with --configfile",
        )  # fmt: skip
    seen: dict[str, str] = {}
    for name, tomogram in settings.tomograms.items():
        files = files_of(tomogram)
        if "tomogram" not in files or "truth" not in files:
            raise InputError(
                f"{where}, {name}", expected="a folder, or a tomogram and its truth",
                found=", ".join(files) or "neither",
                remedy="name them in the benchmark's configuration",
            )  # fmt: skip
        twin = seen.setdefault(files["tomogram"], name)
        if twin != name:
            raise InputError(
                f"{where}, {name}", expected="a tomogram of its own",
                found=f"{files['tomogram']}, which is {twin}'s too",
                remedy="tune and test on different tomograms",
            )  # fmt: skip
        if tomogram.use == "test" and not validation_of(settings, tomogram.group):
            raise InputError(
                f"{where}, {name}", expected=f"a validation tomogram of group {tomogram.group}",
                found="none", remedy="settings must come from other tomograms than the tested",
            )  # fmt: skip


def validation_of(settings: BenchmarkSettings, group: str) -> list[str]:
    """Names of the validation tomograms that tune a group's tests."""
    return [
        name for name, t in settings.tomograms.items() if t.use == "validation" and t.group == group
    ]


def tests_of(settings: BenchmarkSettings) -> list[str]:
    """Names of the test tomograms."""
    return [name for name, t in settings.tomograms.items() if t.use == "test"]


def outputs_of(name: str) -> dict[str, str]:
    """Files of a benchmark's table."""
    folder = FOLDER / name
    return {
        "table": str(folder / "table.csv"), "page": str(folder / "table.md"),
        "picture": str(folder / "table.png"), "classes": str(folder / "classes.csv"),
        "classes_picture": str(folder / "classes.png"),
    }  # fmt: skip
