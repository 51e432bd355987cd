"""Tables come back as they were written, byte for byte, and nothing else is read."""

import h5py
import numpy as np
import pytest

from tomoline.contracts import CANDIDATE_COLUMNS, PARTICLE_COLUMNS
from tomoline.errors import InputError
from tomoline.io.subtomograms import (
    open_classes,
    open_subtomograms,
    write_classes,
    write_subtomograms,
)
from tomoline.io.tables import (
    candidate_table,
    particle_table,
    read_candidates,
    read_particles,
    table_classes,
    write_candidates,
    write_particles,
)


def _candidates(n=2):
    return candidate_table(
        {
            "candidate_id": range(1, n + 1),
            "z_prepared_vox": np.arange(n) + 1 / 3,
            "y_prepared_vox": np.full(n, -1e-9),
            "x_prepared_vox": np.full(n, 100.0),
            "status": ["accepted", "rejected"][:n],
            "reason": ["", "smaller than 3 voxels; score below 0.5"][:n],
            "score": [1.0, 0.25][:n],
            "mean_probability": [0.75, 0.125][:n],
            "size_vox": [30, 1][:n],
            "contrast": [12.5, -0.25][:n],
        }
    )


def _particles(n=2):
    return particle_table(
        {
            "tomogram": ["007", "NA"][:n],
            "particle_id": [1, 2][:n],
            "z_vox": [1.5, 2.0][:n], "y_vox": [1.5, 2.0][:n], "x_vox": [1.5, 2.0][:n],
            "voxel_size_angstrom": [10.0] * n,
            "tomogram_nz": [20] * n, "tomogram_ny": [30] * n, "tomogram_nx": [40] * n,
            "binning": [4.0] * n,
            "status": ["accepted", "rejected"][:n],
            "reason": ["", "no labelled voxels at the centre"][:n],
            "score": [0.9, 0.8][:n],
            "size_vox": [30, 20][:n],
            "class": ["1e10", ""][:n],
            "vote_share": [0.9, 0.0][:n], "margin": [0.8, 0.0][:n],
            "p_3cf3": [0.1, 0.0][:n], "p_1e10": [0.9, 0.0][:n],
        },
        ["3cf3", "1e10"],
    )  # fmt: skip


@pytest.mark.parametrize("n", [0, 2])
def test_candidates_come_back_and_equal_tables_have_equal_bytes(tmp_path, n):
    write_candidates(tmp_path / "a.csv", _candidates(n))
    table = read_candidates(tmp_path / "a.csv")
    write_candidates(tmp_path / "b.csv", table)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert tuple(table.columns) == CANDIDATE_COLUMNS
    assert table["candidate_id"].dtype == table["size_vox"].dtype == np.int64
    assert table["score"].dtype == np.float64
    np.testing.assert_allclose(table["z_prepared_vox"], np.arange(n) + 1 / 3, atol=1e-6)
    text = (tmp_path / "a.csv").read_text()
    assert "-0.000000" not in text and "\r" not in text
    assert len(text.splitlines()) == 1 + n


@pytest.mark.parametrize("n", [0, 2])
def test_particles_come_back_with_names_that_look_like_numbers(tmp_path, n):
    write_particles(tmp_path / "a.csv", _particles(n))
    table = read_particles(tmp_path / "a.csv")
    assert tuple(table.columns[: len(PARTICLE_COLUMNS)]) == PARTICLE_COLUMNS
    assert table_classes(table) == ["3cf3", "1e10"]
    assert list(table["tomogram"]) == ["007", "NA"][:n]
    assert list(table["class"]) == ["1e10", ""][:n]
    assert (table["tomogram_nz"] == 20).all()


@pytest.mark.parametrize(
    "old,new,words",
    [
        ("size_vox", "size", "see size_vox"),
        ("candidate_id,z_prepared_vox", "z_prepared_vox,candidate_id", "their order"),
        ("accepted", "perhaps", "status"),
        ("1,0.333333", "1.5,0.333333", "whole number"),
        ("100.000000", "far", "a number in column x_prepared_vox"),
        ("100.000000", "nan", "a number in column x_prepared_vox"),
        ("100.000000", "", "a number in column x_prepared_vox"),
        ("0.750000", "1.750000", "from 0 to 1"),
        ("\n2,", "\n1,", "candidate_id once"),
        (",12.500000\n", "\n", "10 values in a row"),
        (",12.500000\n", ",12.500000,7\n", "10 values in a row"),
        ("smaller than 3 voxels; score below 0.5", "", "a reason if, and only if, rejected"),
    ],
)
def test_a_candidate_table_that_is_none_is_refused(tmp_path, old, new, words):
    write_candidates(tmp_path / "a.csv", _candidates())
    text = (tmp_path / "a.csv").read_text()
    assert old in text
    (tmp_path / "a.csv").write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=words):
        read_candidates(tmp_path / "a.csv")


@pytest.mark.parametrize(
    "old,new,words",
    [
        ("p_3cf3", "q_3cf3", "p_<class>"),
        ("1e10,0.9", "1xyz,0.9", "a class that has its p_ column"),
        (",20,,0.0", ",20,3cf3,0.0", "none if rejected"),
        ("10.000000", "0.000000", "above 0"),
    ],
)
def test_a_particle_table_that_is_none_is_refused(tmp_path, old, new, words):
    write_particles(tmp_path / "a.csv", _particles())
    text = (tmp_path / "a.csv").read_text()
    assert old in text
    (tmp_path / "a.csv").write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=words):
        read_particles(tmp_path / "a.csv")


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00", b"a,b\n1,2,3,4\n", b"a,a\n1,2\n"])
def test_what_is_no_table_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.csv"):
        read_candidates(tmp_path / "a.csv")


@pytest.mark.parametrize("n", [0, 3])
def test_boxes_and_labels_come_back_and_equal_ones_have_equal_bytes(tmp_path, n):
    rng = np.random.default_rng(0)
    boxes = rng.random((n, 8, 8, 8)).astype(np.float32)
    labels = rng.integers(0, 2, (n, 8, 8, 8)).astype(np.uint8)
    places = {"candidate_id": np.arange(n) + 4, "centre_zyx": rng.random((n, 3)), "box_vox": 8}
    soft = np.stack([255 - labels, labels], 1)
    for name in "ab":
        write_subtomograms(tmp_path / f"{name}.h5", boxes, voxel_size_angstrom=10.0, **places)
        results = zip(labels, soft, strict=True)
        write_classes(tmp_path / f"{name}c.h5", results, classes=["background", "x"], **places)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert (tmp_path / "ac.h5").read_bytes() == (tmp_path / "bc.h5").read_bytes()
    with open_subtomograms(tmp_path / "a.h5") as found:
        assert (len(found), found.box_vox, found.voxel_size_angstrom) == (n, 8, 10.0)
        np.testing.assert_array_equal(found.boxes[:], boxes)
        np.testing.assert_array_equal(found.centre_zyx, places["centre_zyx"])
    with open_classes(tmp_path / "ac.h5") as found:
        assert (len(found), found.classes) == (n, ["background", "x"])
        np.testing.assert_array_equal(found.probabilities[:], soft)


def test_files_of_another_kind_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"), open_subtomograms(tmp_path / "no.h5"):
        pass
    (tmp_path / "text.h5").write_text("text")
    with pytest.raises(InputError, match="HDF5"), open_classes(tmp_path / "text.h5"):
        pass
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["labels"] = np.zeros((1, 4, 4, 4))
    with pytest.raises(InputError, match="no probabilities"), open_classes(tmp_path / "other.h5"):
        pass


def test_a_number_of_boxes_that_is_not_that_of_the_candidates_leaves_no_file(tmp_path):
    for given in (1, 3):
        with pytest.raises(ValueError, match="2 candidates"):
            write_subtomograms(
                tmp_path / "a.h5", np.zeros((given, 4, 4, 4), np.float32), box_vox=4,
                candidate_id=np.array([1, 2]), centre_zyx=np.zeros((2, 3)), voxel_size_angstrom=1,
            )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_the_expected_precision_is_there_for_all_or_for_none(tmp_path):
    columns = {name: list(values) for name, values in _particles().items()}
    table = particle_table(columns | {"expected_precision": [0.97, 0.4]}, ["3cf3", "1e10"])
    at = len(PARTICLE_COLUMNS)
    assert list(table.columns[at:]) == ["expected_precision", "p_3cf3", "p_1e10"]
    assert table_classes(table) == ["3cf3", "1e10"]
    path = tmp_path / "particles.csv"
    write_particles(path, table)
    assert read_particles(path).equals(table)
    for value in ("", "nan", "1.5"):
        path.write_text(path.read_text().replace("0.970000", value))
        with pytest.raises(InputError, match="expected_precision"):
            read_particles(path)
        write_particles(path, table)
    path.write_text(
        path.read_text().replace("margin,expected_precision", "expected_precision,margin")
    )
    with pytest.raises(InputError):
        read_particles(path)
