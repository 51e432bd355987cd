"""Strict reading: each doubt about a file's bytes is settled and told, or refused."""

import bz2
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from tomoline.errors import InputError
from tomoline.io.mrc import open_volume, read_header, to_zyx, write_volume

SHAPE = (3, 4, 5)
DTYPES = {0: np.int8, 1: np.int16, 2: np.float32, 6: np.uint16, 12: np.float16}
Edit = Callable[[bytearray], None]


def ramp(dtype: type = np.float32) -> np.ndarray:
    return np.arange(60).reshape(SHAPE).astype(dtype)


def put(offset: int, *values: int | float, kind: str = "<i4") -> Edit:
    """Return an edit that writes values at a byte offset of the header."""

    def edit(raw: bytearray) -> None:
        data = np.array(values, kind).tobytes()
        raw[offset : offset + len(data)] = data

    return edit


def make(folder: Path, *edits: Edit, array: np.ndarray | None = None, voxel: float = 10.0) -> Path:
    """Write a good file, then change its bytes."""
    path = folder / "tomogram.mrc"
    write_volume(path, ramp() if array is None else array, voxel)
    raw = bytearray(path.read_bytes())
    for edit in edits:
        edit(raw)
    path.write_bytes(raw)
    return path


def refused(path: Path, *words: str) -> None:
    """The error names the file and says each word."""
    with pytest.raises(InputError) as caught:
        read_header(path)
    text = str(caught.value)
    assert str(path) in text
    assert "Remedy" in text
    for word in words:
        assert word in text


# --- good files


@pytest.mark.parametrize("mode", DTYPES)
def test_each_mode_comes_back(tmp_path: Path, mode: int) -> None:
    given = ramp(DTYPES[mode]) - DTYPES[mode](0 if mode == 6 else 20)
    path = tmp_path / "a.mrc"
    write_volume(path, given, 10.52)
    header = read_header(path)
    assert header.mode == mode
    assert header.file_shape == header.shape_zyx == SHAPE
    assert header.voxel_size_xyz == (10.52, 10.52, 10.52)
    assert header.voxel_size_angstrom == 10.52
    assert header.warnings == ()
    assert header.stamp_ok
    np.testing.assert_array_equal(open_volume(path), given)
    assert mrcfile.validate(path)


def test_our_files_are_read_by_mrcfile_and_theirs_by_us(tmp_path: Path) -> None:
    given = ramp()
    write_volume(tmp_path / "ours.mrc", given, 7.5, origin_xyz_angstrom=(10, 20, 30))
    with mrcfile.open(tmp_path / "ours.mrc") as file:
        np.testing.assert_array_equal(file.data, given)
        assert file.voxel_size.x == pytest.approx(7.5)
        assert file.is_volume()
        assert file.header.dmean == pytest.approx(given.mean())
        assert file.header.rms == pytest.approx(given.std())
    with mrcfile.new(tmp_path / "theirs.mrc", given) as file:
        file.voxel_size = 7.5
    assert read_header(tmp_path / "theirs.mrc").voxel_size_angstrom == 7.5
    np.testing.assert_array_equal(open_volume(tmp_path / "theirs.mrc"), given)


def test_equal_volumes_give_equal_bytes(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.mrc", ramp(), 10)
    write_volume(tmp_path / "b.mrc", np.asfortranarray(ramp()), 10)
    assert (tmp_path / "a.mrc").read_bytes() == (tmp_path / "b.mrc").read_bytes()


def test_a_type_without_a_mode_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="float64"):
        write_volume(tmp_path / "a.mrc", ramp(np.float64), 10)
    assert list(tmp_path.iterdir()) == []


def test_bool_is_written_as_a_mask(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.mrc", ramp() > 30, 10)
    np.testing.assert_array_equal(open_volume(tmp_path / "a.mrc"), ramp() > 30)


def test_a_plain_file_is_mapped_not_loaded(tmp_path: Path) -> None:
    volume = open_volume(make(tmp_path))
    assert isinstance(volume.base, np.memmap) or isinstance(volume, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        volume[0, 0, 0] = 1


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_compressed_files(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = make(tmp_path)
    packed = tmp_path / "tomogram.mrc.packed"  # told by its bytes, not by its name
    packed.write_bytes(pack(path.read_bytes()))
    header = read_header(packed)
    assert header.compression == pack.__module__.replace("bz2", "bzip2")
    assert header.found_bytes == header.expected_bytes == path.stat().st_size
    np.testing.assert_array_equal(open_volume(packed), ramp())


@pytest.mark.parametrize("mode", DTYPES)
def test_big_endian(tmp_path: Path, mode: int) -> None:
    given = ramp(DTYPES[mode])
    path = tmp_path / "big.mrc"
    path.write_bytes(big_endian(make(tmp_path, array=given).read_bytes(), mode))
    header = read_header(path)
    assert header.byte_order == "big"
    assert header.stamp_ok
    assert header.warnings == ()
    assert header.voxel_size_angstrom == 10
    np.testing.assert_array_equal(open_volume(path), given)
    path.write_bytes(gzip.compress(path.read_bytes()))
    np.testing.assert_array_equal(open_volume(path), given)


def big_endian(raw: bytes, mode: int) -> bytes:
    """Turn each number of a file of ours."""
    words = np.frombuffer(raw[:224], "<u4").astype(">u4").tobytes()
    header = bytearray(words + raw[224:1024])
    header[208:212] = b"MAP "
    header[212:216] = b"\x11\x11\x00\x00"
    size = np.dtype(DTYPES[mode]).itemsize
    return bytes(header) + np.frombuffer(raw[1024:], f"<u{size}").astype(f">u{size}").tobytes()


def test_an_extended_header_is_passed_over(tmp_path: Path) -> None:
    path = make(tmp_path, put(92, 80), lambda raw: raw.__setitem__(slice(1024, 1024), b"x" * 80))
    assert read_header(path).extended_bytes == 80
    np.testing.assert_array_equal(open_volume(path), ramp())


def test_a_shifted_origin_moves_no_voxel(tmp_path: Path) -> None:
    path = make(tmp_path, put(196, 1280, -5, 640, kind="<f4"))
    assert read_header(path).origin_xyz == (1280, -5, 640)
    np.testing.assert_array_equal(open_volume(path), ramp())


def test_imods_flag_turns_the_origins_sign(tmp_path: Path) -> None:
    path = make(tmp_path, put(196, 10, 20, 30, kind="<f4"), put(152, 1146047817, 4))
    assert read_header(path).origin_xyz == (-10, -20, -30)


@pytest.mark.parametrize("order", [(1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1)])
def test_axis_orders_are_honoured(tmp_path: Path, order: tuple[int, int, int]) -> None:
    zyx = ramp()
    # mapc names the fastest axis (columns); zyx axes are numbered 3, 2, 1.
    on_file = np.ascontiguousarray(zyx.transpose([3 - axis for axis in order[::-1]]))
    path = make(tmp_path, put(64, *order), array=on_file)
    header = read_header(path)
    assert header.shape_zyx == SHAPE
    assert "order" in header.warnings[0]
    np.testing.assert_array_equal(open_volume(path), zyx)


# --- doubts that are told


@pytest.mark.parametrize("mode", DTYPES)
def test_a_bad_stamp_is_settled_by_the_size(tmp_path: Path, mode: int) -> None:
    given = ramp(DTYPES[mode])
    path = make(tmp_path, put(212, 0), array=given)
    header = read_header(path)
    assert header.byte_order == "little"
    assert not header.stamp_ok
    assert "stamp" in header.warnings[0]
    np.testing.assert_array_equal(open_volume(path), given)
    raw = bytearray(big_endian(make(tmp_path, array=given).read_bytes(), mode))
    raw[212:214] = b"\x44\x44"  # the wrong one, not none
    path.write_bytes(raw)
    assert read_header(path).byte_order == "big"
    np.testing.assert_array_equal(open_volume(path), given)


def test_bytes_after_the_end_are_told(tmp_path: Path) -> None:
    path = make(tmp_path, lambda raw: raw.extend(b"rest"))
    assert "4 bytes after the end" in read_header(path).warnings[0]
    np.testing.assert_array_equal(open_volume(path), ramp())


def test_an_old_file_without_map(tmp_path: Path) -> None:
    path = make(tmp_path, put(208, 0, 0))
    assert "MAP" in " ".join(read_header(path).warnings)
    np.testing.assert_array_equal(open_volume(path), ramp())


def test_no_axis_order_means_the_usual_one(tmp_path: Path) -> None:
    header = read_header(make(tmp_path, put(64, 0, 0, 0)))
    assert header.axis_order == (1, 2, 3)
    assert "mapc" in header.warnings[0]


@pytest.mark.parametrize("voxel", [0.0, 1.0])
def test_a_voxel_size_of_0_or_1_is_none(tmp_path: Path, voxel: float) -> None:
    assert read_header(make(tmp_path, voxel=voxel)).voxel_size_angstrom is None


def test_anisotropic_voxels(tmp_path: Path) -> None:
    header = read_header(make(tmp_path, put(48, 3 * 12.0, kind="<f4")))
    assert header.voxel_size_xyz == (10, 10, 12)
    assert header.anisotropic
    assert not read_header(make(tmp_path, put(48, 3 * 10.01, kind="<f4"))).anisotropic


@pytest.fixture(scope="module")
def grey() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 25, (8, 16, 16)).clip(-128, 127).astype(np.int8)


def without_stamp(raw: bytearray) -> None:
    put(152, 0, 0)(raw)


def test_imods_flag_says_how_bytes_are_read(tmp_path: Path, grey: np.ndarray) -> None:
    signed = make(tmp_path, array=grey)
    assert read_header(signed).signed_bytes is True
    assert read_header(signed).warnings == ()
    np.testing.assert_array_equal(open_volume(signed), grey)
    shifted = (grey.astype(np.int16) + 128).astype(np.uint8)
    unsigned = make(tmp_path, put(156, 0), array=shifted.view(np.int8))
    assert read_header(unsigned).signed_bytes is False
    np.testing.assert_array_equal(open_volume(unsigned), shifted)


def test_unflagged_bytes_are_read_so_that_the_grey_values_hang_together(
    tmp_path: Path, grey: np.ndarray
) -> None:
    signed = make(tmp_path, without_stamp, array=grey)
    np.testing.assert_array_equal(open_volume(signed), grey)
    assert "read as signed" in read_header(signed).warnings[0]
    shifted = (grey.astype(np.int16) + 128).astype(np.uint8)
    unsigned = make(tmp_path, without_stamp, array=shifted.view(np.int8))
    np.testing.assert_array_equal(open_volume(unsigned), shifted)
    assert "read as unsigned" in read_header(unsigned).warnings[0]
    packed = tmp_path / "a.gz"
    packed.write_bytes(gzip.compress(unsigned.read_bytes()))
    np.testing.assert_array_equal(open_volume(packed), shifted)


def test_a_mask_is_no_doubt(tmp_path: Path) -> None:
    header = read_header(make(tmp_path, without_stamp, array=ramp() > 30))
    assert header.warnings == ()


def test_a_flag_that_the_grey_values_belie_is_told(tmp_path: Path, grey: np.ndarray) -> None:
    shifted = (grey.astype(np.int16) + 128).astype(np.uint8)
    header = read_header(make(tmp_path, array=shifted.view(np.int8)))
    assert header.signed_bytes is True
    assert "look unsigned" in header.warnings[0]


# --- refusals


def test_missing_empty_directory(tmp_path: Path) -> None:
    refused(tmp_path / "nothing.mrc", "no such file")
    refused(tmp_path, "directory")
    (tmp_path / "empty.mrc").touch()
    refused(tmp_path / "empty.mrc", "empty")


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    refused(path, "Permission denied")


def test_truncated_data(tmp_path: Path) -> None:
    path = make(tmp_path, lambda raw: raw.__delitem__(slice(-7, None)))
    refused(path, "truncated", "1264 bytes", "1257 bytes", "5 x 4 x 3")


def test_truncated_header(tmp_path: Path) -> None:
    path = make(tmp_path, lambda raw: raw.__delitem__(slice(500, None)))
    refused(path, "500 bytes")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_broken_compression(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    noise = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
    data = pack(make(tmp_path, array=noise).read_bytes())
    path = tmp_path / "broken.mrc.gz"
    path.write_bytes(data[: len(data) // 2])
    refused(path, "break off")
    path.write_bytes(data[:-40] + b"\x00" * 20 + data[-20:])
    refused(path, "damaged")


def test_truncated_inside_a_whole_gzip(tmp_path: Path) -> None:
    path = make(tmp_path)
    path.write_bytes(gzip.compress(path.read_bytes()[:-8]))
    refused(path, "truncated")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"x,y,z\n1,2,3\n" * 200, "text"),
        (b"II*\x00" + b"\x01" * 3000, "TIFF"),
        (b"\x89HDF\r\n\x1a\n" + b"\x01" * 3000, "HDF5"),
        (b"IMODV1.2" + b"\x01" * 3000, "IMOD model"),
        (b"short", "text"),
        (bytes(3000), "something else"),
        (b"\x01" * 3000, "something else"),
    ],
)
def test_not_an_mrc_file(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "a.mrc"
    path.write_bytes(content)
    refused(path, word, "MRC")


@pytest.mark.parametrize(
    ("mode", "word"), [(3, "complex"), (4, "complex"), (101, "4-bit"), (16, "RGB"), (7, "mode 7")]
)
def test_modes_that_hold_no_grey_values(tmp_path: Path, mode: int, word: str) -> None:
    refused(make(tmp_path, put(12, mode)), word, "mode 0, 1, 2, 6 or 12")


def test_a_stamp_that_nothing_settles(tmp_path: Path) -> None:
    path = make(tmp_path, put(212, 0), lambda raw: raw.__delitem__(slice(-8, None)))
    refused(path, "stamp", "neither byte order")


@pytest.mark.parametrize("size", [0, -4, 2**30])
def test_impossible_sizes(tmp_path: Path, size: int) -> None:
    refused(make(tmp_path, put(4, size)))


def test_a_stack_of_volumes(tmp_path: Path) -> None:
    refused(make(tmp_path, put(88, 401), put(36, 1)), "stack of 3 volumes")


def test_impossible_axis_order(tmp_path: Path) -> None:
    refused(make(tmp_path, put(64, 1, 1, 3)), "1 1 3")


# --- the raw output of tilt


def test_tilts_own_order_is_rotated_not_mirrored() -> None:
    zyx = ramp()
    raw = np.empty((4, 3, 5), np.float32)  # sections y, rows depth, columns x
    for z, y, x in np.ndindex(SHAPE):
        raw[y, SHAPE[0] - 1 - z, x] = zyx[z, y, x]
    np.testing.assert_array_equal(to_zyx(raw, "xzy"), zyx)
    assert to_zyx(zyx, "xyz") is zyx
    with pytest.raises(ValueError, match="axes"):
        to_zyx(zyx, "yzx")


@pytest.mark.shared
def test_it_equals_trimvol_bit_for_bit(shared_data: Path) -> None:
    folder = shared_data / "tomograms"
    frames = json.loads((folder / "pn_a_01_params.json").read_text())["frames"]
    assert "y_raw=127-z" in frames["pn_a_01_imodraw.mrc"]
    turned = to_zyx(open_volume(folder / "pn_a_01_imodraw.mrc"), "xzy")
    np.testing.assert_array_equal(turned, open_volume(folder / "pn_a_01.mrc"))


@pytest.mark.shared
def test_real_files(shared_data: Path) -> None:
    header = read_header(shared_data / "tomograms" / "pn_b_03_bytes.mrc")
    assert (header.mode, header.signed_bytes, header.warnings) == (0, True, ())
    for name in ("13pf_MT", "14pf_MT"):
        header = read_header(shared_data / "real" / f"{name}.mrc")
        assert header.signed_bytes is True
        assert header.voxel_size_angstrom == 10.52
    packed = read_header(shared_data / "densities_10A" / "1bxn.mrc.gz")
    assert packed.shape_zyx == (52, 52, 52)
    assert packed.voxel_size_angstrom == 10
