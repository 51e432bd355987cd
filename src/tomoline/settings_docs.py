"""Writes what people and editors read about the settings: config, JSON schemas and tables.

`tomoline.settings` is the one place where a setting is defined; `python -m tomoline.settings` in
the repository's root writes the files of `generated()` from it, and a test keeps them in step.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tomoline.contracts import SHEET_COLUMNS
from tomoline.settings import Config, DatasetSettings, MicrographDatasetSettings, Section

SHEET_MEANING = {
    "tomogram": "Its name, unique and safe as a folder name; affixes such as `_rec` are taken off.",
    "path": "The file, relative to the repository's root where it lies below it, else absolute.",
    "use": "`yes` or `no`; only `yes` rows are run. Yours to edit.",
    "verdict": "`ok`, `warning` or `refused`, from `tomoline onboard`. Refused rows are not run.",
    "reason": "Why, in words; empty when ok.",
    "voxel_size_angstrom": "What the file's header says (along x).",
    "nz": "Sections in the file.",
    "ny": "Rows in the file.",
    "nx": "Columns in the file.",
    "mode": "The MRC mode (0 bytes, 1 shorts, 2 floats, 6 unsigned shorts, 12 half floats).",
    "axes": "`xyz`, or `xzy` for a volume as IMOD's `tilt` writes it (x, depth, y).",
    "tilt_series": "The tilt series' name in RELION or Warp.",
    "truth": "Known particles, for the evaluation: SHREC's particle_locations.txt, or a CSV with "
    "the columns x, y, z and cls. May be empty. Yours to edit.",
    "occupancy": "A volume of particle numbers, for SHREC's own scores. May be empty.",
    "file_bytes": "The file's size when it was looked at.",
    "file_mtime_ns": "When the file was last changed then.",
}

_CONFIG_HEAD = """\
# The run: which data sets, which models, which settings.
# Every key is optional; what is written here is its default. Unknown keys are refused.
# Generated from src/tomoline/settings.py by `python -m tomoline.settings` and then yours to edit.
# yaml-language-server: $schema=../workflow/schemas/config.schema.json
"""

_README_HEAD = """\
# The configuration

`config/config.yaml` describes a run, `config/datasets/<name>.yaml` one data set and
`config/datasets/<name>.tsv` its tomograms, one a row. The last two are written by
`tomoline onboard` and may be edited. Every key is checked before the first job; an unknown key or a
value that is not allowed stops the run at once and the message lists what is known.

A key can also be set for one run alone, on the workflow's command line after `--config`:
`datasets='[mine]' merge='{threshold: 0.4}'`.

A changed setting reruns only the stages that read it. Intermediate files are deleted when they
are no longer needed, so a change of `cluster` has to compute the probabilities again, unless
`keep` named them (`keep: [probability, mask]`) in the run before.

This page is generated from `src/tomoline/settings.py` (`python -m tomoline.settings`).
"""


_MICROGRAPH_SHEET = """\
Its sheet has the columns `micrograph`, `path`, `use`, `verdict`, `reason`, `pixel_size_angstrom`,
`ny`, `nx`, `kind` (mrc, tiff, png, jpeg), `truth` (known particles: CSV with x_px and y_px, STAR or
.box), `mask` (where nothing is picked), `file_bytes` and `file_mtime_ns`
([micrographs](../docs/micrographs.md)).
"""


def generated() -> dict[str, str]:
    """Return the text of each generated file by its path below the repository's root."""
    return {
        "config/config.yaml": config_yaml(),
        "config/README.md": readme(),
        "workflow/schemas/config.schema.json": _schema(Config),
        "workflow/schemas/dataset.schema.json": _schema(DatasetSettings),
        "workflow/schemas/micrographs.schema.json": _schema(MicrographDatasetSettings),
    }


def config_yaml() -> str:
    """Return `config/config.yaml`: every key with its meaning, allowed values and default."""
    lines = [_CONFIG_HEAD]
    for key, field in Config.model_fields.items():
        lines += [*_yaml_lines(key, field, ""), ""]
    return "\n".join(lines).rstrip() + "\n"


def readme() -> str:
    """Return `config/README.md`: a table for each group of settings and for the sheet."""
    plain = {k: f for k, f in Config.model_fields.items() if _section(f) is None}
    parts = [_README_HEAD, "## config.yaml\n", _table(plain)]
    for key, field in Config.model_fields.items():
        section = _section(field)
        if section is not None:
            parts += [f"### {key}\n", _first_line(section) + "\n", _table(_flat(section))]
            for inner, kind in _named(section).items():
                parts += [f"Each of `{key}.{inner}`: {_first_line(kind)}\n"]
                parts += [_table(kind.model_fields)]
    parts += ["## datasets/&lt;name&gt;.yaml\n", _table(DatasetSettings.model_fields)]
    parts += ["## datasets/&lt;name&gt;.tsv\n", "| column | meaning |\n|---|---|"]
    text = "\n".join(parts) + "\n"
    text += "".join(f"| `{c}` | {SHEET_MEANING[c]} |\n" for c in SHEET_COLUMNS)
    parts = ["\n## datasets/&lt;name&gt;.yaml of micrographs\n",
             _table(MicrographDatasetSettings.model_fields), _MICROGRAPH_SHEET]  # fmt: skip
    return text + "\n".join(parts)


def main(root: Path | None = None) -> None:
    """Write every generated file below `root` (default: the working folder)."""
    for name, text in generated().items():
        path = (root or Path.cwd()) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path)


def _schema(kind: type[Section]) -> str:
    return json.dumps(kind.model_json_schema(), indent=1, ensure_ascii=False) + "\n"


def _section(field: FieldInfo) -> type[Section] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _flat(section: type[Section], prefix: str = "") -> dict[str, FieldInfo]:
    """Return a section's fields, those of an inner section under dotted names."""
    fields: dict[str, FieldInfo] = {}
    for key, field in section.model_fields.items():
        inner = _section(field)
        fields |= {prefix + key: field} if inner is None else _flat(inner, f"{prefix}{key}.")
    return fields


def _named(section: type[Section]) -> dict[str, type[Section]]:
    """Return the groups of settings that a section's fields hold by names of the user's."""
    kinds = {key: get_args(field.annotation) for key, field in section.model_fields.items()}
    return {
        key: kind[1]
        for key, kind in kinds.items()
        if len(kind) == 2 and isinstance(kind[1], type) and issubclass(kind[1], Section)
    }


def _yaml_lines(key: str, field: FieldInfo, indent: str) -> list[str]:
    section = _section(field)
    if section is None:
        return [*_comment(field, indent), _entry(key, _default(field), indent)]
    lines = [*_wrapped(_first_line(section), indent), f"{indent}{key}:"]
    for inner_key, inner in section.model_fields.items():
        lines += _yaml_lines(inner_key, inner, indent + "  ")
    return lines


def _first_line(section: type[Section]) -> str:
    return (section.__doc__ or "").strip().splitlines()[0]


def _default(field: FieldInfo) -> Any:
    value = field.get_default(call_default_factory=True)
    return [] if value is PydanticUndefined else value


def _entry(key: str, value: Any, indent: str) -> str:
    if value is None:
        return f"{indent}{key}:"
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(value, default_flow_style=True, width=200).removesuffix("...\n").strip()
    return f"{indent}{key}: {text}"


def _comment(field: FieldInfo, indent: str) -> list[str]:
    return _wrapped(f"{field.description} [{_allowed(field)}]", indent)


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _allowed(field: FieldInfo) -> str:
    """Say in words which values `field` takes, e.g. `number, 0 to 1` or `dark, bright`."""
    text = _kind(field.annotation)
    low = next((f"from {m.ge:g}" for m in field.metadata if isinstance(m, Ge)), None)
    low = next((f"above {m.gt:g}" for m in field.metadata if isinstance(m, Gt)), low)
    high = next((f"to {m.le:g}" for m in field.metadata if isinstance(m, Le)), None)
    high = next((f"below {m.lt:g}" for m in field.metadata if isinstance(m, Lt)), high)
    some = next(("not empty" for m in field.metadata if isinstance(m, MinLen)), None)
    limits = " ".join(part for part in (low, high, some) if part)
    return f"{text}, {limits}" if limits else text


def _kind(annotation: Any) -> str:
    names = {
        bool: "true or false", int: "whole number", float: "number", str: "text", Any: "anything"
    }  # fmt: skip
    if annotation in names:
        return names[annotation]
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return ", ".join(str(value) for value in arguments)
    if get_origin(annotation) in (list, dict):
        inside = arguments[-1]
        grouped = isinstance(inside, type) and issubclass(inside, BaseModel)
        text = "groups of the keys below" if grouped else _kind(inside)
        return f"list of {text}" if len(arguments) == 1 else f"{text} by name"
    if get_origin(annotation) is tuple:
        return f"list of {len(arguments)}: {_kind(arguments[0])}"
    inner = [_kind(value) for value in arguments if value is not type(None)]
    return " or ".join(inner) + (" or empty" if type(None) in arguments else "")


def _table(fields: dict[str, FieldInfo]) -> str:
    rows = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    for key, field in fields.items():
        value = "required" if field.is_required() else _entry("", _default(field), "")[2:]
        shown = f"`{value}`" if value else "empty"
        rows.append(f"| `{key}` | {shown} | {_allowed(field)} | {field.description} |")
    return "\n".join(rows) + "\n"
