"""What can be known to be wrong is refused before the first job, in words that help."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_project import Project, make_project

from tomoline.errors import InputError
from tomoline.settings import Config, validated
from tomoline.stages.checks import Run, check_run

RAW: dict[str, Any] = {"datasets": ["tiny"], "models": {"folder": "models"}}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("template"))


@pytest.fixture
def project(template: Project, tmp_path: Path) -> Project:
    return Project(shutil.copytree(template.folder, tmp_path / "project"))


def checked(raw: dict[str, Any], **options: Any) -> Run:
    return check_run(validated(Config, raw, source="config.yaml"), **options)


def refusal(project: Project, **sections: Any) -> str:
    with pytest.raises(InputError) as caught:
        checked({**RAW, **sections}, root=project.folder)
    return str(caught.value)


def edit_sheet(project: Project, change: Callable[[str], str]) -> None:
    sheet = project.folder / "config" / "datasets" / "tiny.tsv"
    sheet.write_text(change(sheet.read_text()))


def edit_card(project: Project, model: str, **values: Any) -> None:
    card = project.folder / "models" / model / "card.yaml"
    card.write_text(yaml.safe_dump({**yaml.safe_load(card.read_text()), **values}))


def test_a_sound_configuration_is_accepted(project: Project) -> None:
    run = checked(RAW, root=project.folder)
    assert [row.tomogram for row in run.rows["tiny"]] == ["one", "three", "two"]
    assert run.voxels("tiny", "one") == 40 * 48 * 56
    assert run.left_out["tiny"] == []


def test_voxels_of_the_prepared_volume_follow_the_voxel_size(project: Project) -> None:
    edit_card(project, "msdnet-localizer", voxel_size_angstrom=20.0,
              voxel_size_range_angstrom=[18.0, 22.0])  # fmt: skip
    run = checked(RAW, root=project.folder)
    assert run.voxels("tiny", "one") == 40 * 48 * 56 // 8
    assert run.voxels("tiny", "one", given=True) == 40 * 48 * 56


def test_rows_not_wanted_or_refused_are_listed_but_not_run(project: Project) -> None:
    edit_sheet(project, lambda text: text.replace("two.mrc\tyes", "two.mrc\tno"))
    edit_sheet(
        project, lambda text: text.replace("three.mrc\tyes\twarning", "three.mrc\tyes\trefused")
    )
    run = checked(RAW, root=project.folder)
    assert [row.tomogram for row in run.rows["tiny"]] == ["one"]
    states = {row["tomogram"]: row["state"] for row in run.listed_only("tiny")}
    assert states == {"two": "unused", "three": "refused"}
    assert all(row["reason"] for row in run.listed_only("tiny"))


def test_a_dataset_without_any_tomogram_to_run_is_refused(project: Project) -> None:
    edit_sheet(project, lambda text: text.replace("mrc\tyes", "mrc\tno"))
    assert "at least one tomogram" in refusal(project)


def test_unknown_dataset_lists_the_known_ones(project: Project) -> None:
    message = refusal(project, datasets=["tinny"])
    assert "there are: tiny" in message
    assert "tomoline onboard" in message


def test_unknown_dialect_and_class_list_the_known_ones(project: Project) -> None:
    assert "relion5, relion4, relion3, warp" in refusal(project, export={"dialects": ["relion6"]})
    assert "ball, cube" in refusal(project, export={"classes": ["sphere"]})
    dataset = project.folder / "config" / "datasets" / "tiny.yaml"
    raw = yaml.safe_load(dataset.read_text())
    dataset.write_text(yaml.safe_dump({**raw, "classes": ["sphere"]}))
    assert "ball, cube" in refusal(project)


def test_missing_model_lists_the_known_ones(project: Project) -> None:
    message = refusal(project, models={"folder": "models", "localizer": "unet"})
    assert "dsmnet-classifier, msdnet-localizer are there" in message


def test_missing_weights(project: Project) -> None:
    (project.folder / "models" / "dsmnet-classifier" / "weights.safetensors").unlink()
    assert "no such file" in refusal(project)


def test_damaged_weights(project: Project) -> None:
    weights = project.folder / "models" / "msdnet-localizer" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "SHA-256" in refusal(project)
    checked(RAW, root=project.folder, thorough=False)  # a job need not hash again


def test_a_classifier_cannot_localize(project: Project) -> None:
    models = {"folder": "models", "localizer": "dsmnet-classifier"}
    assert "a network trained as localizer" in refusal(project, models=models)


def test_voxel_size_outside_the_models_range_with_rescaling_off(project: Project) -> None:
    edit_card(project, "msdnet-localizer", voxel_size_angstrom=7.0,
              voxel_size_range_angstrom=[6.0, 8.0])  # fmt: skip
    message = refusal(project, prepare={"rescale": "never"})
    assert "6 to 8 angstrom" in message
    assert "10 angstrom" in message
    checked(RAW, root=project.folder)  # with `auto` it is rescaled


@pytest.mark.parametrize("name", ["export", "Report", "logs"])
def test_a_tomogram_cannot_be_called_like_a_folder_of_the_results(
    project: Project, name: str
) -> None:
    edit_sheet(project, lambda text: text.replace("\ntwo\t", f"\n{name}\t"))
    assert "a name other than" in refusal(project)


@pytest.mark.parametrize("name", ["../two", "a/b", "a b", ".two", ""])
def test_a_tomograms_name_cannot_leave_the_results(project: Project, name: str) -> None:
    edit_sheet(project, lambda text: text.replace("\ntwo\t", f"\n{name}\t"))
    assert "tiny.tsv, line" in refusal(project)


def test_two_tomograms_of_one_tilt_series_are_refused(project: Project) -> None:
    edit_sheet(project, lambda text: text.replace("\txyz\ttwo\t", "\txyz\tone\t"))
    assert "a tilt series of its own" in refusal(project)
