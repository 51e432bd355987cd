"""Everything that can be known to be wrong before the first job, and what is to be run.

`check_run` turns a configuration into a `Run`; any fault is an InputError that names the file or
key and lists what is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Literal

from tomoline.contracts import BACKGROUND
from tomoline.errors import InputError
from tomoline.export.dialect import check_classes, check_tilt_series
from tomoline.export.registry import dialect
from tomoline.io.sheet import DATASETS_FOLDER, SheetRow, labels_file, load_dataset
from tomoline.networks.cards import ModelCard, load_card, verify_weights
from tomoline.settings import Config, DatasetSettings, model_path

CONFIG_FILE = "config/config.yaml"

# Folders of a dataset's results that are not a tomogram's.
RESERVED_NAMES = ("benchmarks", "export", "logs", "report", "review")

# Assumed where a header could not be read: such a tomogram fails at once, or is small.
_UNKNOWN_VOXELS = 50_000_000

_PREPARE_KEYS = ("name", "voxel_size_angstrom", "contrast", "axes")
_LATE_KEYS = (
    "voltage_kv", "spherical_aberration_mm", "amplitude_contrast", "classes", "truth_format",
    "truth_z_offset_vox",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Run:
    """A checked configuration: settings, models, and the rows of each dataset.

    `rows` are those that are run, `left_out` those that are only listed (`use` no, or refused).
    """

    config: Config
    models: dict[str, Path]
    cards: dict[str, ModelCard]
    datasets: dict[str, DatasetSettings]
    rows: dict[str, list[SheetRow]]
    left_out: dict[str, list[SheetRow]]

    @property
    def warning(self) -> str:
        """What should be known before the first job; empty where all is as it should be."""
        return self.cards["classifier"].not_fitted(self.cards["localizer"])

    @cached_property
    def _by_name(self) -> dict[tuple[str, str], SheetRow]:
        return {(name, row.tomogram): row for name, rows in self.rows.items() for row in rows}

    def row(self, dataset: str, tomogram: str) -> SheetRow:
        """Return a tomogram's row; KeyError where it is not run."""
        return self._by_name[dataset, tomogram]

    def dataset(self, name: str) -> dict[str, Any]:
        """Return what a dataset's file says other than the defaults, as plain values."""
        return self.datasets[name].model_dump(mode="json", exclude_defaults=True)

    def dataset_for_prepare(self, name: str) -> dict[str, Any]:
        """Return only what changes the prepared volume, so that nothing else makes it anew."""
        return {key: value for key, value in self.dataset(name).items() if key in _PREPARE_KEYS}

    def dataset_geometry(self, name: str) -> dict[str, Any]:
        """Return a dataset without what only its export or its checks read."""
        return {key: value for key, value in self.dataset(name).items() if key not in _LATE_KEYS}

    def listed_only(self, name: str) -> list[dict[str, str]]:
        """Return the rows that are not run, each with `state` (refused or unused) and `reason`."""
        return [
            {
                "tomogram": row.tomogram,
                "state": "refused" if row.verdict == "refused" else "unused",
                "reason": row.reason,
            }
            for row in self.left_out[name]
        ]

    def voxels(self, dataset: str, tomogram: str, *, given: bool = False) -> int:
        """Return how many voxels the prepared volume will have, or the given file has."""
        row = self.row(dataset, tomogram)
        if not (row.nz and row.ny and row.nx):
            return _UNKNOWN_VOXELS
        count = prod((row.nz, row.ny, row.nx))
        size = self.datasets[dataset].voxel_size_angstrom or row.voxel_size_angstrom
        if given or not size:
            return count
        return int(count * (size / self.cards["localizer"].voxel_size_angstrom) ** 3)


def models_of(config: Config) -> dict[str, Path]:
    """Return the folder of the model that does each work."""
    return {
        "localizer": config.models.path_of("localizer"),
        "classifier": config.models.path_of("classifier"),
    }


def start_of(config: Config, role: Literal["localizer", "classifier"]) -> Path:
    """Return the folder of the model that fine-tuning starts from.

    Raises
    ------
    InputError
        If it is one that the fine-tuning writes.
    """
    tune, models = config.finetune, config.models
    named = getattr(tune, role)
    folder = model_path(named, models.folder) if named else models.path_of(role)
    # The candidates are those of the run's localizer, so it must not wait for its own outcome.
    used = {folder, models.path_of(role)} if role == "localizer" else {folder}
    if role == "localizer" and folder != models.path_of(role):
        raise InputError(
            "finetune.localizer", expected=f"the localizer of `models`, {models.path_of(role)}, "
            "which finds the candidates", found=str(folder),
            remedy="name it in models.localizer too, or leave finetune.localizer empty",
        )  # fmt: skip
    own = Path("results/models") / f"{tune.name}-{role}"
    if own in used:
        raise InputError(
            f"finetune.{role}", expected="a model to start from that is not the one to be made",
            found=str(own),
            remedy="for another round give finetune.name another name; to repeat this one, name in "
            f"finetune.{role} the model it began with"
            + (" and in models.localizer too" if role == "localizer" else ""),
        )  # fmt: skip
    return folder


def labelled_rows(run: Run, *, root: str | Path = ".") -> tuple[str, list[SheetRow]]:
    """Return the data set whose labels are learnt, and the rows of its tomograms that have some.

    Raises
    ------
    InputError
        If the data set is not among those that are run, or has no labels.
    """
    name = run.config.finetune.dataset or run.config.datasets[0]
    if name not in run.rows:
        raise InputError(
            "finetune.dataset", expected=f"one of `datasets`: {', '.join(run.rows)}", found=name,
            remedy="add it to `datasets`",
        )  # fmt: skip
    folder = Path(root) / DATASETS_FOLDER
    rows = [r for r in run.rows[name] if labels_file(name, r.tomogram, folder=folder).is_file()]
    if not rows:
        raise InputError(
            folder / f"{name}_annotations", expected="labels of tomograms that are run",
            found="none", remedy=f"tomoline import PICKS --dataset {name} --dialect ..., or "
            f"tomoline review {name} and tomoline adopt",
        )  # fmt: skip
    return name, rows


def check_run(config: Config, *, root: str | Path = ".", thorough: bool = True) -> Run:
    """Check all that a configuration names below `root`.

    Parameters
    ----------
    thorough:
        Also compute the weights' checksums (a job's own process need not repeat that).

    Raises
    ------
    InputError
        Datasets, models, dialects or classes that are not there; a weight file that is not its
        card's; voxel sizes outside the model's range.
    """
    root = Path(root)
    models = models_of(config)
    read = verify_weights if thorough else load_card
    cards = {role: read(root / folder) for role, folder in models.items()}
    for role, card in cards.items():
        _check_role(models[role], card, role)
    for name in config.export.dialects:
        dialect(name)
    check_classes(config.export.classes, _particle_classes(cards["classifier"]))
    loaded = {
        name: load_dataset(name, folder=root / DATASETS_FOLDER)
        for name in dict.fromkeys(config.datasets)
    }
    for name, (dataset, rows) in loaded.items():
        _check_dataset(name, dataset, list(filter(is_run, rows)), config=config, cards=cards)
    return Run(
        config=config,
        models=models,
        cards=cards,
        datasets={name: dataset for name, (dataset, _) in loaded.items()},
        rows={name: list(filter(is_run, rows)) for name, (_, rows) in loaded.items()},
        left_out={
            name: [row for row in rows if not is_run(row)] for name, (_, rows) in loaded.items()
        },
    )


def is_run(row: SheetRow) -> bool:
    """Say whether the workflow runs a row: wanted, and not refused."""
    return row.wanted and row.verdict != "refused"


def _particle_classes(card: ModelCard) -> list[str]:
    return [name for name in card.classes if name != BACKGROUND]


def _check_role(folder: Path, card: ModelCard, role: str) -> None:
    if card.role != role:
        raise InputError(
            f"models.{role}",
            expected=f"a network trained as {role}",
            found=f"{folder.name}, a {card.role}",
            remedy="name another model in config.yaml",
        )


def _check_dataset(
    name: str,
    dataset: DatasetSettings,
    rows: Sequence[SheetRow],
    *,
    config: Config,
    cards: Mapping[str, ModelCard],
) -> None:
    sheet = DATASETS_FOLDER / dataset.sheet
    known = _particle_classes(cards["classifier"])
    unknown = [kind for kind in dataset.classes if kind not in known]
    if unknown:
        raise InputError(
            DATASETS_FOLDER / f"{name}.yaml",
            expected=f"classes among {', '.join(known)}",
            found=", ".join(unknown),
            remedy="correct `classes`, leave it empty for all, or choose another classifier",
        )
    if not rows:
        raise InputError(
            sheet,
            expected="at least one tomogram with use yes and a verdict other than refused",
            found="none",
            remedy="see the column reason, mend the files and run `tomoline onboard` again, or "
            f"take {name} out of `datasets`",
        )
    _check_tilt_series(sheet, rows)
    for row in rows:
        if row.tomogram.lower() in RESERVED_NAMES:
            raise InputError(
                sheet,
                expected=f"a name other than {', '.join(RESERVED_NAMES)}",
                found=row.tomogram,
                remedy="change it in the column tomogram",
            )
        if config.prepare.rescale == "never":
            _check_voxel_size(sheet, dataset, row, cards["localizer"])


def _check_tilt_series(sheet: Path, rows: Sequence[SheetRow]) -> None:
    """RELION and Warp know a tomogram by its tilt series, so each needs its own."""
    check_tilt_series([row.tilt_series for row in rows if row.tilt_series], source=str(sheet))
    seen: dict[str, str] = {}
    for row in rows:
        other = seen.setdefault(row.tilt_series, row.tomogram)
        if other != row.tomogram or not row.tilt_series:
            raise InputError(
                f"{sheet}, tomogram {row.tomogram}",
                expected="a tilt series of its own",
                found=f"{row.tilt_series!r}, that of {other}" if row.tilt_series else "none",
                remedy="change it in the column tilt_series, or set `use` of one to no",
            )


def _check_voxel_size(
    sheet: Path, dataset: DatasetSettings, row: SheetRow, card: ModelCard
) -> None:
    size = dataset.voxel_size_angstrom or row.voxel_size_angstrom
    low, high = card.voxel_size_range_angstrom
    if size is not None and not low <= size <= high:
        raise InputError(
            f"{sheet}, tomogram {row.tomogram}",
            expected=f"a voxel size of {low:g} to {high:g} angstrom, as {card.name} takes it",
            found=f"{size:g} angstrom, and `prepare.rescale: never`",
            remedy="set `prepare.rescale: auto`, or `use` of this row to no",
        )
