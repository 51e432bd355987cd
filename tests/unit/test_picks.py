"""Coordinates of particles in each dialect: planted particles, y direction, 0-base, strictness."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
from numpy.typing import NDArray
from PIL import Image

from tomoline.errors import InputError
from tomoline.io.micrographs import read_micrograph
from tomoline.io.picks import (
    Exposure,
    pick_table,
    read_box,
    read_picks,
    read_relion,
    read_truth,
    write_box,
    write_cryosparc,
    write_picks,
    write_relion,
)

SHAPE = (90, 70)
# Rows and columns of the file's array, 0-based, in an image without symmetry.
PLANTED = [(10, 52), (33, 7), (81, 40)]


def image() -> NDArray[np.uint8]:
    pixels = np.zeros(SHAPE, np.uint8)
    for row, column in PLANTED:
        pixels[row, column] = 255
    return pixels


def table(name: str = "one") -> pd.DataFrame:
    count = len(PLANTED)
    return pick_table({
        "micrograph": [name] * (count + 1), "pick_id": range(1, count + 2),
        "x_px": [c for _, c in PLANTED] + [5.0], "y_px": [r for r, _ in PLANTED] + [5.0],
        "score": [0.9, 0.75, 0.5, 0.4], "diameter_px": [20.0] * (count + 1),
        "status": ["accepted"] * count + ["rejected"], "reason": [""] * count + ["too close"],
    })  # fmt: skip


def exposure(path: Path, name: str = "one") -> Exposure:
    return Exposure(micrograph=name, path=str(path), shape_yx=SHAPE, pixel_size_angstrom=1.5)


def written(folder: Path, suffix: str) -> Path:
    """The image in a file, first row of the array first in the file."""
    path = folder / f"one{suffix}"
    if suffix == ".mrc":
        with mrcfile.new(path) as file:
            file.set_data(image().astype(np.float32))
    else:
        Image.fromarray(image()).save(path)
    return path


def in_memory_of_relion(path: Path) -> NDArray[np.uint8]:
    """The image as RELION holds it: MRC as stored; TIFF turned over along the slow axis.

    RELION's manual, Conventions: "TIFF images are flipped along the slow axis when being read".
    """
    if path.suffix == ".mrc":
        return np.asarray(mrcfile.read(path), np.uint8)
    return np.asarray(Image.open(path))[::-1]


@pytest.mark.parametrize("suffix", [".mrc", ".tif", ".png"])
def test_relion_finds_the_planted_pixels(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path, suffix)
    write_relion(tmp_path / "p.star", table(), [exposure(path)])
    read = starfile.read(tmp_path / "p.star")
    assert list(read["rlnMicrographName"]) == [str(path)] * 3
    assert list(read["rlnAutopickFigureOfMerit"]) == [0.9, 0.75, 0.5]
    pixels = in_memory_of_relion(path)
    for x, y in zip(read["rlnCoordinateX"], read["rlnCoordinateY"], strict=True):
        assert pixels[round(y), round(x)] == 255


@pytest.mark.parametrize("suffix", [".mrc", ".tif"])
def test_eman_finds_the_planted_pixels_in_the_middle_of_its_boxes(
    tmp_path: Path, suffix: str
) -> None:
    path = written(tmp_path, suffix)
    write_box(tmp_path / "one.box", table(), exposure(path))
    wide = np.pad(in_memory_of_relion(path), 20)  # boxes may reach beyond the image
    for line in (tmp_path / "one.box").read_text().splitlines():
        x, y, w, h = (int(cell) for cell in line.split())
        box = wide[y + 20 : y + 20 + h, x + 20 : x + 20 + w]
        assert box[h // 2, w // 2] == 255


WRITERS: dict[str, Callable[[Path, pd.DataFrame, Exposure], None]] = {
    "relion.star": lambda p, t, e: write_relion(p, t, [e]),
    "cryosparc.star": lambda p, t, e: write_cryosparc(p, t, [e]),
    "one.box": write_box,
    "ours.csv": lambda p, t, e: write_picks(p, t),
}


@pytest.mark.parametrize("suffix", [".mrc", ".tif", ".jpg"])
@pytest.mark.parametrize("file", WRITERS)
def test_what_is_written_comes_in_again(tmp_path: Path, file: str, suffix: str) -> None:
    shot = exposure(tmp_path / f"one{suffix}")
    WRITERS[file](tmp_path / file, table(), shot)
    back = read_truth(tmp_path / file, shot)
    assert len(back) == 3
    places = back[["y_px", "x_px"]].to_numpy()
    assert np.abs(places - np.asarray(PLANTED)).max() < (0.51 if file.endswith(".box") else 1e-6)


def test_fractions_of_a_pixel_survive_and_boxes_keep_half_a_pixel(tmp_path: Path) -> None:
    own = table()
    own["x_px"] += 0.437
    own["y_px"] -= 0.281
    shot = exposure(tmp_path / "one.tif")
    write_relion(tmp_path / "a.star", own, [shot])
    write_box(tmp_path / "a.box", own, shot)
    near = read_relion(tmp_path / "a.star", [shot])["one"]
    assert np.abs(near["y_px"].to_numpy() - own["y_px"].to_numpy()[:3]).max() < 1e-5
    boxes = read_box(tmp_path / "a.box", shot)
    assert np.abs(boxes["x_px"].to_numpy() - own["x_px"].to_numpy()[:3]).max() <= 0.5
    assert np.abs(boxes["y_px"].to_numpy() - own["y_px"].to_numpy()[:3]).max() <= 0.5


def test_cryosparc_gets_optics_and_names_without_folders(tmp_path: Path) -> None:
    first = exposure(tmp_path / "deep" / "one.mrc")
    second = Exposure(micrograph="two", path="x/two.mrc", shape_yx=SHAPE, pixel_size_angstrom=2.0)
    both = pd.concat([table(), table("two")], ignore_index=True)
    write_cryosparc(tmp_path / "c.star", both, [first, second])
    blocks = starfile.read(tmp_path / "c.star", always_dict=True)
    assert list(blocks["optics"]["rlnMicrographPixelSize"]) == [1.5, 2.0]
    particles = blocks["particles"]
    assert list(particles["rlnMicrographName"].unique()) == ["one.mrc", "two.mrc"]
    assert list(particles["rlnOpticsGroup"]) == [1, 1, 1, 2, 2, 2]


def test_a_relion_list_without_names_belongs_to_the_only_micrograph(tmp_path: Path) -> None:
    path = tmp_path / "one_autopick.star"
    starfile.write({"": pd.DataFrame({"rlnCoordinateX": [4.0], "rlnCoordinateY": [9.0]})}, path)
    shot = exposure(tmp_path / "one.mrc")
    assert read_relion(path, [shot])["one"].to_numpy().tolist() == [[4.0, 9.0, 1.0]]
    with pytest.raises(InputError, match="several micrographs"):
        read_relion(path, [shot, exposure(tmp_path / "two.mrc", "two")])


def test_an_unknown_micrograph_is_refused(tmp_path: Path) -> None:
    write_relion(tmp_path / "p.star", table(), [exposure(tmp_path / "one.mrc")])
    with pytest.raises(InputError, match="among two"):
        read_relion(tmp_path / "p.star", [exposure(tmp_path / "two.mrc", "two")])


def test_no_picks_make_valid_files(tmp_path: Path) -> None:
    none = table().iloc[:0]
    shot = exposure(tmp_path / "one.mrc")
    for file, write in WRITERS.items():
        write(tmp_path / file, none, shot)
        assert len(read_truth(tmp_path / file, shot)) == 0
    assert list(starfile.read(tmp_path / "relion.star").columns)[1] == "rlnCoordinateX"


def test_picks_csv_is_read_as_strictly_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "picks.csv"
    write_picks(path, table())
    assert read_picks(path).equals(table())
    text = path.read_text()
    for old, new, words in (
        ("x_px", "X", "no x_px"), ("52.000", "much", "numbers"),
        (",accepted,", ",maybe,", "status"), ("0.900000", "nan", "finite"),
        ("too close", "", "reason"),
    ):  # fmt: skip
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(InputError, match=words):
            read_picks(path)
    with pytest.raises(InputError, match="no such file"):
        read_picks(tmp_path / "none.csv")


@pytest.mark.parametrize("dtype", ["int8", "int16", "float32", "uint16", "float16"])
def test_mrc_modes(tmp_path: Path, dtype: str) -> None:
    values = (np.arange(12).reshape(3, 4) - (0 if dtype == "uint16" else 5)).astype(dtype)
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(values)
    pixels, facts = read_micrograph(tmp_path / "a.mrc")
    assert np.array_equal(pixels.astype(float), values.astype(float))
    modes = {"int8": 0, "int16": 1, "float32": 2, "uint16": 6, "float16": 12}
    assert facts.mode == str(modes[dtype])
    assert facts.pixel_size_angstrom is None  # the header's 0 is no pixel size


@pytest.mark.parametrize(("suffix", "mode"), [
    (".tif", "I;16"), (".tiff", "F"), (".png", "L"), (".png", "I;16"), (".jpg", "L"),
])  # fmt: skip
def test_pictures(tmp_path: Path, suffix: str, mode: str) -> None:
    dtype = {"I;16": np.uint16, "F": np.float32, "L": np.uint8}[mode]
    values = np.add.outer(np.arange(40), 2 * np.arange(56)).astype(dtype)
    Image.fromarray(values).save(tmp_path / f"a{suffix}", quality=95)
    pixels, facts = read_micrograph(tmp_path / f"a{suffix}")
    assert facts.shape_yx == (40, 56)
    assert np.abs(pixels.astype(float) - values).max() <= (3 if suffix == ".jpg" else 0)


def test_what_is_no_micrograph_is_refused(tmp_path: Path) -> None:
    with mrcfile.new(tmp_path / "movie.mrc") as file:
        file.set_data(np.zeros((4, 8, 8), np.float32))
    frames = [Image.fromarray(np.zeros((8, 8), np.uint8)) for _ in range(3)]
    frames[0].save(tmp_path / "movie.tif", save_all=True, append_images=frames[1:])
    (tmp_path / "text.png").write_text("not a picture")
    whole = written(tmp_path, ".png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    for name in ("movie.mrc", "movie.tif", "text.png", "cut.png", "none.jpg"):
        with pytest.raises(InputError, match="Remedy"):
            read_micrograph(tmp_path / name)
