"""Onboarding: a verdict and a reason for every file, and nothing of the human's is lost."""

from __future__ import annotations

import bz2
import gzip
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from PIL import Image

from tomoline.errors import InputError
from tomoline.io.mrc import write_volume
from tomoline.io.sheet import SheetRow, load_dataset, read_sheet, write_sheet
from tomoline.stages.names import file_stem, natural_name, safe_name, tilt_series_name
from tomoline.stages.onboard import Outcome, Request, format_outcome, onboard

SHAPE = (52, 88, 84)  # 520 A thick at 10 A


def specimen(shape: tuple[int, int, int] = SHAPE, *, sign: float = -1.0) -> np.ndarray:
    """Noise with balls, dark where the sign is negative."""
    rng = np.random.default_rng(1)
    data = rng.normal(0, 1, shape).astype(np.float32)
    grid = np.indices(shape, dtype=np.float32)
    for z, y, x in ((0.5, 0.3, 0.3), (0.5, 0.7, 0.6), (0.45, 0.4, 0.75)):
        centre = np.array((z, y, x)) * shape
        distance = sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True))
        data[distance <= 25] += sign * 4
    return data


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.mrc"
    write_volume(path, specimen(), 10.0)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def run(project: Path, *paths: Path, name: str = "mine", **options: object) -> Outcome:
    return onboard(Request(name=name, paths=paths, **options), project=project)  # type: ignore[arg-type]


def only_row(project: Path, path: Path, **options: object) -> SheetRow:
    (row,) = run(project, path, **options).rows
    assert load_dataset("mine", folder=project / "config/datasets")[1] == [row]
    return row


def patched(source: Path, target: Path, *edits: tuple[int, str, tuple[float, ...]]) -> Path:
    """Copy a file and overwrite header values: (offset, dtype, values)."""
    raw = bytearray(source.read_bytes())
    for offset, kind, values in edits:
        new = np.array(values, kind).tobytes()
        raw[offset : offset + len(new)] = new
    target.write_bytes(raw)
    return target


def with_voxel(source: Path, target: Path, xyz: tuple[float, float, float]) -> Path:
    """Copy a file with another voxel size (cell = size times voxels)."""
    cell = tuple(v * n for v, n in zip(xyz, SHAPE[::-1], strict=True))
    return patched(source, target, (40, "<f4", cell))


# --- verdicts


def test_good_file_is_ok_with_its_facts(project: Path, good: Path) -> None:
    row = only_row(project, good)
    assert (row.verdict, row.use, row.reason) == ("ok", "yes", "")
    assert (row.nz, row.ny, row.nx) == SHAPE
    assert (row.mode, row.axes, row.voxel_size_angstrom) == (2, "xyz", 10.0)
    assert (row.tomogram, row.tilt_series) == ("good", "good")
    assert row.file_bytes == good.stat().st_size


@pytest.mark.parametrize("pack", [(gzip.compress, ".gz"), (bz2.compress, ".bz2")])
def test_compressed_files_are_as_good(
    project: Path, data: Path, good: Path, pack: tuple[Callable[[bytes], bytes], str]
) -> None:
    path = data / f"good_rec.mrc{pack[1]}"
    path.write_bytes(pack[0](good.read_bytes()))
    row = only_row(project, path)
    assert (row.verdict, row.tomogram) == ("ok", "good")


@pytest.mark.parametrize("size", [0.0, 1.0])
def test_voxel_size_that_says_nothing_is_refused_until_given(
    project: Path, data: Path, good: Path, size: float
) -> None:
    path = with_voxel(good, data / "a.mrc", (size, size, size))
    row = only_row(project, path)
    assert (row.verdict, row.use) == ("refused", "no")
    assert "--voxel-size" in row.reason
    again = run(project, path, voxel_size_angstrom=10.0)
    assert (again.rows[0].verdict, again.rows[0].use) == ("warning", "yes")
    assert "10 A, as given, is used" in again.rows[0].reason
    assert again.dataset.voxel_size_angstrom == 10.0
    # the next run without the option keeps it
    assert run(project, path).rows[0].verdict == "warning"


def test_voxel_size_given_against_the_header_is_told(project: Path, good: Path) -> None:
    row = only_row(project, good, voxel_size_angstrom=7.5)
    assert row.verdict == "warning"
    assert "the header says 10 A; 7.5 A, as given, is used" in row.reason


def test_voxel_sizes_that_disagree_between_files_are_told(
    project: Path, data: Path, good: Path
) -> None:
    for name in ("a.mrc", "b.mrc"):
        shutil.copy(good, data / name)
    with_voxel(good, data / "c.mrc", (12.0, 12.0, 12.0))
    rows = {row.tomogram: row for row in run(project, data).rows}
    assert [rows[name].verdict for name in "abc"] == ["ok", "ok", "warning"]
    assert "voxel size 12 A, others of the dataset have 10 A" in rows["c"].reason


def test_anisotropic_voxels_are_refused_unless_overridden(
    project: Path, data: Path, good: Path
) -> None:
    path = with_voxel(good, data / "a.mrc", (10.0, 10.0, 12.0))
    assert "anisotropic voxels (10, 10, 12 A)" in only_row(project, path).reason
    row = only_row(project, path, voxel_size_angstrom=10.0)
    assert row.verdict == "warning"
    assert "anisotropic" in row.reason


def test_voxel_size_outside_the_models_range_by_what_rescaling_can_do(
    project: Path, good: Path
) -> None:
    row = only_row(project, good, voxel_range_angstrom=(2.0, 8.0))
    assert (row.verdict, row.use) == ("warning", "yes")
    assert "the model reads 2 to 8 A" in row.reason
    fine = run(project, good, name="fine", voxel_range_angstrom=(12.0, 14.0))
    assert fine.rows[0].verdict == "ok"  # it is brought to the model's
    never = run(project, good, name="b", voxel_range_angstrom=(2.0, 8.0), rescaled=False)
    assert never.rows[0].verdict == "refused"


def test_bad_stamp_that_the_size_settles_is_a_warning(
    project: Path, data: Path, good: Path
) -> None:
    path = patched(good, data / "a.mrc", (212, "u1", (0, 0, 0, 0)))
    row = only_row(project, path)
    assert row.verdict == "warning"
    assert "stamp" in row.reason


def test_truncated_file_is_refused(project: Path, data: Path, good: Path) -> None:
    path = data / "a.mrc"
    path.write_bytes(good.read_bytes()[:-1000])
    row = only_row(project, path)
    assert (row.verdict, row.use) == ("refused", "no")
    assert "truncated" in row.reason


def test_file_that_is_no_volume_is_refused(project: Path, data: Path) -> None:
    path = data / "a.mrc"
    path.write_text("not a volume\n" * 200)
    assert "text file" in only_row(project, path).reason


def test_complex_mode_is_refused(project: Path, data: Path, good: Path) -> None:
    path = patched(good, data / "a.mrc", (12, "<i4", (4,)))
    row = only_row(project, path)
    assert row.verdict == "refused"
    assert "mode 4" in row.reason


def test_constant_volume_is_refused(project: Path, data: Path) -> None:
    write_volume(data / "a.mrc", np.full(SHAPE, 3, np.int8), 10.0)
    assert "constant" in only_row(project, data / "a.mrc").reason


@pytest.mark.parametrize(
    ("share", "verdict", "words"),
    [(1.0, "refused", "every voxel"), (0.2, "refused", "NaN"), (2e-6, "warning", "repaired")],
)
def test_nan_by_its_share(
    project: Path, data: Path, share: float, verdict: str, words: str
) -> None:
    volume = specimen()
    volume.reshape(-1)[: max(1, int(share * volume.size))] = np.nan
    write_volume(data / "a.mrc", volume, 10.0)
    row = only_row(project, data / "a.mrc")
    assert row.verdict == verdict
    assert words in row.reason


def test_thin_and_small_volumes_are_told_and_images_refused(project: Path, data: Path) -> None:
    write_volume(data / "thin.mrc", specimen((30, 90, 90)), 10.0)
    write_volume(data / "small.mrc", specimen((40, 40, 40)), 10.0)
    write_volume(data / "image.mrc", specimen((1, 90, 90)), 10.0)
    write_volume(data / "stub.mrc", specimen((4, 90, 90)), 10.0)
    rows = {row.tomogram: row for row in run(project, data).rows}
    assert (rows["thin"].verdict, rows["small"].verdict) == ("warning", "warning")
    assert "thin (30 sections, 300 A)" in rows["thin"].reason
    assert "subtomogram" in rows["small"].reason
    assert (rows["image"].verdict, rows["stub"].verdict) == ("refused", "refused")
    assert "an image, not a volume" in rows["image"].reason


def test_empty_sections_are_told(project: Path, data: Path) -> None:
    volume = specimen((72, 88, 84))
    volume[:16] = 0
    write_volume(data / "a.mrc", volume, 10.0)
    assert "of the sections are empty" in only_row(project, data / "a.mrc").reason


# --- axes


def labelled(path: Path, volume: np.ndarray, *labels: str) -> Path:
    write_volume(path, volume, 10.0)
    with mrcfile.open(path, mode="r+", permissive=True) as file:
        file.header.nlabl = len(labels)
        for k, label in enumerate(labels):
            file.header.label[k] = label.encode()
    return path


TILT = "TILT: Tomographic reconstruction"
ROTX = "clip: rotx - rotation by -90 around X"


def test_swapped_volume_gets_xzy_and_the_same_picture(project: Path, data: Path) -> None:
    volume = specimen()
    labelled(data / "straight_rec.mrc", volume, TILT, ROTX)
    raw = np.ascontiguousarray(volume[::-1].transpose(1, 0, 2))  # as `tilt` writes: (y, depth, x)
    labelled(data / "swapped.mrc", raw, TILT)
    rows = {row.tomogram: row for row in run(project, data).rows}
    assert (rows["straight"].axes, rows["straight"].verdict) == ("xyz", "ok")
    assert (rows["swapped"].axes, rows["swapped"].verdict) == ("xzy", "warning")
    assert "y and z are swapped" in rows["swapped"].reason
    pictures = project / "config/datasets/mine_thumbnails"
    assert (pictures / "straight.png").read_bytes() == (pictures / "swapped.png").read_bytes()


def test_shape_alone_tells_a_swapped_volume_and_the_option_overrules_it(
    project: Path, data: Path
) -> None:
    write_volume(data / "a.mrc", specimen((88, 52, 84)), 10.0)
    assert only_row(project, data / "a.mrc").axes == "xzy"
    assert run(project, data / "a.mrc", name="other", axes="xyz").rows[0].axes == "xyz"


def test_label_alone_tells_where_the_shape_does_not(project: Path, data: Path) -> None:
    row = only_row(project, labelled(data / "a.mrc", specimen((84, 84, 84)), TILT))
    assert (row.axes, row.verdict) == ("xzy", "warning")


def test_label_against_the_shape_is_told(project: Path, data: Path) -> None:
    row = only_row(project, labelled(data / "a.mrc", specimen(), TILT))
    assert (row.axes, row.verdict) == ("xyz", "warning")


def test_mirrored_volume_is_told(project: Path, data: Path) -> None:
    row = only_row(project, labelled(data / "a.mrc", specimen(), TILT, "clip: flipyz"))
    assert (row.axes, row.verdict) == ("xyz", "warning")
    assert "mirrors" in row.reason


# --- contrast


def test_bright_volume_is_told_and_not_turned(project: Path, data: Path) -> None:
    write_volume(data / "a.mrc", specimen(sign=1.0), 10.0)
    first = run(project, data)
    assert first.dataset.contrast == "dark"
    assert "look bright" in first.rows[0].reason
    assert any("dark is assumed" in note for note in first.notes)
    second = run(project, data, contrast="bright")
    assert (second.dataset.contrast, second.rows[0].verdict) == ("bright", "ok")
    assert load_dataset("mine", folder=project / "config/datasets")[0].contrast == "bright"


def test_settings_edited_by_hand_are_followed_when_asked(
    project: Path, data: Path, good: Path
) -> None:
    shutil.copy(good, data / "a.mrc")
    settings = run(project, data).settings_file
    edited = settings.read_text().replace('contrast: "dark"', "contrast: bright  # mine")
    settings.write_text(edited)
    outcome = run(project, data, again=True)
    assert (outcome.judged_again, outcome.rows[0].verdict) == (("a",), "warning")
    assert settings.read_text() == edited


def test_noise_says_nothing_about_contrast(project: Path, data: Path) -> None:
    noise = np.random.default_rng(3).normal(0, 1, SHAPE).astype(np.float32)
    write_volume(data / "a.mrc", noise, 10.0)
    assert only_row(project, data / "a.mrc").verdict == "ok"


def test_change_of_contrast_judges_all_rows_again(project: Path, data: Path, good: Path) -> None:
    shutil.copy(good, data / "a.mrc")
    run(project, data)
    write_volume(data / "b.mrc", specimen(sign=1.0), 10.0)
    rows = run(project, data / "b.mrc", contrast="bright").rows
    assert [row.verdict for row in rows] == ["warning", "ok"]


# --- names


@pytest.mark.parametrize(
    ("file", "name", "series"),
    [
        ("TS_01.mrc", "TS_01", "TS_01"),
        ("TS_01_rec.mrc", "TS_01", "TS_01"),
        ("rec_TS_01.mrc", "TS_01", "TS_01"),
        ("TS_01_Vol.mrc.gz", "TS_01", "TS_01"),
        ("TS_01_full_rec.rec.bz2", "TS_01", "TS_01"),
        ("TS_01_10.00Apx.mrc", "TS_01", "TS_01"),
        ("TS_01_bin4.rec", "TS_01_bin4", "TS_01"),
        ("TS_01_EVN_Vol.mrc", "TS_01_EVN", "TS_01"),
        ("lam1.ts2.mrc", "lam1.ts2", "lam1.ts2"),
        ("reconstruction.mrc", "model_3", "model_3"),
        ("reconstruction_model_9.mrc", "model_9", "model_9"),
        ("rec.mrc", "model_3", "model_3"),
    ],
)
def test_names_lose_their_affixes(tmp_path: Path, file: str, name: str, series: str) -> None:
    assert natural_name(tmp_path / "model_3" / file) == name
    assert tilt_series_name(name) == series


@pytest.mark.parametrize(
    "name", ["../../etc", "..", "", "a b", "-rf", "x" * 300, "ß", "a\nb", "export", ".hidden"]
)
def test_safe_names_stay_inside_results(tmp_path: Path, name: str) -> None:
    path = (tmp_path / "results" / safe_name(name)).resolve()
    assert path.parent == (tmp_path / "results").resolve()
    assert safe_name(safe_name(name)) == safe_name(name)
    assert safe_name(name) != "export"


def test_unsafe_file_name_is_made_safe_and_told(project: Path, data: Path, good: Path) -> None:
    path = data / "grid 2  (copy).mrc"
    shutil.copy(good, path)
    row = only_row(project, path)
    assert (row.tomogram, row.verdict, row.use) == ("grid_2_copy", "warning", "yes")
    assert Path(row.path) == path  # both blanks are still there


@pytest.mark.parametrize("name", ["../x", "a/b", "", "a b", ".."])
def test_unsafe_dataset_name_is_refused(project: Path, good: Path, name: str) -> None:
    with pytest.raises(InputError, match="dataset name"):
        run(project, good, name=name)
    assert not any(project.iterdir())


def test_duplicate_names_are_refused_until_renamed(project: Path, data: Path, good: Path) -> None:
    for name in ("TS_1.mrc", "ts_1_rec.mrc", "rec_TS_1.mrc"):
        shutil.copy(good, data / name)
    outcome = run(project, data)
    assert sorted(row.use for row in outcome.rows) == ["no", "no", "yes"]
    refused = [row for row in outcome.rows if row.verdict == "refused"]
    assert all(row.reason.startswith("duplicate name: ") for row in refused)
    sheet = outcome.sheet_file
    rows = read_sheet(sheet)
    renamed = [
        row.model_copy(update={"tomogram": "TS_2"}) if row.path == refused[0].path else row
        for row in rows
    ]
    write_sheet(sheet, renamed)
    again = {row.path: row for row in run(project, data).rows}[refused[0].path]
    assert (again.tomogram, again.use) == ("TS_2", "yes")


def test_tomograms_of_one_tilt_series_are_told(project: Path, data: Path, good: Path) -> None:
    for name in ("TS_1.mrc", "TS_1_denoised.mrc"):
        shutil.copy(good, data / name)
    rows = run(project, data).rows
    assert [row.verdict for row in rows] == ["ok", "warning"]
    assert "same tilt series (TS_1) as TS_1" in rows[1].reason
    assert [row.tilt_series for row in rows] == ["TS_1", "TS_1_denoised"]
    # a further run, with every row judged again, says the same of the same row
    rows = run(project, data, voxel_size_angstrom=10.0).rows
    assert [row.verdict for row in rows] == ["ok", "warning"]


def test_stem_keeps_inner_dots() -> None:
    assert file_stem(Path("a.b.MRC.GZ")) == "a.b"


# --- which files


def test_folder_order_pattern_and_what_is_left_out(project: Path, data: Path, good: Path) -> None:
    for name in ("TS_10.mrc", "TS_2.mrc", "TS_2.st", "TS_2.mrc~", ".TS_3.mrc", "sub/TS_4.rec"):
        (data / name).parent.mkdir(exist_ok=True)
        shutil.copy(good, data / name)
    assert [row.tomogram for row in run(project, data).rows] == ["TS_2", "TS_10", "TS_4"]
    chosen = run(project, data, name="b", pattern="TS_1*.mrc")
    assert [row.tomogram for row in chosen.rows] == ["TS_10"]


def test_no_files_and_missing_paths_are_refused(project: Path, data: Path) -> None:
    with pytest.raises(InputError, match="none"):
        run(project, data)
    with pytest.raises(InputError, match="no such file"):
        run(project, data / "absent")
    with pytest.raises(InputError, match="--pattern"):
        run(project, data, pattern="/etc/*")
    assert not any(project.iterdir())


def test_control_characters_in_a_path_are_refused(project: Path, data: Path, good: Path) -> None:
    shutil.copy(good, data / "a\tb.mrc")
    with pytest.raises(InputError, match="control character"):
        run(project, data)


def test_paths_below_the_project_are_relative(project: Path, good: Path) -> None:
    inside = project / "data" / "a.mrc"
    inside.parent.mkdir()
    shutil.copy(good, inside)
    assert only_row(project, inside).path == "data/a.mrc"


# --- truth


def test_shrec_folders_of_all_years(project: Path, data: Path, good: Path) -> None:
    names = {
        "model_0": ("reconstruction.mrc", "particle_locations.txt", "occupancy_mask.mrc"),
        "9": ("reconstruction_model_9.mrc", "particle_locations_model_9.txt", "hitbox_9.mrc"),
    }
    for folder, files in names.items():
        (data / folder).mkdir()
        for file in (*files, "grandmodel.mrc", "class_mask.mrc"):
            shutil.copy(good, data / folder / file)
    outcome = run(project, data)
    rows = {row.tomogram: row for row in outcome.rows}
    assert set(rows) == {"model_0", "model_9"}
    assert len(outcome.skipped) == 6
    for folder, name in (("model_0", "model_0"), ("9", "model_9")):
        files = names[folder]
        assert rows[name].truth == str(data / folder / files[1])
        assert rows[name].occupancy == str(data / folder / files[2])


def test_tables_beside_tomograms_and_given_truth(project: Path, data: Path, good: Path) -> None:
    for name in ("a.mrc", "b_bytes_rec.mrc", "c_bin4.mrc", "d.mrc", "d_occupancy.mrc.gz"):
        shutil.copy(good, data / name)
    for name in ("a", "b", "c"):
        (data / f"{name}_particles.csv").write_text("x,y,z,cls\n")
    (data / "a_truth.npz").write_bytes(b"")
    (data / "d_particle_locations.txt").write_text("1bxn 1 2 3 0 0 0\n")
    rows = {row.tomogram: row for row in run(project, data).rows}
    assert Path(rows["a"].truth).name == "a_particles.csv"
    assert Path(rows["a"].occupancy).name == "a_truth.npz"
    assert Path(rows["b_bytes"].truth).name == "b_particles.csv"
    assert rows["c_bin4"].truth == ""  # that table is in other voxels
    assert Path(rows["d"].truth).name == "d_particle_locations.txt"
    assert Path(rows["d"].occupancy).name == "d_occupancy.mrc.gz"
    given = run(project, data, truth=(f"c_bin4={data / 'c_particles.csv'}",))
    assert Path({row.tomogram: row for row in given.rows}["c_bin4"].truth).name == "c_particles.csv"
    assert run(project, data / "a.mrc", name="x", truth=("none",)).rows[0].truth == ""
    for wrong in ("nobody=x.csv", f"a={data / 'absent.csv'}", "x.csv"):
        with pytest.raises(InputError):
            run(project, data, truth=(wrong,))


# --- running it again


def test_second_run_changes_nothing(project: Path, data: Path, good: Path) -> None:
    shutil.copy(good, data / "a.mrc")
    outcome = run(project, data)
    before = {p: p.read_bytes() for p in (project / "config").rglob("*") if p.is_file()}
    again = run(project, data)
    assert (again.added, again.changed, again.judged_again) == ((), (), ())
    assert again.rows == outcome.rows
    assert {p: p.read_bytes() for p in (project / "config").rglob("*") if p.is_file()} == before


def test_second_run_adds_what_is_new_and_keeps_human_edits(
    project: Path, data: Path, good: Path
) -> None:
    shutil.copy(good, data / "a.mrc")
    outcome = run(project, data)
    edits = {"use": "no", "tomogram": "renamed", "tilt_series": "TS_7", "axes": "xzy"}
    row = SheetRow(**(read_sheet(outcome.sheet_file)[0].model_dump() | edits), note="icy")
    write_sheet(outcome.sheet_file, [row])
    text = outcome.settings_file.read_text().replace("voltage_kv: 300.0", "voltage_kv: 200  # ours")
    outcome.settings_file.write_text(text)
    (project / "config/datasets/mine_thumbnails/a.png").rename(
        project / "config/datasets/mine_thumbnails/renamed.png"
    )
    shutil.copy(good, data / "b.mrc")
    again = run(project, data, voxel_size_angstrom=10.0)
    assert again.added == ("b",)
    first, second = read_sheet(outcome.sheet_file)
    assert {key: getattr(first, key) for key in edits} == edits
    assert first.model_extra == {"note": "icy"}
    assert (second.tomogram, second.use, second.model_extra) == ("b", "yes", {"note": ""})
    assert "voltage_kv: 200  # ours" in outcome.settings_file.read_text()
    assert again.dataset.voltage_kv == 200


def test_changed_and_removed_files_are_named(project: Path, data: Path, good: Path) -> None:
    for name in ("a.mrc", "b.mrc"):
        shutil.copy(good, data / name)
    run(project, data)
    (data / "a.mrc").write_bytes(good.read_bytes()[:-100])
    (data / "b.mrc").unlink()
    again = run(project, data)
    assert (again.changed, again.gone, again.added) == (("a",), ("b",), ())
    assert [row.use for row in again.rows] == ["no", "no"]
    assert "truncated" in again.rows[0].reason
    assert again.rows[1].reason == "the file is gone"
    for name in ("a.mrc", "b.mrc"):
        shutil.copy(good, data / name)
    back = run(project, data)
    assert [(row.use, row.verdict) for row in back.rows] == [("yes", "ok"), ("yes", "ok")]


def test_human_no_survives_a_change_of_the_file(project: Path, data: Path, good: Path) -> None:
    shutil.copy(good, data / "a.mrc")
    outcome = run(project, data)
    write_sheet(outcome.sheet_file, [outcome.rows[0].model_copy(update={"use": "no"})])
    os.utime(data / "a.mrc", ns=(1, 1))
    again = run(project, data)
    assert (again.changed, again.rows[0].use) == (("a",), "no")


# --- what is shown


def test_picture_is_small_and_grey(project: Path, data: Path) -> None:
    write_volume(data / "a.mrc", np.tile(specimen((16, 88, 84)), (1, 4, 6)), 10.0)
    run(project, data)
    picture = Image.open(project / "config/datasets/mine_thumbnails/a.png")
    assert picture.mode == "L"
    assert max(picture.size) <= 256
    assert np.ptp(np.asarray(picture)) == 255


def test_print_out_has_each_reason_and_the_next_command(
    project: Path, data: Path, good: Path
) -> None:
    shutil.copy(good, data / "a.mrc")
    (data / "b.mrc").write_text("nothing")
    text = format_outcome(run(project, data), command="snakemake --cores all")
    assert "2 tomograms (1 ok, 0 warning, 1 refused); 2 new, 1 to be run" in text
    assert "text file" in text
    assert text.endswith("  snakemake --cores all\n")
    nothing = format_outcome(run(project, data / "b.mrc", name="c"), command="snakemake")
    assert "nothing to run yet" in nothing
    assert "snakemake" not in nothing
