"""Exporters through their stages: files, filters, refusals."""

import json
from pathlib import Path

import pandas as pd
import pytest
import starfile

from tomoline.contracts import VolumeTransform
from tomoline.errors import InputError
from tomoline.export.dialect import LISTING, Place, check_tilt_series
from tomoline.export.geometry import TomogramGeometry
from tomoline.export.registry import DIALECTS, dialect
from tomoline.io.tables import read_particles, write_particles
from tomoline.settings import DatasetSettings, ExportSettings, validated
from tomoline.stages import combine, export

DATASET = {"name": "d", "sheet": "d.tsv", "tilt_series_pixel_size_angstrom": 2.5}
CLASSES = ("1bxn", "4v94")


def make(folder: Path, name: str, rows: list[tuple]) -> dict[str, str]:
    """Write a tomogram's particles.csv and prepared.json; rows of (id, class, score)."""
    folder = folder / name
    table = pd.DataFrame(
        [
            {
                "tomogram": name, "particle_id": n, "z_vox": 1.0 * n, "y_vox": 2.0, "x_vox": 3.0,
                "voxel_size_angstrom": 10.0, "tomogram_nz": 20, "tomogram_ny": 30,
                "tomogram_nx": 40, "binning": 4.0,
                "status": "accepted" if kind else "rejected", "reason": "" if kind else "small",
                "score": score, "size_vox": 9, "class": kind, "vote_share": 0.5, "margin": 0.25,
            } | {f"p_{c}": 0.5 for c in CLASSES}
            for n, kind, score in rows
        ],
        columns=[
            "tomogram", "particle_id", "z_vox", "y_vox", "x_vox", "voxel_size_angstrom",
            "tomogram_nz", "tomogram_ny", "tomogram_nx", "binning", "status", "reason", "score",
            "size_vox", "class", "vote_share", "margin", *(f"p_{c}" for c in CLASSES),
        ],
    )  # fmt: skip
    write_particles(folder / "particles.csv", table)
    VolumeTransform(
        source=f"{name}.mrc", file_shape=(20, 30, 40), given_shape_zyx=(20, 30, 40),
        prepared_shape_zyx=(20, 30, 40), given_voxel_size_angstrom=10.0,
        prepared_voxel_size_angstrom=10.0, scale_zyx=(1.0, 1.0, 1.0),
    ).save(folder / "prepared.json")  # fmt: skip
    return {"particles": f"{folder}/particles.csv", "transform": f"{folder}/prepared.json"}


ROWS = [(1, "4v94", 0.9), (2, "", 0.8), (4, "1bxn", 0.4)]


def one(tmp_path: Path, name: str = "relion5", rows: list | None = None, **settings) -> Path:
    inputs = make(tmp_path, "t1", ROWS if rows is None else rows)
    path = tmp_path / "t1" / "export" / DIALECTS[name].file_name
    export.run(
        inputs, {name: path}, settings=ExportSettings(**settings),
        dataset=DATASET, tilt_series="TS_1",
    )  # fmt: skip
    return path


def test_relion5_file_is_exactly_this(tmp_path: Path) -> None:
    """x = 3 voxels = 12 pixels; size 160 pixels, centre 79: (12 - 79) * 2.5 A = -167.5 A."""
    assert one(tmp_path).read_text() == (
        "# version 50001\n\ndata_particles\n\nloop_\n_rlnTomoName #1\n"
        "_rlnCenteredCoordinateXAngst #2\n_rlnCenteredCoordinateYAngst #3\n"
        "_rlnCenteredCoordinateZAngst #4\n_rlnTomoParticleName #5\n_rlnOpticsGroup #6\n"
        "_rlnClassNumber #7\n_rlnAutopickFigureOfMerit #8\n_tomolineClassName #9\n"
        "_tomolineVoteShare #10\n_tomolineMargin #11\n"
        "_tomolineProbability_1bxn #12\n_tomolineProbability_4v94 #13\n"
        "TS_1 -167.500000 -127.500000 -87.500000 TS_1/1 1 2 0.900000 4v94 "
        "0.500000 0.250000 0.500000 0.500000\n"
        "TS_1 -167.500000 -127.500000 -57.500000 TS_1/4 1 1 0.400000 1bxn "
        "0.500000 0.250000 0.500000 0.500000\n"
        "\n\ndata_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnOpticsGroupName #2\n_rlnVoltage #3\n"
        "_rlnSphericalAberration #4\n_rlnAmplitudeContrast #5\n_rlnTomoTiltSeriesPixelSize #6\n"
        "1 opticsGroup1 300.000000 2.700000 0.100000 2.500000\n\n"
    )


def test_particles_come_first_for_the_importer(tmp_path: Path) -> None:
    """relion_tomo_import_coordinates reads the first block of a file, whatever its name."""
    for name in ("relion5", "relion4"):
        assert next(iter(starfile.read(one(tmp_path, name), always_dict=True))) == "particles"


def test_relion4_coordinates_are_unbinned_from_the_corner(tmp_path: Path) -> None:
    table = starfile.read(one(tmp_path, "relion4"), always_dict=True)["particles"]
    names = [f"rlnCoordinate{axis}" for axis in "XYZ"]
    assert table[names].to_numpy().tolist() == [[12, 8, 4], [12, 8, 16]]


def test_csv_is_the_canonical_table(tmp_path: Path) -> None:
    table = read_particles(one(tmp_path, "csv"))
    assert list(table["particle_id"]) == [1, 4]
    assert list(table["class"]) == ["4v94", "1bxn"]


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize(
    ("settings", "left"),
    [({}, 2), ({"min_score": 0.5}, 1), ({"min_score": 0.9}, 1), ({"classes": ["1bxn"]}, 1),
     ({"classes": ["1bxn"], "min_score": 0.5}, 0)],
)  # fmt: skip
def test_filters(name: str, settings: dict, left: int, tmp_path: Path) -> None:
    assert len(read_back(name, one(tmp_path, name, **settings))) == left


def read_back(name: str, path: Path) -> pd.DataFrame:
    """Annotations of a file of the tomogram TS_1 of `make`."""
    dataset = validated(DatasetSettings, DATASET, source="test")
    geometry = TomogramGeometry.of_given((20, 30, 40), 10.0, dataset)
    return DIALECTS[name].read(path, Place(geometry=geometry))


def test_unknown_names_list_the_known(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match="relion5, relion4, relion3, warp, dynamo, imod, eman2, copick, portal, csv",
    ):
        dialect("relion6")
    with pytest.raises(InputError, match="1bxn, 4v94"):
        one(tmp_path, classes=["4V94"])
    with pytest.raises(InputError, match="1bxn, 4v94"):
        one(tmp_path, rows=[], classes=["ribosome"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tilt_series_pixel_size_angstrom": 12.0}, "at most the tomogram's voxel size"),
        ({"unbinned_size_xyz": [40, 30, 20]}, "unbinned_size_xyz"),
    ],
)
def test_geometry_that_cannot_be_is_refused(change: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        export.run(
            make(tmp_path, "t1", ROWS), {"relion5": tmp_path / "x.star"},
            settings=ExportSettings(), dataset=DATASET | change,
            tilt_series="TS_1",
        )  # fmt: skip
    assert not (tmp_path / "x.star").exists()


def run_combine(tmp_path: Path, name: str, tables: dict[str, list], **settings) -> Path:
    made = [make(tmp_path, tomogram, rows) for tomogram, rows in tables.items()]
    folder = tmp_path / "export" / name
    combine.run(
        {
            "particles": [one["particles"] for one in made],
            "transforms": [one["transform"] for one in made],
            name: [str(tmp_path / t / "relion5.star") for t in tables],
        },
        {name: folder / DIALECTS[name].combined_name},
        settings=ExportSettings(**settings), dataset=DATASET,
        tilt_series=[f"TS_{tomogram}" for tomogram in tables],
    )  # fmt: skip
    return folder


TABLES = {"a": ROWS, "b": [], "c": [(1, "1bxn", 0.7)]}


def test_combined_relion5(tmp_path: Path) -> None:
    folder = run_combine(tmp_path, "relion5", TABLES)
    blocks = starfile.read(folder / "particles.star", always_dict=True)
    particles = blocks["particles"]
    assert list(particles["rlnTomoName"]) == ["TS_a", "TS_a", "TS_c"]
    assert list(particles["rlnTomoParticleName"]) == ["TS_a/1", "TS_a/4", "TS_c/1"]
    assert list(particles["rlnClassNumber"]) == [2, 1, 1]
    assert len(blocks["optics"]) == 1
    by_class = starfile.read(folder / "1bxn.star", always_dict=True)["particles"]
    assert list(by_class["rlnTomoParticleName"]) == ["TS_a/4", "TS_c/1"]
    assert len(starfile.read(folder / "4v94.star", always_dict=True)["particles"]) == 1


def test_import_list_names_the_files_that_have_particles(tmp_path: Path) -> None:
    folder = run_combine(tmp_path, "relion5", TABLES)
    listing = starfile.read(folder / "import.star", always_dict=True)["particles"]
    assert list(listing.columns) == ["rlnTomoName", "rlnTomoImportParticleFile"]
    assert list(listing["rlnTomoName"]) == ["TS_a", "TS_c"]
    assert list(listing["rlnTomoImportParticleFile"]) == [
        str(tmp_path.resolve() / name / "relion5.star") for name in ("a", "c")
    ]


def test_class_files_of_earlier_settings_go(tmp_path: Path) -> None:
    folder = run_combine(tmp_path, "relion5", TABLES)
    run_combine(tmp_path, "relion5", TABLES, classes=["1bxn"])
    assert shown(folder) == ["1bxn.star", "import.star", "particles.star"]


def shown(folder: Path) -> list[str]:
    """Files below a folder but for the list of them."""
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(path.as_posix() for path in files if path.name != LISTING)


@pytest.mark.parametrize("name", DIALECTS)
def test_nothing_of_an_earlier_set_is_left(name: str, tmp_path: Path) -> None:
    """Other classes, or a tomogram less: what is there is what a first run would have written."""
    folder = run_combine(tmp_path, name, TABLES)
    (folder / "mine.star").write_text("somebody's own\n")
    fewer = {"c": TABLES["c"]}
    run_combine(tmp_path, name, fewer, classes=["1bxn"])
    fresh = tmp_path / "fresh"
    run_combine(fresh, name, fewer, classes=["1bxn"])
    alike = [path.replace(str(fresh), str(tmp_path)) for path in shown(fresh / "export" / name)]
    kept = [path for path in shown(folder) if path != "mine.star"]
    assert [Path(p).name for p in kept] == [Path(p).name for p in alike]
    assert (folder / "mine.star").is_file()
    assert not [path for path in kept if "4v94" in path or "TS_a" in path]


# Names that a user may give a class of his own, each with a sign that some format trips over.
AWKWARD = (
    "70S ribosome", "α-β", "a_b", "a-b", "a b", "a-b-2", "A", "a", "#1", "-x", "..", "data_x",
    "loop_", "_z", "a,b", "$x", ";y", "[q]", "<b>", "x/y", "NA", "nan", "1e5", "0", "particles",
)  # fmt: skip


def awkward(folder: Path) -> dict[str, str]:
    """A tomogram with a particle of each awkward class, at x = 1, 2, ..."""
    made = make(folder, "t1", [(n, "1bxn", 0.5) for n in range(1, len(AWKWARD) + 1)])
    table = read_particles(made["particles"]).drop(columns=[f"p_{c}" for c in CLASSES])
    table["x_vox"], table["class"] = table["particle_id"].astype(float), list(AWKWARD)
    own = pd.DataFrame({f"p_{c}": [float(c == d) for d in AWKWARD] for c in AWKWARD})
    write_particles(made["particles"], pd.concat([table, own], axis=1))
    return made


@pytest.mark.parametrize("name", DIALECTS)
def test_classes_of_any_name_come_back(name: str, tmp_path: Path) -> None:
    path = tmp_path / "out" / DIALECTS[name].file_name
    export.run(awkward(tmp_path), {name: path}, settings=ExportSettings(), dataset=DATASET,
               tilt_series="TS_1")  # fmt: skip
    table = read_back(name, path)
    assert sorted(table["x_vox"].round(3)) == list(range(1, len(AWKWARD) + 1))
    if "class" in DIALECTS[name].keeps:
        by_place = {round(x): kind for x, kind in zip(table["x_vox"], table["class"], strict=True)}
        assert [by_place[n] for n in sorted(by_place)] == list(AWKWARD)


@pytest.mark.parametrize("name", DIALECTS)
def test_each_class_has_a_file_of_its_own_below_the_folder(name: str, tmp_path: Path) -> None:
    """No name leads out of the folder, none takes another one's file."""
    made = awkward(tmp_path / "in")
    folder = tmp_path / "out" / name
    combine.run(
        {"particles": [made["particles"]], "transforms": [made["transform"]]},
        {name: folder / DIALECTS[name].combined_name}, settings=ExportSettings(),
        dataset=DATASET, tilt_series=["TS_1"],
    )  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    files = shown(folder)
    assert len({file.casefold() for file in files}) == len(files)
    ending = {"dynamo": ".tbl", "csv": ".csv", "portal": ".ndjson", "copick": ".json"}.get(
        name, ".star"
    )
    own = [file for file in files if file.endswith(ending)]
    if name not in ("imod", "eman2"):  # these have a file a tomogram
        assert len(own) >= len(AWKWARD)
    if name == "portal":
        assert set(read_back(name, folder / "TS_1")["class"]) == set(AWKWARD)
    if name == "relion5":
        labels = starfile.read(folder / "particles.star", always_dict=True)["particles"].columns
        assert sum(label.startswith("tomolineProbability_") for label in labels) == len(AWKWARD)


@pytest.mark.parametrize(
    "series", ["../../evil", "/evil", "..", 'a "quoted" one', "it's", "a\nb", "back\\slash"]
)
def test_a_tilt_series_whose_name_no_file_can_have_is_refused(series: str, tmp_path: Path) -> None:
    made = make(tmp_path, "t1", ROWS)
    out = tmp_path / "results" / "out"
    with pytest.raises(InputError, match="column tilt_series"):
        combine.run(
            {"particles": [made["particles"]], "transforms": [made["transform"]]},
            {"copick": out / "copick_config.json"}, settings=ExportSettings(), dataset=DATASET,
            tilt_series=[series],
        )  # fmt: skip
    with pytest.raises(InputError, match="column tilt_series"):
        export.run(made, {"copick": out / "copick_config.json"}, settings=ExportSettings(),
                   dataset=DATASET, tilt_series=series)  # fmt: skip
    assert not (tmp_path / "results").exists()


def test_tilt_series_whose_files_would_have_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'TS 1' and 'ts_1'"):
        check_tilt_series(["TS 1", "TS_2", "ts_1"])
    check_tilt_series(["TS 1", "TS_2", "α", "#3", "-4"])


def test_it_is_said_why_nothing_was_exported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file without rows is legal, and easily taken for a fault of the program that reads it."""
    for rows, said in ((ROWS, "none of the 2 accepted particles meets export.min_score = 0.95"),
                       ([], "no particles were found")):  # fmt: skip
        caplog.clear()
        with caplog.at_level("WARNING"):
            one(tmp_path, rows=rows, min_score=0.95)
            run_combine(tmp_path, "csv", {"a": rows}, min_score=0.95)
        assert [said in record.getMessage() for record in caplog.records] == [True, True]


def test_a_path_that_a_program_cannot_take_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = make(tmp_path, "t1", ROWS)
    transform = Path(made["transform"])
    raw = json.loads(transform.read_text())
    transform.write_text(json.dumps(raw | {"source": "/data/my session/t1.mrc"}))
    outputs = {name: tmp_path / "o" / DIALECTS[name].file_name for name in DIALECTS}
    with caplog.at_level("WARNING"):
        export.run(made, outputs, settings=ExportSettings(), dataset=DATASET, tilt_series="TS_1")
    assert [record.args[0] for record in caplog.records] == ["relion3", "dynamo"]


def test_combined_relion4_and_csv(tmp_path: Path) -> None:
    folder = run_combine(tmp_path, "relion4", TABLES)
    assert len(starfile.read(folder / "particles.star", always_dict=True)["particles"]) == 3
    table = read_particles(run_combine(tmp_path, "csv", TABLES) / "particles.csv")
    assert list(table["tomogram"]) == ["a", "a", "c"]


@pytest.mark.parametrize("name", DIALECTS)
def test_a_dataset_without_particles(name: str, tmp_path: Path) -> None:
    folder = run_combine(tmp_path, name, {"a": [], "b": [(1, "", 0.1)]})
    assert (folder / DIALECTS[name].combined_name).is_file()
    for path in folder.rglob("*"):
        if path.suffix == ".csv":
            listed = 2 if path.name == "index.csv" and name == "eman2" else 0
            listed = len(CLASSES) if path.name.endswith("classes.csv") else listed
            assert len(pd.read_csv(path)) == listed
        elif path.suffix == ".star" and path.name != "micrographs.star":
            assert len(next(iter(starfile.read(path, always_dict=True).values()))) == 0
        elif path.suffix in (".tbl", ".txt"):
            assert path.read_text() == ""
        assert path.suffix != ".ndjson"
        assert path.parent.name != "Picks"


@pytest.mark.parametrize("name", DIALECTS)
def test_combined_files_hold_each_tomogram_and_class(name: str, tmp_path: Path) -> None:
    """Of every dialect the whole data set comes back, and each class's own file its own."""
    folder = run_combine(tmp_path, name, TABLES)
    found = 0
    for series, file in (("TS_a", "TS_a"), ("TS_c", "TS_c")):
        path = {
            "imod": folder / f"{file}.txt",
            "eman2": folder / "info" / f"{file}_info.json",
            "portal": folder / file,
        }.get(name, folder / DIALECTS[name].combined_name)
        # csv knows tomograms and not tilt series, Dynamo their files
        place = Place(
            geometry=TomogramGeometry.of_given(
                (20, 30, 40), 10.0, validated(DatasetSettings, DATASET, source="test")
            ),
            is_named=lambda own, series=series: series[-1] == Path(own).stem[-1],
        )
        table = DIALECTS[name].read(path, place)
        assert sorted(table["class"]) == (["1bxn", "4v94"] if series == "TS_a" else ["1bxn"])
        found += len(table)
    assert found == 3
    suffixes = {"relion5": "star", "relion4": "star", "relion3": "star", "warp": "star",
                "dynamo": "tbl", "csv": "csv"}  # fmt: skip
    if name in suffixes:
        path = folder / f"4v94.{suffixes[name]}"
        assert set(read_back(name, path)["class"]) == {"4v94"}


def test_warp_files_of_several_voxel_sizes_are_in_the_firsts(tmp_path: Path) -> None:
    """Warp is told one --coords_angpix: 10 A in voxels of 12 A are 1.2 voxels of 10 A."""
    made = [make(tmp_path, name, [(1, "1bxn", 0.7)]) for name in ("a", "b")]
    other = Path(made[1]["transform"])
    raw = json.loads(other.read_text())
    other.write_text(json.dumps(raw | {"given_voxel_size_angstrom": 12.0}))
    combine.run(
        {"particles": [m["particles"] for m in made], "transforms": [m["transform"] for m in made]},
        {"warp": tmp_path / "out" / "particles.star"}, settings=ExportSettings(),
        dataset={"name": "d", "sheet": "d.tsv"}, tilt_series=["a", "b"],
    )  # fmt: skip
    path = tmp_path / "out" / "particles.star"
    assert path.read_text().startswith("# --coords_angpix 10.0\n")
    table = next(iter(starfile.read(path, always_dict=True).values()))
    assert list(table["rlnCoordinateX"]) == pytest.approx([3.0, 3.6])


def test_a_file_that_is_not_turned_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = make(tmp_path, "t1", ROWS)
    transform = Path(made["transform"])
    raw = json.loads(transform.read_text())
    transform.write_text(json.dumps(raw | {"axes": "xzy"}))
    with caplog.at_level("WARNING"):
        export.run(
            made, {name: tmp_path / "o" / DIALECTS[name].file_name for name in ("warp", "dynamo")},
            settings=ExportSettings(), dataset=DATASET, tilt_series="TS_1",
        )  # fmt: skip
    assert [record.args[0] for record in caplog.records] == ["dynamo"]


def test_the_setting_names_every_dialect() -> None:
    description = ExportSettings.model_fields["dialects"].description or ""
    assert all(name in description.replace(",", " ").split() for name in DIALECTS)


def test_pixel_sizes_get_optics_groups_of_their_own(tmp_path: Path) -> None:
    made = [make(tmp_path, name, [(1, "1bxn", 0.7)]) for name in ("a", "b")]
    other = Path(made[1]["transform"])
    raw = json.loads(other.read_text())
    other.write_text(json.dumps(raw | {"given_voxel_size_angstrom": 12.0}))
    combine.run(
        {"particles": [m["particles"] for m in made], "transforms": [m["transform"] for m in made]},
        {"relion5": tmp_path / "out" / "particles.star"}, settings=ExportSettings(),
        dataset={"name": "d", "sheet": "d.tsv"}, tilt_series=["a", "b"],
    )  # fmt: skip
    blocks = starfile.read(tmp_path / "out" / "particles.star", always_dict=True)
    assert list(blocks["optics"]["rlnTomoTiltSeriesPixelSize"]) == [10, 12]
    assert list(blocks["particles"]["rlnOpticsGroup"]) == [1, 2]


def test_two_tomograms_of_one_tilt_series_are_refused(tmp_path: Path) -> None:
    made = make(tmp_path, "a", ROWS)
    with pytest.raises(InputError, match="TS more than once"):
        combine.run(
            {"particles": [made["particles"]] * 2, "transforms": [made["transform"]] * 2},
            {"relion5": tmp_path / "out" / "particles.star"}, settings=ExportSettings(),
            dataset=DATASET, tilt_series=["TS", "TS"],
        )  # fmt: skip


def add_precision(path: str, values: list[float]) -> None:
    table = read_particles(path)
    table.insert(table.columns.get_loc("margin") + 1, "expected_precision", values)
    write_particles(path, table)


# What can hold columns of our own.
HOLD_PRECISION = ("csv", "relion3", "relion4", "relion5", "warp")


@pytest.mark.parametrize("name", HOLD_PRECISION)
def test_the_expected_precision_is_kept_and_can_be_asked_for(name: str, tmp_path: Path) -> None:
    inputs = make(tmp_path, "t1", ROWS)
    add_precision(inputs["particles"], [0.99, 0.9, 0.6])
    for least, left in ((0.0, [0.99, 0.6]), (0.7, [0.99])):
        path = tmp_path / "out" / DIALECTS[name].file_name
        export.run(
            inputs, {name: path}, settings=ExportSettings(min_expected_precision=least),
            dataset=DATASET, tilt_series="TS_1",
        )  # fmt: skip
        if name == "csv":
            found = read_particles(path)["expected_precision"]
        else:
            blocks = starfile.read(path, always_dict=True)
            block = blocks.get("particles", next(iter(blocks.values())))
            found = block["tomolineExpectedPrecision"]
        assert list(found) == left


def test_asking_for_a_precision_that_no_model_gave_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tomoline calibrate"):
        one(tmp_path, min_expected_precision=0.5)


@pytest.mark.parametrize("name", HOLD_PRECISION)
def test_tables_of_different_cards_combine_without_the_column(name: str, tmp_path: Path) -> None:
    inputs = [make(tmp_path, name, ROWS) for name in ("t1", "t2")]
    add_precision(inputs[0]["particles"], [0.99, 0.9, 0.6])
    folder = tmp_path / "all"
    combine.run(
        {"particles": [i["particles"] for i in inputs],
         "transforms": [i["transform"] for i in inputs]},
        {name: folder / DIALECTS[name].combined_name}, settings=ExportSettings(),
        dataset=DATASET, tilt_series=["TS_1", "TS_2"],
    )  # fmt: skip
    text = (folder / DIALECTS[name].combined_name).read_text()
    assert "xpected" not in text and ("TS_2" in text or "t2" in text)
