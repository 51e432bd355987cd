# ruff: noqa: PLR0913, PLR0917 (a kernel takes plain numbers, one by one)
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
"""Triton kernels of `triton_msdnet`, which explains the design; imported only where Triton is.

Index names: `i` counts the real voxels of a batch (b, z, y, x; x fastest), `at` or `pos` is the
place of a voxel in a padded buffer (see `triton_msdnet.Geometry`), `slot` a channel of the maps'
buffer, which is laid out `(group of 8 channels, padded voxel, channel in the group)`. Voxel counts
fit 32 bits; places and everything multiplied by a channel are 64-bit.

`EXACT` is for Triton's interpreter on processors, which neither multiplies bfloat16 nor rounds to
it: operands are widened to float32, where their products are exact, and rounded by hand.
"""

from __future__ import annotations

import inspect
from typing import Any

import triton
import triton.language as tl

# Sizes that differ between layers and windows: without this, each combination of values that 16
# divides would be compiled anew. Not among them: what says how wide loads and stores can be.
_VARY = [
    "chunks", "columns", "channels", "Z", "Y", "X", "ZP", "YP", "XP", "lead", "group",
    "ZQ", "YQ", "XQ", "lead_q", "plane", "first_slot",
]  # fmt: skip


def _jit(function: Any) -> Any:
    names = inspect.signature(function).parameters
    return triton.jit(do_not_specialize=[n for n in _VARY if n in names])(function)


CHUNK = tl.constexpr(8)  # channels stored side by side: 16 bytes of bfloat16, one load a thread

COLUMNS, MAPS, LOGITS, PROBABILITIES, BYTES = 0, 1, 2, 3, 4  # what `product` makes of its sums
_MAPS, _LOGITS = tl.constexpr(MAPS), tl.constexpr(LOGITS)
_COLUMNS, _BYTES = tl.constexpr(COLUMNS), tl.constexpr(BYTES)


@triton.jit
def _coordinates(i, Z, Y, X):
    """Batch item, z, y and x of voxel i."""
    row = i // X
    section = row // Y
    item = section // Z
    return item, section - item * Z, row - section * Y, i - row * X


@triton.jit
def _position(item, z, y, x, ZP, YP, XP, lead):
    """Place in a padded buffer, in voxels (64-bit)."""
    row = (item * ZP + z).to(tl.int64) * YP + y
    return row * XP + x + lead


@triton.jit
def _places(first_slot, j, pos, group, WIDTH: tl.constexpr):
    """Places `(voxels, maps)` of a layer's maps in the maps' buffer."""
    if CHUNK % WIDTH == 0:
        # One group holds the layer, aligned by the plan (which the compiler sees by the division).
        lane = (first_slot % CHUNK) // WIDTH * WIDTH
        place = (first_slot // CHUNK).to(tl.int64) * group + pos
        return place[:, None] * CHUNK + (lane + j)[None, :]
    slot = first_slot + j
    place = (slot // CHUNK).to(tl.int64)[None, :] * group + pos[:, None]
    return place * CHUNK + (slot % CHUNK)[None, :]


@triton.jit
def _lower(values, like, EXACT: tl.constexpr):
    """Float32 rounded to nearest even in the type of the buffer `like`."""
    if EXACT and like.dtype.element_ty == tl.bfloat16:
        bits = values.to(tl.int32, bitcast=True)
        bits = bits + 0x7FFF + ((bits >> 16) & 1)
        values = ((bits >> 16) << 16).to(tl.float32, bitcast=True)
    return values.to(like.dtype.element_ty)


@triton.jit
def _add_product(a, b, total, PRECISION: tl.constexpr, EXACT: tl.constexpr):
    """`total + a @ b`, float32 sums."""
    if EXACT:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    return tl.dot(a, b, total, input_precision=PRECISION)


@_jit
def product(
    maps, table, weights, bias, out,
    chunks, columns, voxels, Z, Y, X, ZP, YP, XP, lead, group, first_slot,
    WIDTH: tl.constexpr, N: tl.constexpr, SLOPE: tl.constexpr, EPILOGUE: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Shifted maps times weights: `sum_q maps[voxel + table[q], 8] weights[8 q .. 8 q + 7, N]`.

    `table` holds, for each chunk of 8 channels at one shift, its place relative to the voxel
    (group offset and shift, in voxels). `EPILOGUE` says what is written:

    COLUMNS: the sums, `out (columns, voxels)` float32; MAPS: bias, leaky ReLU, to `maps` from
    `first_slot` on; LOGITS, PROBABILITIES: `out (items, columns, z, y, x)` float32; BYTES:
    `out (voxels)`, 255 times the probability of class 1, rounded.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = i < voxels
    # Voxels beyond the last repeat it, so that no load in the loop needs a mask.
    item, z, y, x = _coordinates(tl.minimum(i, voxels - 1), Z, Y, X)
    pos = _position(item, z, y, x, ZP, YP, XP, lead)
    rows = maps + pos[:, None] * CHUNK
    k = tl.arange(0, BLOCK_K)
    total = tl.zeros([BLOCK, BLOCK_N], dtype=tl.float32)
    for q in range(0, chunks, BLOCK_K // CHUNK):
        at = tl.load(table + q + k // CHUNK) * CHUNK + k % CHUNK
        a = tl.load(rows + at[None, :])
        b = tl.load(weights + (k + q * CHUNK)[:, None] * N + n[None, :])
        total = _add_product(a, b, total, PRECISION, EXACT)

    wanted = inside[:, None] & (n < columns)[None, :]
    if EPILOGUE == _COLUMNS:
        tl.store(out + n.to(tl.int64)[None, :] * voxels + i[:, None], total, mask=wanted)
    else:
        total += tl.load(bias + n, mask=n < columns, other=0.0)[None, :]
        if EPILOGUE == _MAPS:
            total = tl.where(total > 0, total, total * SLOPE)
            place = _places(first_slot, n, pos, group, WIDTH)
            tl.store(maps + place, _lower(total, maps, EXACT), mask=wanted)
        else:
            if EPILOGUE != _LOGITS:
                total = tl.where((n < columns)[None, :], total, float("-inf"))
                total = tl.exp(total - tl.max(total, 1)[:, None])
                total = total / tl.sum(total, 1)[:, None]
            if EPILOGUE == _BYTES:
                share = tl.sum(tl.where((n == 1)[None, :], total, 0.0), 1)
                # Through int32: converting a float to 8 bits directly is not defined everywhere.
                tl.store(out + i, (share * 255.0 + 0.5).to(tl.int32).to(tl.uint8), mask=inside)
            else:
                volume = Z * Y * X
                plane = item[:, None].to(tl.int64) * columns + n[None, :]
                place = plane * volume + (i - item * volume)[:, None]
                tl.store(out + place, total, mask=wanted)


@_jit
def combine(
    columns, shifts, bias, maps,
    voxels, Z, Y, X, ZP, YP, XP, lead, group, first_slot,
    WIDTH: tl.constexpr, BLOCK_W: tl.constexpr, TAPS: tl.constexpr, ACROSS: tl.constexpr,
    SLOPE: tl.constexpr, EXACT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """New maps from the columns of `product`: each the sum of its `TAPS` columns, shifted.

    `columns (WIDTH * TAPS, voxels)` float32, `shifts (WIDTH * TAPS, 3)` voxels zyx (int32);
    `ACROSS`: some are in x.
    Columns beyond the volume's faces are those of zeros, so they are left out.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    j = tl.arange(0, BLOCK_W)
    wanted = (i < voxels)[:, None] & (j < WIDTH)[None, :]
    item, z, y, x = _coordinates(i, Z, Y, X)
    total = tl.zeros([BLOCK, BLOCK_W], dtype=tl.float32)
    for tap in tl.static_range(TAPS):
        column = j * TAPS + tap
        dz = tl.load(shifts + column * 3, mask=j < WIDTH, other=0)
        dy = tl.load(shifts + column * 3 + 1, mask=j < WIDTH, other=0)
        zs, ys = z[:, None] + dz[None, :], y[:, None] + dy[None, :]
        there = wanted & (zs >= 0) & (zs < Z) & (ys >= 0) & (ys < Y)
        shift = (dz * Y + dy) * X
        if ACROSS:
            dx = tl.load(shifts + column * 3 + 2, mask=j < WIDTH, other=0)
            xs = x[:, None] + dx[None, :]
            there = there & (xs >= 0) & (xs < X)
            shift += dx
        place = column.to(tl.int64) * voxels + shift
        total += tl.load(columns + (place[None, :] + i[:, None]), mask=there, other=0.0)
    total += tl.load(bias + j, mask=j < WIDTH, other=0.0)[None, :]
    total = tl.where(total > 0, total, total * SLOPE)
    pos = _position(item, z, y, x, ZP, YP, XP, lead)
    tl.store(
        maps + _places(first_slot, j, pos, group, WIDTH), _lower(total, maps, EXACT), mask=wanted
    )


@_jit
def before_activation(
    gradient, maps, planes,
    voxels, Z, Y, X, ZP, YP, XP, lead, group, ZQ, YQ, XQ, lead_q, plane, first_slot,
    WIDTH: tl.constexpr, BLOCK_W: tl.constexpr, SLOPE: tl.constexpr, EXACT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of a layer's maps before the leaky ReLU: `gradient (slots, voxels)` to `planes`.

    `planes (WIDTH, plane)` has margins of its own (`ZQ, YQ, XQ, lead_q`). The slope is positive,
    so a map's sign tells on which side of zero its argument was.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    j = tl.arange(0, BLOCK_W)
    wanted = (i < voxels)[:, None] & (j < WIDTH)[None, :]
    item, z, y, x = _coordinates(i, Z, Y, X)
    slot = first_slot + j
    value = tl.load(
        gradient + slot.to(tl.int64)[None, :] * voxels + i[:, None], mask=wanted, other=0.0
    )
    pos = _position(item, z, y, x, ZP, YP, XP, lead)
    place = _places(first_slot, j, pos, group, WIDTH)
    map_value = tl.load(maps + place, mask=wanted, other=0.0).to(tl.float32)
    value = tl.where(map_value > 0, value, value * SLOPE)
    to = _position(item, z, y, x, ZQ, YQ, XQ, lead_q)
    place = j.to(tl.int64)[None, :] * plane + to[:, None]
    tl.store(planes + place, _lower(value, planes, EXACT), mask=wanted)


@_jit
def spread(
    planes, table, weights, gradient,
    rows, channels, voxels, Z, Y, X, ZQ, YQ, XQ, lead_q,
    ADD: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """What a layer gives to the gradient of the maps it read, gathered (no two programs share).

    `gradient[c, voxel] (+)= sum_q weights[c, q] planes[voxel + table[q]]`, float32; `rows` rows q,
    a multiple of `BLOCK_K`. Voxels are the last axis, so that loads and stores are coalesced.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    item, z, y, x = _coordinates(tl.minimum(i, voxels - 1), Z, Y, X)
    pos = _position(item, z, y, x, ZQ, YQ, XQ, lead_q)
    k = tl.arange(0, BLOCK_K)
    total = tl.zeros([BLOCK_C, BLOCK], dtype=tl.float32)
    for q in range(0, rows, BLOCK_K):
        a = tl.load(weights + c[:, None] * rows + (q + k)[None, :])
        b = tl.load(planes + tl.load(table + q + k)[:, None] + pos[None, :])
        total = _add_product(a, b, total, PRECISION, EXACT)
    place = gradient + c.to(tl.int64)[:, None] * voxels + i[None, :]
    wanted = (c < channels)[:, None] & (i < voxels)[None, :]
    if ADD:
        total += tl.load(place, mask=wanted, other=0.0)
    tl.store(place, total, mask=wanted)


@_jit
def correlate(
    planes, table, maps, partial,
    rows, channels, voxels, Z, Y, X, ZP, YP, XP, lead, group, ZQ, YQ, XQ, lead_q,
    PRECISION: tl.constexpr, EXACT: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gradient of a layer's weights over every `num_programs(0)`-th block of voxels.

    `partial[split, q, c] = sum_voxel planes[voxel + table[q]] maps[voxel, c]`, `(splits, rows,
    channels)` float32; the splits are added afterwards in a fixed order, without atomics.
    """
    split, splits = tl.program_id(0), tl.num_programs(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    q = tl.program_id(2) * BLOCK_K + tl.arange(0, BLOCK_K)
    at = tl.load(table + q)
    # Channels beyond the last group repeat it: `channels` is rounded up further than the buffer.
    chunk = tl.minimum(c // CHUNK, channels // CHUNK - 1)
    lanes = chunk.to(tl.int64) * group * CHUNK + c % CHUNK
    total = tl.zeros([BLOCK_K, BLOCK_C], dtype=tl.float32)
    for block in range(split, tl.cdiv(voxels, BLOCK), splits):
        i = block * BLOCK + tl.arange(0, BLOCK)
        item, z, y, x = _coordinates(tl.minimum(i, voxels - 1), Z, Y, X)
        pos = _position(item, z, y, x, ZP, YP, XP, lead)
        to = _position(item, z, y, x, ZQ, YQ, XQ, lead_q)
        a = tl.load(planes + at[:, None] + to[None, :], mask=(i < voxels)[None, :], other=0.0)
        b = tl.load(maps + pos[:, None] * CHUNK + lanes[None, :])
        total = _add_product(a, b, total, PRECISION, EXACT)
    place = (split * rows + q).to(tl.int64)[:, None] * channels + c[None, :]
    tl.store(partial + place, total, mask=(c < channels)[None, :] & (q < rows)[:, None])


INTERPRETED = not isinstance(product, triton.runtime.JITFunction)  # TRITON_INTERPRET=1
