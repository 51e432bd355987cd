"""Readers of known positions."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tomoline.errors import InputError
from tomoline.io.annotations import (
    TRUTH_COLUMNS,
    TruthOptions,
    read_occupancy,
    read_truth,
)
from tomoline.io.mrc import write_volume
from tomoline.io.star import write_star


class Halving:
    """A tomogram binned by two, one angstrom a pixel, its centre at pixel (10, 20, 30) zyx."""

    def from_unbinned(self, zyx_pixel):
        return zyx_pixel / 2

    def from_centred_angstrom(self, zyx_angstrom, *, centre):
        return (zyx_angstrom + np.array([10, 20, 30]) - (centre == "picker")) / 2


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def zyx(table: pd.DataFrame) -> list:
    return table[["z_vox", "y_vox", "x_vox"]].to_numpy().tolist()


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("auto", [30, 20, 10]),
        ("shrec21", [30, 20, 10]),
        ("shrec20", [186, 20, 10]),
        ("shrec19", [10, 20, 30]),
    ],
)
def test_shrec_by_year(layout: str, expected: list, tmp_path: Path) -> None:
    path = write(tmp_path / "particle_locations.txt", "1bxn 10 20 30 1 2 3\n4v94 1 2 3 0 0 0\n")
    table = read_truth(path, TruthOptions(layout=layout))
    assert list(table.columns) == list(TRUTH_COLUMNS)
    assert zyx(table)[0] == expected
    assert list(table["id"]) == [1, 2]
    assert list(table["class"]) == ["1bxn", "4v94"]


def test_the_slab_offset_can_be_set(tmp_path: Path) -> None:
    path = write(tmp_path / "p.txt", "1bxn 10 20 30 1 2 3\n")
    assert zyx(read_truth(path, TruthOptions(layout="shrec20", z_offset_vox=0)))[0][0] == 30
    assert zyx(read_truth(path, TruthOptions(z_offset_vox=-5)))[0][0] == 25


def test_polnet_csv_keeps_its_ids(tmp_path: Path) -> None:
    text = "id,cls,label,x,y,z,x_raw,y_raw,z_raw\n7,4v94,1,41.5,177.5,47.5,0,0,0\n"
    table = read_truth(write(tmp_path / "p.csv", text))
    assert table.to_dict("records") == [
        {"id": 7, "class": "4v94", "z_vox": 47.5, "y_vox": 177.5, "x_vox": 41.5}
    ]


def test_plain_csv_with_radius_and_without_class(tmp_path: Path) -> None:
    table = read_truth(write(tmp_path / "p.csv", "X, Y, Z, radius\n1,2,3,4.5\n5,6,7,8\n"))
    assert zyx(table) == [[3, 2, 1], [7, 6, 5]]
    assert list(table["radius_vox"]) == [4.5, 8]
    assert list(table["id"]) == [1, 2]
    assert list(table["class"]) == ["", ""]


def test_a_points_layer_of_napari(tmp_path: Path) -> None:
    table = read_truth(write(tmp_path / "p.csv", "index,axis-0,axis-1,axis-2\n0,1,2,3\n"))
    assert zyx(table) == [[1, 2, 3]]


def test_relion_star_both_ways(tmp_path: Path) -> None:
    names = {"rlnTomoName": ["a", "b"], "tomolineClassName": ["4e10", "1bxn"]}
    corner = pd.DataFrame(
        names | {"rlnCoordinateX": [6.0, 8], "rlnCoordinateY": [4.0, 8], "rlnCoordinateZ": [2.0, 8]}
    )
    write_star(tmp_path / "c.star", {"particles": corner})
    options = TruthOptions(geometry=Halving(), tilt_series="a")
    table = read_truth(tmp_path / "c.star", options)
    assert zyx(table) == [[1, 2, 3]]
    assert list(table["class"]) == ["4e10"]
    centred = pd.DataFrame(names | {f"rlnCenteredCoordinate{a}Angst": [0.0, 2.0] for a in "XYZ"})
    write_star(tmp_path / "d.star", {"particles": centred})
    table = read_truth(tmp_path / "d.star", TruthOptions(geometry=Halving(), relion_centre="cpp"))
    assert zyx(table) == [[5, 10, 15], [6, 11, 16]]


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("p.txt", "1bxn 10 20\n", "line 1"),
        ("p.txt", "1bxn 10 20 thirty\n", "line 1"),
        ("p.csv", "a,b\n1,2\n", "columns a, b"),
        ("p.csv", "x,y,z\n1,2,three\n", "'three' in row 1"),
        ("p.csv", "x,y,z\n1,2,inf\n", "infinity"),
        ("p.csv", "", "No columns"),
        ("p.csv", "id,x,y,z\n1,1,1,1\n1,2,2,2\n", "id 1 twice"),
        ("p.star", "data_\n\nloop_\n_rlnA #1\n1\n", "rlnA"),
    ],
)
def test_faults_are_named(name: str, text: str, found: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=found):
        read_truth(write(tmp_path / name, text), TruthOptions(geometry=Halving()))


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_truth(tmp_path / "none.txt")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError, match="binary"):
        read_truth(tmp_path / "b.txt")


def test_an_empty_list_is_no_particles(tmp_path: Path) -> None:
    assert len(read_truth(write(tmp_path / "p.txt", ""))) == 0
    assert len(read_truth(write(tmp_path / "p.csv", "x,y,z\n"))) == 0


def test_occupancy_from_mrc_and_npz(tmp_path: Path) -> None:
    volume = np.zeros((4, 5, 6), np.float32)
    volume[1, 2, 3] = 700
    write_volume(tmp_path / "o.mrc", volume, 10.0)
    np.savez(tmp_path / "o.npz", instance=volume.astype(np.uint16), class_label=volume)
    for name in ("o.mrc", "o.npz"):
        read = read_occupancy(tmp_path / name, (4, 5, 6))
        assert read.dtype == np.uint32
        np.testing.assert_array_equal(read, volume)


@pytest.mark.parametrize("fault", ["shape", "fractions", "keys", "missing"])
def test_occupancy_faults(fault: str, tmp_path: Path) -> None:
    path = tmp_path / "o.npz"
    if fault != "missing":
        name = "other" if fault == "keys" else "instance"
        np.savez(path, **{name: np.full((2, 2, 2), 0.5 if fault == "fractions" else 1)})
    with pytest.raises(InputError):
        read_occupancy(path, (3, 3, 3) if fault == "shape" else (2, 2, 2))


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("x;y;z;class\r\n1,5;2;3,25;my ribosome \r\n", "utf-8-sig"),
        ("x\ty\tz\tclass\n1,5\t2\t3,25\tmy ribosome\n", "utf-8"),
        ("x,y,z,class\n1.5,2,3.25, my ribosome \n", "utf-8-sig"),
    ],
)
def test_tables_of_spreadsheet_programs_are_read_alike(
    text: str, encoding: str, tmp_path: Path
) -> None:
    (tmp_path / "p.csv").write_text(text, encoding=encoding)
    table = read_truth(tmp_path / "p.csv")
    assert zyx(table) == [[3.25, 2, 1.5]] and list(table["class"]) == ["my ribosome"]


def test_a_thousand_between_commas_is_no_decimal(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'1,234'"):
        read_truth(write(tmp_path / "p.csv", 'x,y,z\n"1,234",2,3\n'))
