"""A user's picks come in: import after export is the identity; `tomoline import` by its door."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
from dialect_contract import CLASSES, Case, table_of
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoline import cli
from tomoline.errors import InputError
from tomoline.export.dialect import Place, TomogramParticles, selected
from tomoline.export.geometry import TomogramGeometry
from tomoline.export.registry import DIALECTS
from tomoline.io.annotations import TRUTH_COLUMNS, read_truth
from tomoline.io.sheet import load_dataset, read_sheet
from tomoline.settings import DatasetSettings, ExportSettings
from tomoline.stages.importing import Picks, geometry_of, import_picks
from tomoline.stages.onboard import Request, onboard


@st.composite
def tomograms(draw: st.DrawFn) -> TomogramParticles:
    """Any size, voxel size, binning (not only whole), way of binning, size in pixels, places."""
    shape = draw(st.tuples(*[st.integers(8, 4000)] * 3))
    voxel = draw(st.floats(0.5, 40.0))
    binning = draw(st.sampled_from([1.0, 2.0, 4.0, 8.0, 7.4, 1.37]))
    unbinned = draw(st.booleans())
    raw = {
        "name": "d",
        "sheet": "d.tsv",
        "tilt_series_pixel_size_angstrom": voxel / binning,
        "binned_by": draw(st.sampled_from(["fourier", "average"])),
    }
    if unbinned:
        off = draw(st.tuples(*[st.integers(0, max(0, int(binning) - 1))] * 3))
        size = [round(n * binning) + k for n, k in zip(shape[::-1], off, strict=True)]
        raw["unbinned_size_xyz"] = size
    dataset = DatasetSettings.model_validate(raw)
    axes = [st.floats(0, n - 1) for n in shape]
    zyx = np.array(draw(st.lists(st.tuples(*axes), max_size=6)), dtype=float).reshape(-1, 3)
    particles = table_of(zyx, Case("even", 1))
    return TomogramParticles(
        tilt_series="TS_1",
        particles=particles,
        geometry=TomogramGeometry.of_given(shape, voxel, dataset),
        dataset=dataset,
        source=Path("/data/TS_1.mrc"),
    )


def sorted_by_place(table: pd.DataFrame) -> pd.DataFrame:
    keys = table.assign(**{f"k{c}": table[c].round(2) for c in ("x_vox", "y_vox", "z_vox")})
    order = keys.sort_values(["kx_vox", "ky_vox", "kz_vox", "class"]).index
    return table.loc[order].reset_index(drop=True)


@pytest.mark.parametrize("name", DIALECTS)
@settings(max_examples=40, deadline=None)
@given(tomogram=tomograms(), centre=st.sampled_from(["picker", "cpp"]))
def test_import_after_export_is_the_identity(
    name: str, tomogram: TomogramParticles, centre: str
) -> None:
    wanted = ExportSettings(relion_centre=centre)
    written = selected(tomogram, wanted)
    place = Place(geometry=tomogram.geometry, relion_centre=centre)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / DIALECTS[name].file_name
        DIALECTS[name].write(written, path, wanted)
        read = DIALECTS[name].read(path, place)
    assert list(read.columns[: len(TRUTH_COLUMNS)]) == list(TRUTH_COLUMNS)
    assert len(read) == len(written.particles)
    ours, theirs = written.particles, read
    distance = np.abs(
        theirs[["z_vox", "y_vox", "x_vox"]].to_numpy(float)[:, None]
        - ours[["z_vox", "y_vox", "x_vox"]].to_numpy(float)[None]
    ).max(axis=2)
    keeps = DIALECTS[name].keeps
    for row in range(len(theirs)):  # each one is somebody's place, class and score
        same = distance[row] < 0.01
        if "class" in keeps:
            same &= ours["class"].to_numpy() == theirs["class"].iloc[row]
        if "score" in keeps:
            same &= np.abs(ours["score"].to_numpy() - theirs["score"].iloc[row]) < 1e-3
        assert same.any(), theirs.iloc[row]
    if len(ours):
        assert distance.min(axis=0).max() < 0.01  # and everybody came back


# --- the command ------------------------------------------------------------------------------

SHAPE = (24, 30, 36)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An onboarded dataset of two tomograms of one microscope, names with affixes."""
    folder = tmp_path / "data"
    folder.mkdir()
    for seed, name in enumerate(("TS_01_rec", "TS_02_rec")):
        volume = np.random.default_rng(seed).normal(0, 20, SHAPE).astype(np.float32)
        with mrcfile.new(folder / f"{name}.mrc") as file:
            file.set_data(volume)
            file.voxel_size = 10.0
    onboard(Request(name="d", paths=(folder,), contrast="dark"), project=tmp_path)
    settings_file = tmp_path / "config" / "datasets" / "d.yaml"
    text = settings_file.read_text()
    key = "tilt_series_pixel_size_angstrom"
    settings_file.write_text(re.sub(rf"(?m)^{key}:.*$", f"{key}: 2.5", text))
    return tmp_path


def run(project: Path, *arguments: str) -> int:
    return cli.main(["import", "--project", str(project), "--dataset", "d", *arguments])


def exported(project: Path, name: str, series: tuple[str, ...] = ("TS_01", "TS_02")) -> Path:
    """Files of a data set in a dialect, at places of their own in each tomogram."""
    dataset, rows = load_dataset("d", folder=project / "config" / "datasets")
    made = []
    for number, row in enumerate(rows):
        if row.tilt_series not in series:
            continue
        zyx = np.array([(3.5, 4.25, 5.125), (10, 11, 12), (20, 21, 22)]) + number
        made.append(
            selected(
                TomogramParticles(
                    tilt_series=row.tilt_series,
                    particles=table_of(zyx, Case("even", 4)).assign(tomogram=row.tomogram),
                    geometry=geometry_of(row, dataset),
                    dataset=dataset,
                    source=project / row.path,
                ),
                ExportSettings(),
            )
        )
    folder = project / "out" / name
    DIALECTS[name].write_combined(made, folder, ExportSettings())
    return folder


@pytest.mark.parametrize("name", [n for n in DIALECTS if n not in ("imod", "eman2", "portal")])
def test_a_data_sets_file_is_shared_out_among_its_tomograms(name: str, project: Path) -> None:
    """Names in the file are tilt series, tomograms, .tomostar or files, by dialect."""
    folder = exported(project, name)
    assert run(project, str(folder / DIALECTS[name].combined_name), "--dialect", name) == 0
    for number, tomogram in enumerate(("TS_01", "TS_02")):
        path = project / "config" / "datasets" / "d_annotations" / f"{tomogram}.csv"
        table = sorted_by_place(read_truth(path))
        places = [[5.125, 4.25, 3.5], [12, 11, 10], [22, 21, 20]]
        np.testing.assert_allclose(
            table[["x_vox", "y_vox", "z_vox"]], np.array(places) + number, atol=1e-3
        )
        assert list(table["class"]) == list(CLASSES)


@pytest.mark.parametrize("name", ["imod", "eman2", "portal"])
def test_files_without_names_need_the_tomograms(
    name: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported(project, name)
    path = {
        "imod": folder / "TS_02.txt",
        "eman2": folder / "info" / "TS_02_info.json",
        "portal": folder / "TS_02",
    }[name]
    assert run(project, str(path), "--dialect", name) == 2
    assert "--tomogram" in capsys.readouterr().err
    assert run(project, str(path), "--dialect", name, "--tomogram", "TS_02") == 0
    said = capsys.readouterr().out
    assert "TS_02: 3 picks (1 1bxn, 1 4e10, 1 ribosome)" in said
    table = read_truth(project / "config" / "datasets" / "d_annotations" / "TS_02.csv")
    assert sorted(table["class"]) == sorted(CLASSES)
    assert not (project / "config" / "datasets" / "d_annotations" / "TS_01.csv").exists()


def test_clicks_of_3dmod_get_a_class_and_a_radius(project: Path) -> None:
    """`model2point` writes x y z; (0.5, 0.5, 0) is the centre of the first voxel."""
    clicks = project / "clicks.txt"
    clicks.write_text("   10.50   20.50    5.00\n    0.50    0.50    0.00\n")
    code = run(project, str(clicks), "--dialect", "imod", "--tomogram", "TS_01",
               "--classes", "vault", "--radius", "300", "--as-truth")  # fmt: skip
    assert code == 0
    path = project / "config" / "datasets" / "d_annotations" / "TS_01.csv"
    table = read_truth(path)
    assert table.to_dict("records") == [
        {"id": 1, "class": "vault", "z_vox": 5, "y_vox": 20, "x_vox": 10, "radius_vox": 30},
        {"id": 2, "class": "vault", "z_vox": 0, "y_vox": 0, "x_vox": 0, "radius_vox": 30},
    ]
    rows = read_sheet(project / "config" / "datasets" / "d.tsv")
    assert [row.truth for row in rows] == ["config/datasets/d_annotations/TS_01.csv", ""]


def test_of_a_copick_project_peoples_picks_are_read_with_their_radii(project: Path) -> None:
    folder = exported(project, "copick")
    config = folder / "copick_config.json"
    raw = json.loads(config.read_text())
    raw["pickable_objects"].append(
        {"name": "vault", "is_particle": True, "label": 9, "radius": 300}
    )
    config.write_text(json.dumps(raw))
    picks = {
        "pickable_object_name": "vault", "user_id": "anna", "session_id": "1",
        "run_name": "TS_01", "voxel_spacing": 10.0, "unit": "angstrom",
        "points": [{"location": {"x": 50, "y": 60, "z": 70.5}}],
    }  # fmt: skip
    place = folder / "ExperimentRuns" / "TS_01" / "Picks" / "anna_1_vault.json"
    place.write_text(json.dumps(picks))
    done = import_picks(Picks(path=config, dialect="copick", dataset="d"), project=project)
    assert list(done.tables) == ["TS_01"]
    assert done.tables["TS_01"].drop(columns="score").to_dict("records") == [
        {"id": 1, "class": "vault", "z_vox": 7.05, "y_vox": 6, "x_vox": 5, "radius_vox": 30}
    ]


def test_a_copick_points_shift_is_part_of_its_place(project: Path) -> None:
    """copick: the centre is the location plus the last column of the transformation."""
    picks = {
        "pickable_object_name": "vault", "user_id": "anna", "session_id": "1", "run_name": "TS_01",
        "points": [{"location": {"x": 50, "y": 60, "z": 70},
                    "transformation_": [[0, 1, 0, 10], [1, 0, 0, 20], [0, 0, -1, -30],
                                        [0, 0, 0, 1]]}],
    }  # fmt: skip
    path = project / "picks.json"
    path.write_text(json.dumps(picks))
    done = import_picks(Picks(path=path, dialect="copick", dataset="d"), project=project)
    (row,) = done.tables["TS_01"].to_dict("records")
    assert (row["x_vox"], row["y_vox"], row["z_vox"]) == (6, 8, 4)


@pytest.mark.parametrize(
    ("dialect", "text"),
    [
        ("eman2", '{"apix_unbin": 2.5, "boxes_3d": [[NaN, 0, 0, "manual", 0.5, 0]]}'),
        ("portal", '{"type": "point", "location": {"x": NaN, "y": 1, "z": 2}}\n'),
        ("copick", '{"pickable_object_name": "a", "points": [{"location": '
                   '{"x": NaN, "y": 1, "z": 2}}]}'),
        ("imod", "nan 1 2\n"),
        ("csv", "x,y,z\nnan,1,2\n"),
    ],
)  # fmt: skip
def test_a_place_that_is_no_number_is_refused(dialect: str, text: str, project: Path) -> None:
    path = project / "picks"
    path.write_text(text)
    with pytest.raises(InputError):
        import_picks(
            Picks(path=path, dialect=dialect, dataset="d", tomogram="TS_01"), project=project
        )


def test_a_class_name_that_no_file_can_hold_is_refused(project: Path) -> None:
    path = project / "picks.csv"
    path.write_text('x,y,z,class\n1,1,2,"the ""big"" one"\n')
    with pytest.raises(InputError, match="without quotes"):
        import_picks(
            Picks(path=path, dialect="csv", dataset="d", tomogram="TS_01"), project=project
        )


@pytest.mark.parametrize("name", ["relion5", "relion4", "relion3"])
@pytest.mark.parametrize("angle", [None, 0.0, 30.0])
def test_what_a_refinement_moved_is_where_relion_has_it(
    name: str, angle: float | None, project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """RELION takes the origin off the coordinate: 5 A, half a voxel of 10 A, in x."""
    path = exported(project, name, ("TS_01",)) / "particles.star"
    blocks = starfile.read(path, always_dict=True, parse_as_string=["tomolineClassName"])
    table = blocks.get("particles", next(iter(blocks.values())))
    for axis in "XYZ":
        before = table.get(f"rlnOrigin{axis}Angst", 0.0)
        table[f"rlnOrigin{axis}Angst"] = before + 5.0 * (axis == "X")
    if angle is not None:
        for turn in ("Rot", "Tilt", "Psi"):
            table[f"rlnTomoSubtomogram{turn}"] = angle
    starfile.write(blocks, path)
    with caplog.at_level("WARNING"):
        done = import_picks(Picks(path=path, dialect=name, dataset="d"), project=project)
    turned = bool(angle) and name != "relion3"  # whose origins have the tomogram's axes
    x = sorted(done.tables["TS_01"]["x_vox"])
    assert x == pytest.approx(np.array([5.125, 12, 22]) - (0.0 if turned else 0.5), abs=1e-4)
    assert ("not applied" in caplog.text) == turned


def test_a_tomogram_that_is_turned_is_placed_as_prepare_places_it() -> None:
    dataset = DatasetSettings(name="d", sheet="d.tsv")
    rows = {"axes": "xzy", "nz": 30, "ny": 24, "nx": 36, "voxel_size_angstrom": 10.0}
    row = read_row(**rows)
    assert geometry_of(row, dataset).shape_zyx == (24, 30, 36)
    assert geometry_of(read_row(**rows | {"axes": "xyz"}), dataset).shape_zyx == (30, 24, 36)
    turned = dataset.model_copy(update={"axes": "xzy", "voxel_size_angstrom": 7.0})
    geometry = geometry_of(read_row(**rows | {"axes": "xyz"}), turned)
    assert geometry.shape_zyx == (24, 30, 36)
    assert geometry.voxel_size_angstrom == 7.0


def read_row(**changes):  # type: ignore[no-untyped-def]
    from tomoline.io.sheet import SheetRow  # noqa: PLC0415

    return SheetRow(tomogram="t", path="t.rec", use="yes", verdict="ok", **changes)


@pytest.mark.parametrize(
    ("dialect", "text", "found"),
    [
        ("relion5", "data_particles\n\nloop_\n_rlnTomoName #1\nTS_01\n", "rlnCenteredCoordinateX"),
        ("relion4", "data_particles\n\nloop_\n_rlnTomoName #1\n_rlnCoordinateX #2\n"
         "_rlnCoordinateY #3\n_rlnCoordinateZ #4\nTS_01 1 2 nan\n", "row 1"),
        ("relion4", "data_particles\n\nloop_\n_rlnTomoName #1\n_rlnCoordinateX #2\n"
         "_rlnCoordinateY #3\n_rlnCoordinateZ #4\nother 1 2 3\n", "picks of other"),
        ("warp", "data_\n\nloop_\n_rlnMicrographName #1\n_rlnCoordinateX #2\n"
         "_rlnCoordinateY #3\n_rlnCoordinateZ #4\nTS_01.tomostar 1 2 300\n", "1 of 1 outside"),
        ("relion3", "nothing", "one data_ block"),
        ("dynamo", "1 2 3\n", "3 columns in line 1"),
        ("dynamo", "one two\n", "in line 1"),
        ("dynamo", "".join(f"{n} 1 1 {'0 ' * 16}{n} {'0 ' * 15}\n" for n in (1, 2)), "picks.doc"),
        ("imod", "1 2\n", "lines of 2 numbers"),
        ("imod", "1 2 3\n1 1 2 3\n", "lines of 3, 4 numbers"),
        ("eman2", "[1]", "other JSON"),
        ("eman2", '{"boxes_3d": [["a", 2, 3]]}', "could not convert"),
        ("copick", '{"pickable_object_name": "a", "unit": "nm", "points": []}', "another unit"),
        ("copick", "{}", "no folder ExperimentRuns"),
        ("portal", '{"type": "point"}\n', "KeyError in line 1"),
        ("csv", "a,b\n1,2\n", "columns a, b"),
        ("relion6", "", "relion6"),
    ],
)  # fmt: skip
def test_faults_are_named(dialect: str, text: str, found: str, project: Path) -> None:
    path = project / "picks"
    path.write_text(text)
    tomogram = None if dialect in ("relion4", "warp") else "TS_01"
    with pytest.raises(InputError, match=found):
        import_picks(
            Picks(path=path, dialect=dialect, dataset="d", tomogram=tomogram), project=project
        )


def test_names_that_fit_no_tomogram_are_told(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported(project, "warp")
    star = folder / "particles.star"
    star.write_text(star.read_text().replace("TS_02.tomostar", "elsewhere.tomostar"))
    assert run(project, str(star), "--dialect", "warp") == 1
    said = capsys.readouterr().out
    assert "TS_01: 3 picks" in said
    assert "no tomogram of the dataset is called: elsewhere.tomostar" in said
