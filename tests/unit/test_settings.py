"""Settings: defaults hold, unknown keys are refused with help, generated files are in step."""

import itertools
import json
from pathlib import Path

import pytest
import yaml

from tomoline.contracts import SHEET_COLUMNS
from tomoline.errors import InputError
from tomoline.settings import ClusterSettings, Config, DatasetSettings, Section, validated
from tomoline.settings_docs import SHEET_MEANING, generated, main

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(generated()))
def test_generated_file_is_in_step_with_the_settings(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == generated()[name], (
        "run `python -m tomoline.settings`"
    )


def keys(section: type[Section]) -> dict[str, object]:
    """Names of a section's settings, those of inner sections within."""
    kinds = {key: field.annotation for key, field in section.model_fields.items()}
    return {
        key: keys(kind) if isinstance(kind, type) and issubclass(kind, Section) else None
        for key, kind in kinds.items()
    }


def named(raw: dict[str, object]) -> dict[str, object]:
    # An empty group is one whose names the user gives.
    return {
        key: named(value) if isinstance(value, dict) and value else None
        for key, value in raw.items()
    }


def test_config_yaml_names_every_key_and_its_values_are_the_defaults() -> None:
    raw = yaml.safe_load(generated()["config/config.yaml"])
    assert validated(Config, raw, source="config.yaml") == Config()
    assert named(raw) == keys(Config)


def test_every_line_of_config_yaml_is_preceded_by_a_comment() -> None:
    lines = generated()["config/config.yaml"].splitlines()
    for above, line in itertools.pairwise(lines):
        if line.strip() and not line.lstrip().startswith("#"):
            assert above.lstrip().startswith("#"), line


def test_schemas_refuse_unknown_keys_at_every_level() -> None:
    schema = json.loads(generated()["workflow/schemas/config.schema.json"])
    assert schema["additionalProperties"] is False
    assert all(part["additionalProperties"] is False for part in schema["$defs"].values())


def test_sheet_columns_are_all_explained() -> None:
    assert tuple(SHEET_MEANING) == SHEET_COLUMNS


def test_unknown_key_is_refused_with_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        validated(Config, {"cluster": {"min_size": 3}}, source="config/config.yaml")
    message = str(caught.value)
    assert "unknown key `cluster.min_size`" in message
    assert "did you mean `min_size_vox`?" in message
    assert "bandwidth_vox" in message
    assert message.startswith("config/config.yaml:")


def test_unknown_section_lists_the_sections() -> None:
    with pytest.raises(InputError, match="one of activation, benchmark, classify, cluster,"):
        validated(Config, {"clusters": {}}, source="config.yaml")


def test_all_faults_are_named_at_once() -> None:
    raw = {"segment": {"device": "gpu"}, "merge": {"threshold": 1.5}, "keep": ["mask", "maks"]}
    with pytest.raises(InputError) as caught:
        validated(Config, raw, source="config.yaml")
    for part in ("`segment.device` 'gpu'", "`merge.threshold` 1.5", "`keep.1` 'maks'", "'cuda'"):
        assert part in str(caught.value)


def test_dataset_name_cannot_leave_the_results_folder() -> None:
    for name in ("../evil", "a/b", "", ".hidden", "-x", "a b"):
        with pytest.raises(InputError, match="name"):
            validated(DatasetSettings, {"name": name, "sheet": "s.tsv"}, source="d.yaml")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        ClusterSettings().min_size_vox = 7  # type: ignore[misc]


def test_main_writes_every_generated_file(tmp_path: Path) -> None:
    main(tmp_path)
    written = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert written == set(generated())


def test_a_wrong_key_below_a_name_of_the_users_lists_the_keys_known_there() -> None:
    raw = {"benchmark": {"methods": {"mine": {"kind": "dog", "angle": 10}}}}
    with pytest.raises(InputError) as caught:
        validated(Config, raw, source="config.yaml")
    assert "unknown key `benchmark.methods.mine.angle`" in str(caught.value)
    assert "did you mean `angle_deg`?" in str(caught.value)
