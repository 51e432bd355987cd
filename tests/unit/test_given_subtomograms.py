"""Subtomograms of other programs: in, named, and out again."""

from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
import torch

from tomoline import cli
from tomoline.errors import InputError
from tomoline.io.mrc import write_volume
from tomoline.io.subtomogram_folders import count_of, list_subtomograms, read_cube, voxel_size_of
from tomoline.io.subtomograms import open_subtomograms, write_subtomograms
from tomoline.networks.cards import ModelCard
from tomoline.networks.registry import build
from tomoline.networks.weights import save_model
from tomoline.settings import ClassifySettings
from tomoline.stages.given_subtomograms import (
    Taken,
    give_subtomograms,
    name_subtomograms,
    take_subtomograms,
)

EDGE = 16


def cubes(count=4, edge=EDGE, seed=0):
    return np.random.default_rng(seed).normal(3, 2, (count, edge, edge, edge)).astype(np.float32)


def write_stack(path, stack, voxel=10.0):
    with mrcfile.new(path, data=stack) as file:
        file.set_volume() if stack.ndim == 3 else None
        file.voxel_size = voxel
    return path


def relion(folder: Path, stack, columns=None, *, project=True):
    """A project: particles.star in a job's folder, its paths from the project's."""
    place = folder / "Extract" / "job007"
    (place / "Subtomograms").mkdir(parents=True)
    names = []
    for k, cube in enumerate(stack, 1):
        write_volume(place / "Subtomograms" / f"{k}.mrc", cube, 8.0)
        start = "Extract/job007/" if project else ""
        names.append(f"{start}Subtomograms/{k}.mrc")
    table = pd.DataFrame({"rlnImageName": names, **(columns or {})})
    starfile.write({"particles": table}, place / "particles.star")
    return place / "particles.star"


def test_relions_paths_are_found_from_the_star_file_and_from_the_project(tmp_path):
    stack = cubes()
    for k, project in enumerate((True, False)):
        star = relion(tmp_path / f"{k}", stack, {"rlnTomoName": ["a", "a", "b", "b"],
                                                 "rlnClassNumber": [1, 2, 1, 2]},
                      project=project)  # fmt: skip
        for source in (star, star.parent):
            listed = list_subtomograms(source)
            assert listed.tomogram == ["a", "a", "b", "b"] and listed.cls == ["1", "2", "1", "2"]
            for place, cube in zip(listed.places, stack, strict=True):
                np.testing.assert_array_equal(read_cube(place), cube)


@pytest.mark.parametrize("columns,size", [
    ({"rlnPixelSize": [7.5] * 4}, 7.5),
    ({"rlnDetectorPixelSize": [5.0] * 4, "rlnMagnification": [5000.0] * 4}, 10.0),
    ({}, None),
])  # fmt: skip
def test_the_voxel_size_is_as_the_program_says_it(tmp_path, columns, size):
    listed = list_subtomograms(relion(tmp_path, cubes(), columns))
    assert listed.voxel_size_angstrom == size
    assert voxel_size_of(listed.places[0].path) == 8.0


def test_optics_say_it_too(tmp_path):
    star = relion(tmp_path, cubes())
    blocks = starfile.read(star, always_dict=True)
    optics = pd.DataFrame({"rlnOpticsGroup": [1], "rlnImagePixelSize": [6.8]})
    starfile.write({"optics": optics, **blocks}, star, overwrite=True)
    assert list_subtomograms(star).voxel_size_angstrom == 6.8


def test_stacks_of_both_kinds_hold_the_same(tmp_path):
    stack = cubes()
    volumes = write_stack(tmp_path / "volumes.mrcs", stack)
    upon = write_stack(tmp_path / "upon.mrc", stack.reshape(-1, EDGE, EDGE))
    for path in (volumes, upon):
        assert count_of(path) == 4 and voxel_size_of(path) == 10.0
        listed = list_subtomograms(path)
        assert len(listed) == 4 and listed.tomogram == [""] * 4
        np.testing.assert_array_equal([read_cube(p) for p in listed.places], stack)
    table = pd.DataFrame({"rlnImageName": ["000003@volumes.mrcs", "000001@volumes.mrcs"]})
    starfile.write({"": table}, tmp_path / "some.star")
    listed = list_subtomograms(tmp_path / "some.star")
    np.testing.assert_array_equal([read_cube(p) for p in listed.places], stack[[2, 0]])
    # A folder without a STAR file is all its files.
    (tmp_path / "some.star").unlink()
    assert len(list_subtomograms(tmp_path)) == 8


@pytest.mark.parametrize("break_it,said", [
    (lambda d: starfile.write({"": pd.DataFrame({"rlnCoordinateX": [1.0]})}, d / "p.star"),
     "the column rlnImageName"),
    (lambda d: starfile.write({"": pd.DataFrame({"rlnImageName": ["no.mrc"]})}, d / "p.star"),
     "the file no.mrc"),
    (lambda d: starfile.write({"": pd.DataFrame({"rlnImageName": ["x@c.mrc"]})}, d / "p.star"),
     "FILE or NUMBER@FILE"),
])  # fmt: skip
def test_a_star_file_of_something_else_is_refused(tmp_path, break_it, said):
    break_it(tmp_path)
    with pytest.raises(InputError, match=said):
        list_subtomograms(tmp_path / "p.star")


def test_what_are_no_cubes_is_refused(tmp_path):
    write_volume(tmp_path / "slab.mrc", np.zeros((5, 16, 16), np.float32), 10.0)
    with pytest.raises(InputError, match="two-dimensional stacks of tilt images hold no volume"):
        list_subtomograms(tmp_path / "slab.mrc")
    write_stack(tmp_path / "two.mrcs", cubes(2))
    table = pd.DataFrame({"rlnImageName": ["3@two.mrcs", "two.mrcs"]})
    starfile.write({"": table}, tmp_path / "p.star")
    places = list_subtomograms(tmp_path / "p.star").places
    with pytest.raises(InputError, match="number 3"):
        read_cube(places[0])
    with pytest.raises(InputError, match="NUMBER@FILE"):
        read_cube(places[1])
    (tmp_path / "q.star").write_text("")
    with pytest.raises(InputError, match="one STAR file, or none"):
        list_subtomograms(tmp_path)


TAKEN = Taken(box_vox=EDGE, voxel_size_angstrom=10.0)


def read(path):
    with open_subtomograms(path) as boxes:
        assert boxes.voxel_size_angstrom == 10.0
        return np.asarray(boxes.boxes)


def test_each_tomogram_has_one_scale_of_grey(tmp_path):
    stack = cubes()
    stack[2:] = 5 * stack[2:] + 100
    columns = {"rlnTomoName": ["a", "a", "b", "b"], "rlnPixelSize": [10.0] * 4}
    star = relion(tmp_path, stack, columns)
    table = take_subtomograms(star, tmp_path / "own.h5", TAKEN)
    values = read(tmp_path / "own.h5")
    for part in (slice(0, 2), slice(2, 4)):
        own = stack[part]
        np.testing.assert_allclose(values[part], (own - own.mean()) / own.std(), atol=1e-4)
    assert list(table["tomogram"]) == ["a", "a", "b", "b"]
    assert (tmp_path / "own.csv").is_file()
    bright = Taken(box_vox=EDGE, voxel_size_angstrom=10.0, bright=True)
    take_subtomograms(star, tmp_path / "bright.h5", bright)
    np.testing.assert_allclose(read(tmp_path / "bright.h5"), -values, atol=1e-6)


@pytest.mark.parametrize("given,edge", [(5.0, 40), (20.0, 12)])
def test_the_middle_stays_in_the_middle_when_voxels_change_their_size(tmp_path, given, edge):
    """A ball about voxel edge // 2 is one about voxel box // 2, of the same radius in angstrom."""
    grid = np.indices((edge,) * 3) - edge // 2
    ball = -np.exp(-(grid**2).sum(0) * given**2 / (2 * 30.0**2)).astype(np.float32)
    write_volume(tmp_path / "ball.mrc", ball, given)
    take_subtomograms(tmp_path / "ball.mrc", tmp_path / "own.h5", TAKEN)
    (found,) = read(tmp_path / "own.h5")
    weight = np.clip(found.max() - found, 0, None) ** 4
    grid = np.indices(found.shape)
    centre = [(g * weight).sum() / weight.sum() for g in grid]
    np.testing.assert_allclose(centre, EDGE // 2, atol=0.51)  # cut without interpolation
    half = (found.min() + found[0, 0, 0]) / 2
    radius = np.cbrt(3 * (found < half).sum() / (4 * np.pi))
    assert radius == pytest.approx(3.0 * np.sqrt(2 * np.log(2)), rel=0.15)


def test_no_voxel_size_and_several_edges_are_refused(tmp_path):
    write_volume(tmp_path / "a.mrc", cubes(1)[0], 0.0)
    with pytest.raises(InputError, match="--voxel-size"):
        take_subtomograms(tmp_path / "a.mrc", tmp_path / "own.h5", TAKEN)
    write_volume(tmp_path / "b.mrc", cubes(1, edge=12)[0], 10.0)
    sized = Taken(box_vox=EDGE, voxel_size_angstrom=10.0, given_voxel_size_angstrom=10.0)
    with pytest.raises(InputError, match=r"cubes of one edge.*\[12, 16\]"):
        take_subtomograms(tmp_path, tmp_path / "own.h5", sized)
    write_volume(tmp_path / "b.mrc", np.full((16,) * 3, np.nan, np.float32), 10.0)
    with pytest.raises(InputError, match="finite grey values"):
        take_subtomograms(tmp_path, tmp_path / "own.h5", sized)
    assert not (tmp_path / "own.h5").exists()


CLASSES = ["background", "a", "b"]


def save(folder, network, parameters, **fields):
    torch.manual_seed(len(network))
    card = ModelCard(
        name=folder.name, network=network, parameters={"classes": 3, **parameters},
        role="classifier", classes=CLASSES, voxel_size_angstrom=10.0, box_vox=EDGE,
        voxel_size_range_angstrom=(9.0, 11.0), receptive_field_vox=EDGE, n_parameters=1, **fields,
    )  # fmt: skip
    save_model(folder, card, build(network, card.parameters).state_dict())
    return folder


def test_they_are_named_by_one_network_or_several(tmp_path):
    stack = cubes()
    star = relion(tmp_path, stack, {"rlnPixelSize": [10.0] * 4, "rlnTomoName": list("aabb")})
    own = tmp_path / "own.h5"
    take_subtomograms(star, own, TAKEN)
    dense = save(tmp_path / "dense", "densenet", {"growth": 2, "first": 4}, temperature=2.0)
    voxels = save(tmp_path / "voxels", "msdnet", {"depth": 3, "width": 2})
    settings = ClassifySettings(device="cpu", precision="float32", test_time_flips=2)
    one = name_subtomograms(own, [dense], tmp_path / "one.csv", settings)
    torch.manual_seed(len("densenet"))
    network = build("densenet", {"classes": 3, "growth": 2, "first": 4}).eval()
    with torch.no_grad():
        x = torch.from_numpy(read(own))[:, None]
        p = (network(x).softmax(1) + network(x.flip(-3)).softmax(1)) / 2
    np.testing.assert_allclose(one["p_background"], p[:, 0], atol=1e-4)
    shares = torch.sqrt(p[:, 1:])
    shares = shares / shares.sum(1, keepdim=True)  # the temperature is 2
    np.testing.assert_allclose(one[["p_a", "p_b"]], shares, atol=1e-3)
    assert list(one["tomogram"]) == list("aabb") and list(one["subtomogram"]) == [1, 2, 3, 4]
    both = name_subtomograms(own, [dense, voxels], tmp_path / "both.csv", settings)
    assert len(both) == 4 and set(both["class"]) <= {"a", "b"}
    assert not list(tmp_path.glob(".naming-*"))
    with pytest.raises(InputError, match="a box of 16"):
        other = save(tmp_path / "other", "densenet", {"growth": 2})
        card = (other / "card.yaml").read_text().replace("box_vox: 16", "box_vox: 32")
        (other / "card.yaml").write_text(card)
        name_subtomograms(own, [dense, other], tmp_path / "none.csv", settings)


def test_out_and_in_again(tmp_path):
    values = cubes()
    write_subtomograms(
        tmp_path / "own.h5", values, candidate_id=np.array([3, 5, 6, 9]),
        centre_zyx=np.full((4, 3), 8.0), box_vox=EDGE, voxel_size_angstrom=10.0,
    )  # fmt: skip
    table = pd.DataFrame({
        "particle_id": [5, 9, 3], "tomogram": "t", "class": ["a", "b", ""],
        "score": [0.5, 0.25, 0.1], "status": ["accepted", "accepted", "rejected"],
    })  # fmt: skip
    table.to_csv(tmp_path / "particles.csv", index=False)
    star = give_subtomograms(tmp_path / "own.h5", tmp_path / "out",
                             table=tmp_path / "particles.csv")  # fmt: skip
    listed = list_subtomograms(star)
    assert [p.path.name for p in listed.places] == ["000005.mrc", "000009.mrc"]
    assert listed.voxel_size_angstrom == 10.0 and listed.cls == ["a", "b"]
    np.testing.assert_array_equal([read_cube(p) for p in listed.places], values[[1, 3]])
    whole = give_subtomograms(tmp_path / "own.h5", tmp_path / "all")
    assert len(list_subtomograms(whole)) == 4
    table.assign(particle_id=[5, 8, 3]).to_csv(tmp_path / "particles.csv", index=False)
    with pytest.raises(InputError, match="1 others, such as 8"):
        give_subtomograms(tmp_path / "own.h5", tmp_path / "no", table=tmp_path / "particles.csv")


def test_the_command_does_all_three(tmp_path, capsys):
    model = save(tmp_path / "dense", "densenet", {"growth": 2, "first": 4})
    star = relion(tmp_path, cubes())
    own, named = tmp_path / "own.h5", tmp_path / "named.csv"
    chosen = ["--model", str(model)]
    assert cli.main(["subtomograms", "take", str(star), "--output", str(own), "--voxel-size", "10",
                     "--contrast", "bright", *chosen]) == 0  # fmt: skip
    assert cli.main(["subtomograms", "name", str(own), "--output", str(named), *chosen]) == 0
    out = tmp_path / "out"
    assert cli.main(["subtomograms", "give", str(own), "--output", str(out), "--table",
                     str(named)]) == 0  # fmt: skip
    assert set(list_subtomograms(out).cls) <= {"a", "b"}
    missing = ["subtomograms", "take", str(tmp_path / "no.star"), "--output", str(own)]
    assert cli.main([*missing, *chosen]) == 2
    assert "a STAR file" in capsys.readouterr().err
