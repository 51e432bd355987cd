"""The only place that starts IMOD programs: trimvol, binvol, newstack, point2model.

IMOD (https://bio3d.colorado.edu/imod) is not part of this package and was not at hand when this
was written: the calls follow its manual pages and sources (trimvol, binvol.f90, newstack.f90 of
4.8), the tests run stand-ins that behave as those sources do, and a run against a real
installation is still owed. For that reason nothing is believed that can be checked: each program
is looked for, IMOD's version is read, the exit status, the output's header and its size are
checked, and where a program has put its first voxel is taken from the origins in the two headers.

Programs get argument lists, never a shell line. Their scratch files go where the output goes:
trimvol writes beside its input, so inputs must lie in a folder of ours.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tomoline.errors import InputError, ToolError
from tomoline.io.mrc import MrcHeader, read_header
from tomoline.log import get_logger

PROGRAMS = ("trimvol", "binvol", "newstack", "point2model")
LEAST_VERSION = (4, 8)
_REMEDY = (
    "install IMOD 4.8 or newer and source its IMOD-linux.sh, or set prepare.imod to false: the "
    "native route gives the same geometry"
)
_LOG = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Where a program's output lies in its input: `input = output * scale_zyx + offset_zyx`."""

    scale_zyx: tuple[float, float, float]
    offset_zyx: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class PointModel:
    """How `point2model` shows points: sphere radius in voxels, RGB 0..255, extra columns."""

    sphere_vox: int = 5
    colour: tuple[int, int, int] | None = None
    names: tuple[str, ...] = ()
    image: Path | None = None
    has_values: bool = False
    numbered_from_zero: bool = False


def find(program: str) -> Path:
    """Return a program's path, from PATH or $IMOD_DIR/bin; ToolError if it is in neither."""
    found = _located(program)
    if not found:
        raise ToolError(f"IMOD's program {program} was not found on PATH. Remedy: {_REMEDY}")
    return Path(found)


def is_installed(program: str) -> bool:
    """Whether `find` would find a program."""
    return bool(_located(program))


def version() -> tuple[int, ...]:
    """Return IMOD's version, e.g. (4, 11, 24); ToolError if unknown or older than 4.8.

    It is read from the file VERSION of the installation, else from the help of point2model.
    """
    text = _version_text()
    match = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    if match is None:
        raise ToolError(f"IMOD's version could not be told from {text[:80]!r}. Remedy: {_REMEDY}")
    number = tuple(int(part) for part in match.groups() if part is not None)
    if number[:2] < LEAST_VERSION:
        raise ToolError(
            f"IMOD {match.group()} is too old; 4.8 or newer is needed. Remedy: {_REMEDY}"
        )
    return number


def rotate_rx(source: Path, target: Path) -> None:
    """Turn `tilt` output (x, depth, y) by -90 degrees about x: `trimvol -rx`."""
    before = read_header(source)
    _run("trimvol", ["-rx", str(source), str(target)], target)
    nz, ny, nx = before.file_shape
    after = _output_header("trimvol", target)
    if after.file_shape != (ny, nz, nx):
        raise ToolError(
            f"trimvol -rx made {_size(after)} voxels of {_size(before)}; expected "
            f"{nx} x {nz} x {ny}. Remedy: {_REMEDY}"
        )


def bin_volume(source: Path, target: Path, factor: int) -> Geometry:
    """Bin a volume by a whole number in all three axes: `binvol -binning`.

    A new voxel is the mean of `factor` old ones, so its centre lies `(factor - 1) / 2` old voxels
    behind that of the first of them; the offset returned holds that.
    """
    before = read_header(source)
    _run("binvol", ["-binning", str(factor), str(source), str(target)], target)
    after = _output_header("binvol", target)
    return _geometry("binvol", before, after, (float(factor),) * 3)


def scale_sections(source: Path, target: Path, scale: float) -> Geometry:
    """Scale a volume in x and y by any number, filtered: `newstack -shrink` or `-expand`.

    newstack works section by section, so z is left as it is. `scale` above 1 makes a smaller
    volume. The origin is kept up to date by `-origin`, which tells where the new corner lies.
    """
    before = read_header(source)
    factor = scale if scale > 1 else 1 / scale
    text = f"{factor:.8g}"
    option = "-shrink" if scale > 1 else "-expand"
    _run("newstack", [option, text, "-origin", str(source), str(target)], target)
    after = _output_header("newstack", target)
    reached = float(text) if scale > 1 else 1 / float(text)
    return _geometry("newstack", before, after, (1.0, reached, reached))


def points_to_model(points: Path, model: Path, how: PointModel | None = None) -> None:
    """Make an IMOD model of scattered spheres from a text of points: `point2model`."""
    how = how if how is not None else PointModel()
    options = ["-scat", "-sphere", str(how.sphere_vox)]
    if how.colour is not None:
        options += ["-color", ",".join(str(part) for part in how.colour)]
    for name in how.names:
        options += ["-name", name]
    if how.image is not None:
        options += ["-image", str(how.image)]
    if how.has_values:
        options += ["-values", "1"]
    if how.numbered_from_zero:
        options.append("-zero")
    _run("point2model", [*options, str(points), str(model)], model)
    with model.open("rb") as stream:
        magic = stream.read(8)
    if not magic.startswith(b"IMOD"):
        raise ToolError(f"point2model wrote {model}, which is no IMOD model. Remedy: {_REMEDY}")


def _located(program: str) -> str:
    folder = os.environ.get("IMOD_DIR")
    found = shutil.which(program) or (folder and shutil.which(program, path=f"{folder}/bin"))
    return found or ""


def _version_text() -> str:
    program = find("point2model")
    folders = [Path(os.environ["IMOD_DIR"])] if "IMOD_DIR" in os.environ else []
    for folder in [*folders, program.resolve().parent.parent]:
        if (folder / "VERSION").is_file():
            return (folder / "VERSION").read_text(errors="replace")
    done = _start([str(program), "-help"])
    return done.stdout


def _environment(program: Path) -> dict[str, str]:
    """trimvol stops without IMOD_DIR; a program found in <dir>/bin tells it."""
    folder = str(program.resolve().parent.parent)
    return {"IMOD_DIR": folder, **os.environ, "LC_ALL": "C"}


def _start(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=_environment(Path(command[0])),
        )
    except OSError as error:
        raise ToolError(
            f"{command[0]} could not be started ({error}). Remedy: {_REMEDY}"
        ) from error


def _run(program: str, arguments: Sequence[str], output: Path) -> None:
    """Run a program that must write `output`; ToolError with its last words if it does not."""
    number = ".".join(str(part) for part in version())
    command = [str(find(program)), *arguments]
    _LOG.info("IMOD %s: %s %s", number, program, " ".join(arguments))
    output.unlink(missing_ok=True)
    done = _start(command)
    last_words = " / ".join(line.strip() for line in done.stdout.splitlines()[-3:])
    if done.returncode != 0:
        raise ToolError(
            f"{program} ended with status {done.returncode}: {last_words}. Command: "
            f"{program} {' '.join(arguments)}. Remedy: see its message, or {_REMEDY}"
        )
    if not output.is_file():
        raise ToolError(f"{program} wrote no {output}: {last_words}. Remedy: {_REMEDY}")


def _output_header(program: str, path: Path) -> MrcHeader:
    try:
        return read_header(path)
    except InputError as error:
        raise ToolError(f"{program} wrote a file that cannot be read: {error}") from error


def _geometry(
    program: str, before: MrcHeader, after: MrcHeader, scale_zyx: tuple[float, ...]
) -> Geometry:
    """Check size and voxel size, and find the offset from the origins.

    In IMOD a coordinate is `index * voxel - origin` and voxel 0 begins, not lies, at index 0, so
    the corner has moved by `(origin before - origin after) / voxel` old voxels, and the centre of
    the new first voxel lies half a new voxel from it.
    """
    offsets = []
    for axis, scale in enumerate(scale_zyx):
        old, new = before.file_shape[axis], after.file_shape[axis]
        voxel = before.voxel_size_xyz[2 - axis]
        reached = after.voxel_size_xyz[2 - axis] / voxel
        moved = (before.origin_xyz[2 - axis] - after.origin_xyz[2 - axis]) / voxel
        if abs(new - old / scale) > 2 or abs(reached / scale - 1) > 1e-3 or abs(moved) > 2 * scale:
            raise ToolError(
                f"{program} made {_size(after)} voxels of {after.voxel_size_xyz} A at "
                f"{after.origin_xyz} of {_size(before)} voxels of {before.voxel_size_xyz} A at "
                f"{before.origin_xyz}, which does not agree with the factors {scale_zyx} (z, y, "
                f"x). Remedy: {_REMEDY}"
            )
        offsets.append(moved + (scale - 1) / 2)
    (z, y, x), (dz, dy, dx) = scale_zyx, offsets
    return Geometry(scale_zyx=(z, y, x), offset_zyx=(dz, dy, dx))


def _size(header: MrcHeader) -> str:
    nz, ny, nx = header.file_shape
    return f"{nx} x {ny} x {nz}"
