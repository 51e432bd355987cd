"""The command line: every subcommand through its front door."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from tomoline import cli
from tomoline.errors import InputError
from tomoline.infer import batched, make_runner
from tomoline.io.mrc import write_volume
from tomoline.networks.cards import ModelCard
from tomoline.networks.registry import build
from tomoline.networks.weights import save_model
from tomoline.settings import ClassifySettings
from tomoline.stages.project import init_project

PARAMETERS = {"depth": 3, "width": 2, "max_dilation": 3, "classes": 2}


@pytest.fixture
def tomogram(tmp_path: Path) -> Path:
    path = tmp_path / "TS_01_rec.mrc"
    write_volume(path, np.random.default_rng(0).normal(0, 20, (52, 84, 84)).astype(np.int8), 10.0)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "resources/models/msdnet-localizer"
    network = build("msdnet", PARAMETERS, source="test")
    card = ModelCard(
        name="msdnet-localizer",
        network="msdnet",
        parameters=PARAMETERS,
        role="localizer",
        classes=["background", "particle"],
        voxel_size_angstrom=10.0,
        voxel_size_range_angstrom=(8.0, 12.0),
        threshold=0.5,
        bandwidth_vox=4.0,
        receptive_field_vox=1 + 2 * (2 + 3 + 3),  # pairs of channels: 1 2, 3 1, 2 3
        n_parameters=1,
    )
    save_model(folder, card, network.state_dict())
    return folder


@pytest.fixture
def registry() -> Iterator[dict[str, cli.Command]]:
    before = dict(cli.COMMANDS)
    yield cli.COMMANDS
    cli.COMMANDS.clear()
    cli.COMMANDS.update(before)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert set(cli.COMMANDS) >= {"onboard", "status", "doctor", "model", "init"}
    for entry in cli.COMMANDS.values():
        assert entry.name in text
        assert entry.help
        with pytest.raises(SystemExit) as caught:
            cli.main([entry.name, "--help"])
        assert caught.value.code == 0


def test_a_new_command_is_one_decorated_function(
    registry: dict[str, cli.Command], capsys: pytest.CaptureFixture[str]
) -> None:
    def arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--fail", action="store_true")

    @cli.command("greet", arguments)
    def greet(parsed: argparse.Namespace) -> int:
        """Say hello."""
        if parsed.fail:
            raise InputError("hello", expected="a reply", found="silence", remedy="wait")
        print("hello")
        return 0

    assert cli.main(["greet"]) == 0
    assert cli.main(["greet", "--fail"]) == 2
    out, err = capsys.readouterr()
    assert out == "hello\n"
    assert err == "tomoline greet: hello: expected a reply; found silence. Remedy: wait\n"


def test_onboard_then_status(
    tmp_path: Path, tomogram: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tmp_path / "p"
    assert cli.main(["onboard", str(tomogram), "--name", "mine", "--project", str(project)]) == 0
    text = capsys.readouterr().out
    assert "TS_01 " in text
    assert f"snakemake --cores all --directory {project} --config datasets='[mine]'" in text
    assert cli.main(["status", "--project", str(project)]) == 0
    assert "1 tomograms: 1 to do" in capsys.readouterr().out
    assert cli.main(["status", "--project", str(project), "--dataset", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["datasets"][0]["name"] == "mine"
    assert cli.main(["status", "--project", str(project), "--dataset", "other"]) == 2
    assert "there are: mine" in capsys.readouterr().err


def test_nothing_usable_is_exit_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.mrc").write_text("no volume")
    arguments = ["onboard", str(tmp_path / "a.mrc"), "--name", "m", "--project", str(tmp_path)]
    assert cli.main(arguments) == 1
    assert "refused" in capsys.readouterr().out


@pytest.mark.usefixtures("model")
def test_onboard_asks_the_models_card(
    tmp_path: Path, tomogram: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["onboard", str(tomogram), "--name", "m", "--project", str(tmp_path)]
    assert cli.main([*arguments, "--voxel-size", "20"]) == 0
    assert "the model reads 8 to 12 A; finer detail" in capsys.readouterr().out
    (tmp_path / "config/config.yaml").write_text("prepare: {rescale: never}\n")
    assert cli.main([*arguments, "--voxel-size", "5"]) == 1
    assert "the model reads 8 to 12 A, and prepare.rescale is never" in capsys.readouterr().out
    assert cli.main([*arguments, "--voxel-size", "11"]) == 0


@pytest.mark.parametrize("size", ["0", "-3", "ten", "nan", "1e9"])
def test_impossible_voxel_sizes_are_refused(size: str) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["onboard", "x.mrc", "--name", "m", f"--voxel-size={size}"])
    assert caught.value.code == 2


def test_model_card_is_shown_with_its_checked_numbers(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = model.parents[2]
    assert cli.main(["model", "msdnet-localizer", "--project", str(project)]) == 0
    text = capsys.readouterr().out
    assert "17 voxels (170 A)" in text
    assert "background, particle" in text
    assert "as the card says" in text
    assert cli.main(["model", str(model)]) == 0


def test_model_that_disagrees_with_its_card_is_told(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = yaml.safe_load((model / "card.yaml").read_text())
    (model / "card.yaml").write_text(yaml.safe_dump(raw | {"receptive_field_vox": 99}))
    assert cli.main(["model", str(model)]) == 1
    assert "the card says 99 receptive field, the network has 17" in capsys.readouterr().out
    with (model / "weights.safetensors").open("ab") as file:
        file.write(b"x")
    assert cli.main(["model", str(model)]) == 2
    assert "SHA-256" in capsys.readouterr().err
    assert cli.main(["model", "nobody", "--project", str(model.parents[2])]) == 2
    assert "msdnet-localizer" in capsys.readouterr().err


def test_doctor_exit_code_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--project", str(tmp_path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["works"] is False


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A workflow repository in small."""
    root = tmp_path / "repository"
    for name in ("config/config.yaml", "profiles/slurm/config.yaml", "Snakefile", "workflow/a.smk"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def test_init_copies_settings_links_the_program_and_overwrites_nothing(
    tmp_path: Path, root: Path
) -> None:
    project = tmp_path / "deep" / "project"
    made = init_project(project, root=root)
    assert "config/config.yaml" in made
    assert (project / "Snakefile").resolve() == root / "Snakefile"
    assert (project / "slurm/config.yaml").read_text() == "profiles/slurm/config.yaml"
    assert not (project / "config").is_symlink()
    (project / "config/config.yaml").write_text("mine")
    assert init_project(project, root=root) == []
    assert (project / "config/config.yaml").read_text() == "mine"


def test_init_refuses_the_repository_and_what_is_in_the_way(tmp_path: Path, root: Path) -> None:
    with pytest.raises(InputError, match="own repository"):
        init_project(root, root=root)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can be written"):
        init_project(tmp_path / "file", root=root)


def test_init_works_on_the_real_repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["init", str(tmp_path / "p")]) == 0
    assert (tmp_path / "p/config/config.yaml").is_file()
    assert (tmp_path / "p/Snakefile").is_file()
    assert "tomoline onboard" in capsys.readouterr().out


def test_train_makes_a_classifier_of_wholes(tmp_path, capsys):
    densities = Path(__file__).parents[2] / "resources" / "densities"
    (tmp_path / "resources").mkdir()
    (tmp_path / "resources" / "densities").symlink_to(densities)
    recipe = {
        "name": "tiny", "network": "dsmnet", "task": "classifier", "classes": ["1bxn", "3qm1"],
        "dsmnet": {"maps": [2, 3, 4], "features": 8, "stem": "strided", "dropout": 0.1},
        "candidates": {"chunk_volumes": 1, "workers": 0}, "shape_zyx": [32, 48, 48],
        "batch_size": 4, "steps_per_epoch": 2, "validation_volumes": 1, "max_epochs": 1,
        "box_vox": 16, "device": "cpu", "precision": "float32",
    }  # fmt: skip
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump({"train": recipe}))
    assert cli.main(["train", str(file), "--project", str(tmp_path)]) == 0
    folder = tmp_path / "results" / "models" / "tiny-classifier"
    card = yaml.safe_load((folder / "card.yaml").read_text())
    assert card["classes"] == ["background", "1bxn", "3qm1"] and card["network"] == "dsmnet"
    runner = make_runner(folder, ClassifySettings(device="cpu"))
    boxes = np.zeros((3, 16, 16, 16), np.float32)
    assert np.array(list(batched(runner, boxes, batch_size=2))).shape[0] == 3
    assert not (tmp_path / "results" / "models" / "tiny-localizer").exists()


def test_train_makes_models_that_load_and_goes_on_where_it_stopped(tmp_path, capsys):
    """One epoch of a very small network, by the command that `torchrun` starts."""
    densities = Path(__file__).parents[2] / "resources" / "densities"
    (tmp_path / "resources").mkdir()
    (tmp_path / "resources" / "densities").symlink_to(densities)
    recipe = {
        "name": "tiny", "classes": ["1bxn", "3qm1"], "shape_zyx": [24, 40, 40], "crop_vox": 16,
        "shape": {"depth": 2, "width": 2, "max_dilation": 2}, "steps_per_epoch": 2,
        "volumes_per_epoch": 1, "validation_volumes": 1, "max_epochs": 1, "box_vox": 16,
        "device": "cpu", "precision": "float32",
    }  # fmt: skip
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump({"train": recipe}))
    assert cli.main(["train", str(file), "--project", str(tmp_path)]) == 0
    models = tmp_path / "results" / "models"
    for part, classes in (("localizer", 2), ("classifier", 3)):
        assert cli.main(["model", str(models / f"tiny-{part}"), "--project", str(tmp_path)]) == 0
        card = yaml.safe_load((models / f"tiny-{part}" / "card.yaml").read_text())
        assert len(card["classes"]) == classes
        assert card["training"]["name"] == "tiny"
    assert (models / "tiny" / "curves.png").stat().st_size > 1000
    before = (models / "tiny-localizer" / "weights.safetensors").read_bytes()
    assert cli.main(["train", str(file), "--project", str(tmp_path)]) == 0
    assert (models / "tiny-localizer" / "weights.safetensors").read_bytes() == before
    file.write_text("train: {nmae: x}")
    assert cli.main(["train", str(file), "--project", str(tmp_path)]) == 2
    assert "did you mean `name`" in capsys.readouterr().err
