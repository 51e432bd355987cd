"""Strict reading and reproducible writing of MRC volumes (.mrc, .rec, .map; plain, gzip or bzip2).

Every doubt about a file is either settled by its bytes and told (`MrcHeader.warnings`) or refused
with an `InputError`. Layout: MRC2014 (Cheng et al. 2015, doi:10.1016/j.jsb.2015.04.002) and IMOD's
`mrc_format.txt` for modes 6 and 12, the stamp 1146047817 and its flags (bit 0: bytes are signed,
bit 2: the origin has the opposite sign). Arrays are zyx; tuples named `_xyz` are as in the header.
"""

import bz2
import gzip
import os
import shutil
import string
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

import mrcfile.dtypes
import numpy as np
from numpy.typing import NDArray

from tomoline.errors import InputError
from tomoline.io.atomic import atomic_path

HEADER_BYTES = 1024
IMOD_STAMP = 1146047817
MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
REFUSED_MODES = {
    3: "mode 3 (complex 16-bit integers, a Fourier transform)",
    4: "mode 4 (complex 32-bit floats, a Fourier transform)",
    16: "mode 16 (RGB colour)",
    101: "mode 101 (4-bit packed integers)",
}
ANISOTROPY_TOLERANCE = 0.005
_MODE_OF_DTYPE = {"int8": 0, "int16": 1, "float32": 2, "uint16": 6, "float16": 12}
_MAX_EDGE = 200_000
_BLOCK_BYTES = 1 << 22
_LABEL = b"tomoline"
_FOREIGN = (
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x89PNG", "a PNG image"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"IMODV1", "an IMOD model"),
)

ByteOrder = Literal["little", "big"]


@dataclass(frozen=True, kw_only=True)
class MrcHeader:
    """What the header says, and what the file's bytes say about it."""

    path: Path
    file_shape: tuple[int, int, int]  # sections, rows, columns
    mode: int
    voxel_size_xyz: tuple[float, float, float]  # angstrom; 0 where not given
    origin_xyz: tuple[float, float, float]  # angstrom, in IMOD's sign where its flag turns it
    ispg: int
    stamp_ok: bool
    labels: tuple[str, ...]
    byte_order: ByteOrder
    axis_order: tuple[int, int, int]  # mapc, mapr, maps: which axis (1 x, 2 y, 3 z) each one is
    extended_bytes: int
    expected_bytes: int
    found_bytes: int  # after decompression
    compression: str  # "", gzip or bzip2
    imod: bool  # written by IMOD, by its stamp
    signed_bytes: bool | None  # mode 0 only: how the bytes are read
    warnings: tuple[str, ...] = ()

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a voxel as it lies in the file."""
        code = "u1" if self.mode == 0 and self.signed_bytes is False else MODES[self.mode]
        return np.dtype(code).newbyteorder("<" if self.byte_order == "little" else ">")

    @property
    def transposition(self) -> tuple[int, int, int]:
        """File axes in the order (z, y, x)."""
        by_section_row_column = self.axis_order[::-1]
        z, y, x = (by_section_row_column.index(axis) for axis in (3, 2, 1))
        return z, y, x

    @property
    def shape_zyx(self) -> tuple[int, int, int]:
        """Size of what `open_volume` returns."""
        z, y, x = (self.file_shape[axis] for axis in self.transposition)
        return z, y, x

    @property
    def voxel_size_angstrom(self) -> float | None:
        """Voxel size in x; None where the header has none (0, not finite, or all 1.0)."""
        x = self.voxel_size_xyz[0]
        if not all(np.isfinite(v) and v > 0 for v in self.voxel_size_xyz):
            return None
        return None if all(v == 1.0 for v in self.voxel_size_xyz) else x

    @property
    def anisotropic(self) -> bool:
        """Whether the voxel sizes of the three axes differ by more than half a per cent."""
        low, high = min(self.voxel_size_xyz), max(self.voxel_size_xyz)
        return high - low > ANISOTROPY_TOLERANCE * high


def read_header(path: str | os.PathLike[str]) -> MrcHeader:
    """Read and check a volume's header and the length of its file.

    Compressed files are decompressed once to be measured. Raises InputError for a missing,
    unreadable, empty, truncated or foreign file, a refused mode, or a byte order or axis order
    that nothing settles. What can be settled is said in `warnings`.
    """
    file = Path(path)
    _check_readable(file)
    compression = _compression(file)
    raw = _first_bytes(file, compression)
    if len(raw) < HEADER_BYTES:
        raise _not_mrc(file, raw, f"{len(raw)} bytes")
    found = _measure(file, compression)
    fields, order, warnings = _byte_order(file, raw, found)
    warnings += _check_identifier(file, raw, fields, found)
    _check_mode(file, fields)
    _check_single(file, fields)
    expected = _expected_bytes(fields)
    if found < expected:
        raise InputError(
            file,
            expected=f"{expected} bytes ({_describe(fields)})",
            found=f"{found} bytes; the file is truncated",
            remedy="copy or reconstruct it again; the transfer or the program stopped early",
        )
    if found > expected:
        warnings.append(f"{found - expected} bytes after the end of the data are not read")
    axes = _axis_order(file, fields, warnings)
    header = _build(file, fields, order, axes)
    header = replace(
        header,
        stamp_ok=_stamped_order(raw) == order,
        expected_bytes=expected,
        found_bytes=found,
        compression=compression,
        warnings=tuple(warnings),
    )
    return _with_signedness(header, fields) if header.mode == 0 else header


def open_volume(path: str | os.PathLike[str], header: MrcHeader | None = None) -> NDArray[Any]:
    """Return the volume as a read-only zyx array, memory-mapped unless the file is compressed.

    The header's axis order (mapc, mapr, maps) is honoured by a view. Nothing is scaled. `header`
    saves reading it again. Raises InputError as `read_header` does.
    """
    header = header if header is not None else read_header(path)
    start = HEADER_BYTES + header.extended_bytes
    data: NDArray[Any]
    if not header.compression:
        data = np.memmap(
            header.path, dtype=header.dtype, mode="r", offset=start, shape=header.file_shape
        )
    else:
        data = np.empty(header.file_shape, header.dtype)
        target, done = data.reshape(-1).view(np.uint8), 0
        for chunk in _decompressed_data(header):
            target[done : done + len(chunk)] = chunk
            done += len(chunk)
        data.flags.writeable = False
    volume: NDArray[Any] = data.transpose(header.transposition)
    return volume


def to_zyx(volume: NDArray[Any], axes: str) -> NDArray[Any]:
    """Return a view of `volume` in zyx order.

    `axes` names the file's order, fastest first. "xyz" is left alone. "xzy" is the output of IMOD
    `tilt`, array axes (y, depth, x): it is turned by -90 degrees about x as `trimvol -rx` does,
    `z = n_depth - 1 - depth`. That is a rotation, so handedness is kept; swapping the two axes
    (`trimvol -yz`) would mirror the specimen.
    """
    if axes == "xyz":
        return volume
    if axes != "xzy":
        raise ValueError(f"axes must be xyz or xzy, not {axes!r}")
    return volume.transpose(1, 0, 2)[::-1]


def write_volume(
    path: str | os.PathLike[str],
    volume: NDArray[Any],
    voxel_size_angstrom: float,
    *,
    origin_xyz_angstrom: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> None:
    """Write a zyx volume, atomically and without a date, so equal input gives equal bytes.

    The mode follows the type: int8 and bool 0 (with IMOD's stamp that says the bytes are signed),
    int16 1, float32 2, uint16 6, float16 12; TypeError for any other.
    """
    data = volume.astype(np.int8) if volume.dtype == np.bool_ else volume
    mode = _MODE_OF_DTYPE.get(data.dtype.name)
    if mode is None:
        raise TypeError(f"no MRC mode holds {data.dtype}; convert it to float32 first")
    if data.ndim != 3 or data.size == 0:
        raise ValueError(f"a volume has three axes and some voxels, not shape {data.shape}")
    header = blank_header(data.shape, mode, voxel_size_angstrom, origin_xyz_angstrom)
    _set_statistics(header, data)
    little = np.dtype(MODES[mode]).newbyteorder("<")
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        stream.write(header.tobytes())
        for section in data:
            stream.write(np.ascontiguousarray(section, little).tobytes())


# --- the file's bytes ------------------------------------------------------------------------


def write_compressed_volume(
    path: str | os.PathLike[str], volume: NDArray[Any], voxel_size_angstrom: float
) -> None:
    """Write a zyx volume as `write_volume` does, compressed by gzip (for label maps)."""
    target = Path(path)
    with atomic_path(target) as partial:
        plain = partial.with_name(f"{partial.name}.mrc")
        try:
            write_volume(plain, volume, voxel_size_angstrom)
            with (
                plain.open("rb") as source,
                partial.open("wb") as sink,
                # No name and no time in the file: equal volumes give equal bytes.
                gzip.GzipFile("", "wb", 6, sink, mtime=0) as packed,
            ):
                shutil.copyfileobj(source, packed, 1 << 20)
        finally:
            plain.unlink(missing_ok=True)


def _check_readable(file: Path) -> None:
    expected = "a readable MRC file"
    if file.is_dir():
        raise InputError(
            file, expected=expected, found="a directory", remedy="name the file itself"
        )
    if not file.exists():
        raise InputError(
            file, expected=expected, found="no such file", remedy="check the path in the sheet"
        )
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise InputError(
            file,
            expected=expected,
            found=f"a file that cannot be read ({error.strerror})",
            remedy="check the permissions and the disk",
        ) from error
    if file.stat().st_size == 0:
        raise InputError(
            file, expected=expected, found="an empty file (0 bytes)", remedy="copy it again"
        )


def _compression(file: Path) -> str:
    with file.open("rb") as stream:
        magic = stream.read(4)
    if magic[:3] == b"\x1f\x8b\x08":
        return "gzip"
    return "bzip2" if magic[:3] == b"BZh" and magic[3:4].isdigit() else ""


class _Checked:
    """A stream whose decompression errors name the file."""

    def __init__(self, file: Path, compression: str) -> None:
        self.file = file
        self.compression = compression
        self.stream: IO[bytes] | gzip.GzipFile | bz2.BZ2File
        if compression == "gzip":
            self.stream = gzip.GzipFile(file, "rb")
        elif compression == "bzip2":
            self.stream = bz2.BZ2File(file, "rb")
        else:
            self.stream = file.open("rb")

    def __enter__(self) -> "_Checked":
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def read(self, size: int) -> bytes:
        try:
            return self.stream.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile, OSError) as error:
            raise InputError(
                self.file,
                expected=f"a whole {self.compression or 'plain'} file",
                found=f"data that break off or are damaged ({error})",
                remedy="copy or compress it again",
            ) from error


def _first_bytes(file: Path, compression: str) -> bytes:
    with _Checked(file, compression) as stream:
        return stream.read(HEADER_BYTES)


def _measure(file: Path, compression: str) -> int:
    if not compression:
        return file.stat().st_size
    total = 0
    with _Checked(file, compression) as stream:
        while chunk := stream.read(_BLOCK_BYTES):
            total += len(chunk)
    return total


def _data_blocks(header: MrcHeader, limit: int = 64) -> Iterator[NDArray[np.uint8]]:
    """Yield the data's bytes: of some 64 stretches of a plain file, of all of a compressed one."""
    size = header.expected_bytes - HEADER_BYTES - header.extended_bytes
    start = HEADER_BYTES + header.extended_bytes
    if not header.compression:
        data = np.memmap(header.path, dtype=np.uint8, mode="r", offset=start, shape=(size,))
        stretch = max(1, min(size, 1 << 16))
        for begin in np.unique(np.linspace(0, size - stretch, limit).astype(np.int64)):
            yield np.asarray(data[begin : begin + stretch])
        return
    yield from _decompressed_data(header)


def _decompressed_data(header: MrcHeader) -> Iterator[NDArray[np.uint8]]:
    """Yield all of a compressed file's data, without its headers, in blocks of bytes."""
    size = header.expected_bytes - HEADER_BYTES - header.extended_bytes
    with _Checked(header.path, header.compression) as stream:
        stream.read(HEADER_BYTES + header.extended_bytes)
        while size > 0:
            chunk = stream.read(min(_BLOCK_BYTES, size))
            if not chunk:
                raise InputError(
                    header.path,
                    expected=f"{header.expected_bytes} bytes",
                    found="fewer than when it was measured; the file is being changed",
                    remedy="wait until the program that writes it has finished",
                )
            size -= len(chunk)
            yield np.frombuffer(chunk, np.uint8)


# --- what the header means -------------------------------------------------------------------


def _parse(raw: bytes, order: ByteOrder) -> NDArray[Any]:
    dtype = mrcfile.dtypes.HEADER_DTYPE.newbyteorder("<" if order == "little" else ">")
    return np.frombuffer(raw, dtype=dtype)[0]  # type: ignore[no-any-return]


def _stamped_order(raw: bytes) -> ByteOrder | None:
    stamp = raw[212:214]
    if stamp in (b"\x44\x44", b"\x44\x41"):
        return "little"
    return "big" if stamp == b"\x11\x11" else None


def _plausible(fields: NDArray[Any]) -> bool:
    sizes = [int(fields[name]) for name in ("nx", "ny", "nz")]
    mode = int(fields["mode"])
    return 0 <= mode < 256 and all(0 < n <= _MAX_EDGE for n in sizes) and int(fields["nsymbt"]) >= 0


def _byte_order(file: Path, raw: bytes, found: int) -> tuple[NDArray[Any], ByteOrder, list[str]]:
    """Return the fields, the byte order, and a warning where the stamp was not what settled it."""
    stamped = _stamped_order(raw)
    orders: tuple[ByteOrder, ...] = ("little", "big")
    parsed = {order: _parse(raw, order) for order in orders}
    if stamped is not None and _plausible(parsed[stamped]):
        return parsed[stamped], stamped, []
    stamp = " ".join(f"{byte:02x}" for byte in raw[212:216])
    fitting = [
        order
        for order in orders
        if _plausible(parsed[order]) and _expected_bytes(parsed[order]) <= found
    ]
    if len(fitting) == 1 and raw[208:211] == b"MAP":
        order = fitting[0]
        return (
            parsed[order],
            order,
            [f"machine stamp {stamp} is wrong; the file's size shows {order}-endian data"],
        )
    if len(fitting) == 1:  # an old file has neither stamp nor MAP; `_check_identifier` decides
        return parsed[fitting[0]], fitting[0], []
    if raw[208:211] != b"MAP":
        raise _not_mrc(file, raw, "a header that makes no sense in either byte order")
    raise InputError(
        file,
        expected="machine stamp 44 44 00 00 or 11 11 00 00, or a size that shows the byte order",
        found=f"stamp {stamp} and {found} bytes, which fit neither byte order",
        remedy="the header is damaged: write the file again, e.g. with IMOD newstack",
    )


def _check_identifier(file: Path, raw: bytes, fields: NDArray[Any], found: int) -> list[str]:
    if raw[208:211] == b"MAP":
        return []
    if not _plausible(fields) or _expected_bytes(fields) != found:
        raise _not_mrc(file, raw, "no MAP identifier")
    return ["no MAP identifier (an old file); its size agrees with the header"]


def _check_mode(file: Path, fields: NDArray[Any]) -> None:
    mode = int(fields["mode"])
    if mode in MODES:
        return
    remedy = "convert it to real values, e.g. with IMOD: newstack -mode 2 in.mrc out.mrc"
    if mode in (3, 4):
        remedy = "give the real-space volume; this is a Fourier transform (IMOD: fftrans, clip)"
    raise InputError(
        file,
        expected="mode 0, 1, 2, 6 or 12",
        found=REFUSED_MODES.get(mode, f"mode {mode}"),
        remedy=remedy,
    )


def _check_single(file: Path, fields: NDArray[Any]) -> None:
    """Refuse MRC2014 stacks of volumes (space groups from 401 on, mz sections each)."""
    mz, nz = int(fields["mz"]), int(fields["nz"])
    if int(fields["ispg"]) > 400 and 0 < mz < nz:
        raise InputError(
            file,
            expected="one volume",
            found=f"a stack of {nz // mz} volumes (space group {int(fields['ispg'])})",
            remedy="write each volume to a file of its own",
        )


def _expected_bytes(fields: NDArray[Any]) -> int:
    nx, ny, nz, mode = (int(fields[name]) for name in ("nx", "ny", "nz", "mode"))
    if mode == 101:
        nx, size = (nx + 1) // 2, 1
    else:
        size = {0: 1, 1: 2, 2: 4, 3: 4, 4: 8, 6: 2, 12: 2, 16: 3}.get(mode, 1)
    return HEADER_BYTES + int(fields["nsymbt"]) + nx * ny * nz * size


def _describe(fields: NDArray[Any]) -> str:
    return (
        f"{int(fields['nx'])} x {int(fields['ny'])} x {int(fields['nz'])} voxels of mode "
        f"{int(fields['mode'])}"
    )


def _axis_order(file: Path, fields: NDArray[Any], warnings: list[str]) -> tuple[int, int, int]:
    c, r, s = (int(fields[name]) for name in ("mapc", "mapr", "maps"))
    if (c, r, s) == (0, 0, 0):
        warnings.append("mapc, mapr, maps are 0 0 0; taken as 1 2 3")
        return 1, 2, 3
    if sorted((c, r, s)) != [1, 2, 3]:
        raise InputError(
            file,
            expected="mapc, mapr, maps that name each of the axes 1, 2, 3 once",
            found=f"{c} {r} {s}",
            remedy="correct the header, e.g. with IMOD: alterheader -mapping 1,2,3",
        )
    if (c, r, s) != (1, 2, 3):
        warnings.append(f"axes are stored in the order {c} {r} {s}; turned to x, y, z")
    return c, r, s


def _voxel_sizes(fields: NDArray[Any]) -> tuple[float, float, float]:
    sizes = []
    for axis in "xyz":
        intervals = int(fields["m" + axis]) or int(fields["n" + axis])
        # The file holds float32: six digits make 10.52 of 10.5199995.
        sizes.append(float(f"{float(fields['cella'][axis]) / intervals:.6g}"))
    x, y, z = sizes
    return x, y, z


def _origin(fields: NDArray[Any], *, inverted: bool) -> tuple[float, float, float]:
    sign = -1.0 if inverted else 1.0
    x, y, z = (sign * float(fields["origin"][axis]) + 0.0 for axis in "xyz")
    return x, y, z


def _labels(fields: NDArray[Any]) -> tuple[str, ...]:
    count = min(10, max(0, int(fields["nlabl"])))
    texts = (bytes(label).decode("latin-1") for label in fields["label"][:count])
    return tuple(text.strip("\0 ") for text in texts)


def _extra_int(fields: NDArray[Any], offset: int) -> int:
    """Return the int32 at a byte offset of the header, in the header's own byte order."""
    raw = fields.tobytes()[offset : offset + 4]
    # Fields keep the file's byte order; tobytes does not turn it.
    order = fields.dtype["nx"].byteorder
    return int(np.frombuffer(raw, np.dtype("i4").newbyteorder(order))[0])


def _build(
    file: Path, fields: NDArray[Any], order: ByteOrder, axes: tuple[int, int, int]
) -> MrcHeader:
    """Return what the header alone says; `read_header` fills in what the bytes say."""
    imod = _extra_int(fields, 152) == IMOD_STAMP
    return MrcHeader(
        path=file,
        file_shape=(int(fields["nz"]), int(fields["ny"]), int(fields["nx"])),
        mode=int(fields["mode"]),
        voxel_size_xyz=_voxel_sizes(fields),
        origin_xyz=_origin(fields, inverted=imod and bool(_extra_int(fields, 156) & 4)),
        ispg=int(fields["ispg"]),
        stamp_ok=True,
        labels=_labels(fields),
        byte_order=order,
        axis_order=axes,
        extended_bytes=int(fields["nsymbt"]),
        expected_bytes=0,
        found_bytes=0,
        compression="",
        imod=imod,
        signed_bytes=None,
    )


def _with_signedness(header: MrcHeader, fields: NDArray[Any]) -> MrcHeader:
    """Decide whether mode 0 holds signed or unsigned bytes.

    IMOD's flag decides where there is one. MRC2014 says signed, but programs before it, and many
    since, wrote unsigned ones. Read the wrong way a tomogram's single peak of grey values breaks
    in two at the ends of the range, so the reading with the clearly smaller SD is the right one.
    """
    counts = np.zeros(256, np.int64)
    for block in _data_blocks(header):
        counts += np.bincount(block, minlength=256)
    sd_signed, sd_unsigned = _byte_sds(counts)
    by_data = None
    if max(sd_signed, sd_unsigned) > 1.2 * min(sd_signed, sd_unsigned):
        by_data = sd_signed < sd_unsigned
    names = {True: "signed", False: "unsigned"}
    notes: list[str] = []
    if header.imod:
        signed = bool(_extra_int(fields, 156) & 1)
        if by_data is not None and by_data != signed:
            notes.append(
                f"the IMOD flag says {names[signed]} bytes, which is followed, but the grey "
                f"values look {names[by_data]}; if its picture is broken, rewrite the file"
            )
    elif counts[128:].any():
        signed = _unflagged(fields, by_data)
        notes.append(f"the header does not say whether bytes are signed; read as {names[signed]}")
    else:
        signed = True  # all bytes are below 128: both readings agree
    return replace(header, signed_bytes=signed, warnings=(*header.warnings, *notes))


def _unflagged(fields: NDArray[Any], by_data: bool | None) -> bool:
    if by_data is not None:
        return by_data
    low, high = float(fields["dmin"]), float(fields["dmax"])
    return not (low >= 0 and high > 127)


def _byte_sds(counts: NDArray[np.int64]) -> tuple[float, float]:
    """Return the SD of a histogram of bytes read as signed and as unsigned."""
    unsigned = np.arange(256, dtype=np.float64)
    weights = counts / max(1, int(counts.sum()))
    deviations = []
    for values in (np.where(unsigned > 127, unsigned - 256, unsigned), unsigned):
        mean = float(weights @ values)
        deviations.append(float(np.sqrt(weights @ np.square(values - mean))))
    return deviations[0], deviations[1]


def _not_mrc(file: Path, raw: bytes, found: str) -> InputError:
    printable = set(string.printable.encode())
    kind = next((name for magic, name in _FOREIGN if raw.startswith(magic)), None)
    if kind is None and raw and all(byte in printable for byte in raw[:256]):
        kind = "a text file"
    return InputError(
        file,
        expected="an MRC volume (1024-byte header with the identifier MAP)",
        found=f"{kind} ({found})" if kind else f"something else ({found})",
        remedy="give the reconstructed tomogram as .mrc, .rec or .map",
    )


# --- writing ---------------------------------------------------------------------------------


def blank_header(
    shape: tuple[int, ...], mode: int, voxel_size: float, origin_xyz: tuple[float, float, float]
) -> NDArray[Any]:
    header = np.zeros((), mrcfile.dtypes.HEADER_DTYPE.newbyteorder("<"))
    header["mode"], header["ispg"], header["nversion"] = mode, 1, 20140
    for axis, size, origin in zip("xyz", shape[::-1], origin_xyz, strict=True):
        header["n" + axis] = header["m" + axis] = size
        header["cella"][axis] = size * voxel_size
        header["origin"][axis] = origin
    header["cellb"]["alpha"] = header["cellb"]["beta"] = header["cellb"]["gamma"] = 90
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["map"] = b"MAP "
    header["machst"] = (0x44, 0x44, 0, 0)
    header["nlabl"] = 1
    header["label"][0] = _LABEL.ljust(80)
    if mode == 0:
        raw = bytearray(header.tobytes())
        raw[152:160] = np.array([IMOD_STAMP, 1], "<i4").tobytes()
        header = np.frombuffer(bytes(raw), header.dtype)[0].copy()
    return header


def _set_statistics(header: NDArray[Any], data: NDArray[Any]) -> None:
    """Fill minimum, maximum, mean and rms, a section at a time, in a fixed order of additions."""
    low, high, total, squares = np.inf, -np.inf, 0.0, 0.0
    for section in data:
        values = np.ascontiguousarray(section, np.float64)
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        total += float(values.sum())
        squares += float(np.square(values).sum())
    mean = total / data.size
    header["dmin"], header["dmax"], header["dmean"] = low, high, mean
    header["rms"] = np.sqrt(max(0.0, squares / data.size - mean * mean))
