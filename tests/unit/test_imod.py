"""IMOD's programs are started, checked and located in space. Stand-ins take their place here."""

import json
import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from tomoline.errors import ToolError
from tomoline.io import imod
from tomoline.io.mrc import open_volume, read_header, to_zyx, write_volume

# Does what trimvol -rx, binvol, newstack -shrink/-expand and point2model of IMOD 4.8 do, as their
# sources have it: binning averages blocks from the corner on, newstack scales about the centre of
# the section and moves the origin by what is cut off.
STAND_IN = """#!{python}
import json, os, sys
import numpy as np
from tomoline.io.mrc import open_volume, read_header, write_volume
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
with open({record!r}, "a") as stream:
    stream.write(json.dumps([name, *arguments]) + "\\n")
if arguments == ["-help"]:
    print("Usage: point2model Version 4.9.12 Feb 13 2020")
    sys.exit(0)
if os.environ.get("FAKE_FAIL") == name:
    print("ERROR: " + name.upper() + " - NO LICENCE TO BIN")
    sys.exit(3)
assert "IMOD_DIR" in os.environ
source, target = arguments[-2:]
if os.environ.get("FAKE_SILENT") == name:
    sys.exit(0)
if name == "point2model":
    open(target, "wb").write(b"IMODV1.2" + b"0" * 40)
    sys.exit(0)
header = read_header(source)
volume = np.array(open_volume(source), np.float32)
origin, voxel = np.array(header.origin_xyz), header.voxel_size_xyz[0]
if name == "trimvol":
    write_volume(target, volume.transpose(1, 0, 2)[::-1].copy(), voxel)
elif name == "binvol":
    n = int(arguments[1])
    nz, ny, nx = (size // n for size in volume.shape)
    cut = volume[: nz * n, : ny * n, : nx * n]
    out = cut.reshape(nz, n, ny, n, nx, n).mean(axis=(1, 3, 5), dtype=np.float64)
    write_volume(target, out.astype(np.float32), voxel * n, origin_xyz_angstrom=tuple(origin))
else:
    from scipy.ndimage import map_coordinates
    f = float(arguments[1])
    scale = f if arguments[0] == "-shrink" else 1 / f
    nz, ny, nx = volume.shape
    my, mx = (int(ny / scale), int(nx / scale))
    corner = (ny - my * scale) / 2, (nx - mx * scale) / 2
    y = (np.arange(my) + 0.5) * scale - 0.5 + corner[0]
    x = (np.arange(mx) + 0.5) * scale - 0.5 + corner[1]
    grid = np.stack(np.meshgrid(y, x, indexing="ij"))
    out = np.stack([map_coordinates(s, grid, order=3, mode="nearest") for s in volume])
    origin[:2] -= np.array([corner[1], corner[0]]) * voxel
    write_volume(target, out.astype(np.float32), voxel, origin_xyz_angstrom=tuple(origin))
    raw = bytearray(open(target, "rb").read())
    raw[40:48] = np.array([mx, my], "<f4").tobytes()
    raw[40:48] = np.array([mx * voxel * scale, my * voxel * scale], "<f4").tobytes()
    open(target, "wb").write(raw)
"""


class Imod:
    """A folder that looks like an IMOD installation, and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = folder / "record.jsonl"
        (folder / "bin").mkdir(parents=True)
        for name in imod.PROGRAMS:
            program = folder / "bin" / name
            program.write_text(STAND_IN.format(python=sys.executable, record=str(self.record)))
            program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def calls(self) -> list[list[str]]:
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        return [json.loads(line) for line in lines if "-help" not in line]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Imod:
    made = Imod(tmp_path / "IMOD")
    (made.folder / "VERSION").write_text("4.11.24\n")
    monkeypatch.delenv("IMOD_DIR", raising=False)
    monkeypatch.setenv("PATH", f"{made.folder / 'bin'}:/usr/bin:/bin")
    return made


@pytest.fixture
def volume() -> np.ndarray:
    """A Gaussian at a sub-voxel place."""
    z, y, x = np.meshgrid(*(np.arange(n) for n in (21, 34, 41)), indexing="ij")
    square = (z - 9.3) ** 2 + (y - 17.6) ** 2 + (x - 20.9) ** 2
    return np.exp(-square / (2 * 2.2**2)).astype(np.float32)


CENTRE = np.array([9.3, 17.6, 20.9])


def centre_of(volume: np.ndarray) -> np.ndarray:
    mass = np.where(volume > 1e-4, volume, 0).astype(float)
    grid = np.meshgrid(*(np.arange(n) for n in volume.shape), indexing="ij")
    return np.array([(mass * g).sum() / mass.sum() for g in grid])


def test_version_from_the_installation_and_from_the_help(installed: Imod) -> None:
    assert imod.version() == (4, 11, 24)
    (installed.folder / "VERSION").unlink()
    assert imod.version() == (4, 9, 12)


@pytest.mark.parametrize(("text", "word"), [("4.7.15", "too old"), ("none", "could not be told")])
def test_a_version_that_will_not_do(installed: Imod, text: str, word: str) -> None:
    (installed.folder / "VERSION").write_text(text)
    with pytest.raises(ToolError, match=word):
        imod.version()


def test_no_imod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, volume: np.ndarray) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("IMOD_DIR", raising=False)
    write_volume(tmp_path / "a.mrc", volume, 10)
    with pytest.raises(ToolError, match=r"not found on PATH.*Remedy.*prepare\.imod"):
        imod.bin_volume(tmp_path / "a.mrc", tmp_path / "b.mrc", 2)


def test_programs_are_found_by_imod_dir(installed: Imod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setenv("IMOD_DIR", str(installed.folder))
    assert imod.find("binvol") == installed.folder / "bin" / "binvol"


def test_trimvol_rotates_as_the_native_route_does(
    installed: Imod, tmp_path: Path, volume: np.ndarray
) -> None:
    write_volume(tmp_path / "raw file.mrc", volume, 10)
    imod.rotate_rx(tmp_path / "raw file.mrc", tmp_path / "b.mrc")
    np.testing.assert_array_equal(open_volume(tmp_path / "b.mrc"), to_zyx(volume, "xzy"))
    expected = ["trimvol", "-rx", str(tmp_path / "raw file.mrc"), str(tmp_path / "b.mrc")]
    assert installed.calls() == [expected]


@pytest.mark.parametrize("factor", [2, 3])
def test_binning_puts_points_back_where_they_were(
    installed: Imod, tmp_path: Path, volume: np.ndarray, factor: int
) -> None:
    write_volume(tmp_path / "a.mrc", volume, 5, origin_xyz_angstrom=(100, 0, -30))
    found = imod.bin_volume(tmp_path / "a.mrc", tmp_path / "b.mrc", factor)
    assert found.scale_zyx == (factor,) * 3
    assert found.offset_zyx == ((factor - 1) / 2,) * 3
    back = centre_of(open_volume(tmp_path / "b.mrc")) * found.scale_zyx + found.offset_zyx
    np.testing.assert_allclose(back, CENTRE, atol=0.01)
    assert installed.calls()[0][:3] == ["binvol", "-binning", str(factor)]


@pytest.mark.parametrize("scale", [1.27, 2.3, 0.74])
def test_scaling_sections_puts_points_back_where_they_were(
    installed: Imod, tmp_path: Path, volume: np.ndarray, scale: float
) -> None:
    write_volume(tmp_path / "a.mrc", volume, 5, origin_xyz_angstrom=(100, 0, -30))
    found = imod.scale_sections(tmp_path / "a.mrc", tmp_path / "b.mrc", scale)
    back = centre_of(open_volume(tmp_path / "b.mrc")) * found.scale_zyx + found.offset_zyx
    np.testing.assert_allclose(back, CENTRE, atol=0.02)
    assert found.scale_zyx == pytest.approx((1, scale, scale), rel=1e-6)
    option = "-shrink" if scale > 1 else "-expand"
    assert installed.calls()[0][1] == option
    assert "-origin" in installed.calls()[0]


def test_a_failing_program_is_quoted(
    installed: Imod, tmp_path: Path, volume: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_volume(tmp_path / "a.mrc", volume, 5)
    monkeypatch.setenv("FAKE_FAIL", "binvol")
    with pytest.raises(ToolError, match=r"status 3.*NO LICENCE TO BIN"):
        imod.bin_volume(tmp_path / "a.mrc", tmp_path / "b.mrc", 2)


def test_a_missing_or_broken_output_is_seen(
    installed: Imod, tmp_path: Path, volume: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_volume(tmp_path / "a.mrc", volume, 5)
    (tmp_path / "b.mrc").write_text("from an earlier run")
    monkeypatch.setenv("FAKE_SILENT", "binvol")
    with pytest.raises(ToolError, match=r"wrote no .*b\.mrc"):
        imod.bin_volume(tmp_path / "a.mrc", tmp_path / "b.mrc", 2)
    program = installed.folder / "bin" / "binvol"
    program.write_text('#!/bin/sh\nfor last; do :; done\necho rubbish > "$last"\n')
    with pytest.raises(ToolError, match="cannot be read"):
        imod.bin_volume(tmp_path / "a.mrc", tmp_path / "b.mrc", 2)
    program.write_text('#!/bin/sh\ncp "$3" "$4"\n')
    with pytest.raises(ToolError, match="does not agree with the factors"):
        imod.bin_volume(tmp_path / "a.mrc", tmp_path / "b.mrc", 2)


def test_a_program_that_cannot_start(installed: Imod, tmp_path: Path, volume: np.ndarray) -> None:
    write_volume(tmp_path / "a.mrc", volume, 5)
    (installed.folder / "bin" / "binvol").write_text("#!/no/such/interpreter\n")
    with pytest.raises(ToolError, match="could not be started"):
        imod.bin_volume(tmp_path / "a.mrc", tmp_path / "b.mrc", 2)


def test_points_become_a_model(installed: Imod, tmp_path: Path) -> None:
    (tmp_path / "points.txt").write_text("1 1 10 20 30 0.9\n")
    how = imod.PointModel(
        sphere_vox=7, colour=(255, 0, 10), names=("4v94",), image=tmp_path / "v.mrc",
        has_values=True,
    )  # fmt: skip
    imod.points_to_model(tmp_path / "points.txt", tmp_path / "points.mod", how)
    assert (tmp_path / "points.mod").read_bytes().startswith(b"IMODV1.2")
    assert installed.calls()[0][1:-2] == [
        "-scat", "-sphere", "7", "-color", "255,0,10", "-name", "4v94",
        "-image", str(tmp_path / "v.mrc"), "-values", "1",
    ]  # fmt: skip


def test_headers_written_by_the_stand_in_are_sound(
    installed: Imod, tmp_path: Path, volume: np.ndarray
) -> None:
    write_volume(tmp_path / "a.mrc", volume, 5)
    imod.scale_sections(tmp_path / "a.mrc", tmp_path / "b.mrc", 1.25)
    header = read_header(tmp_path / "b.mrc")
    assert header.voxel_size_xyz == (6.25, 6.25, 5)
    assert header.warnings == ()
