"""The CPU kernels' compiled loops: the innermost in LLVM's language, those around it for numba.

Compilers do not find the innermost loops by themselves: sixteen sums stay in vector registers while
the inputs of a densely connected network stream by. So they are written in LLVM's own language, and
numba's intrinsics put them into compiled Python. All of it is in this one file, because numba's
cache of compiled code asks for no other file's age.

Buffers hold 4-byte elements `[group][z][y][x]`: in float32 a group is a channel; in bfloat16 a pair
of channels, the even one in the lower half, which the processor's `vdpbf16ps` multiplies and adds
at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

I1, I16, I32, I64, F32 = (
    ir.IntType(1),
    ir.IntType(16),
    ir.IntType(32),
    ir.IntType(64),
    ir.FloatType(),
)
KERNEL, SLOPE = 3, 0.01
PREFETCH_LOCALITY = 3


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's `bfloat`, which llvmlite does not know."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


BF16 = _BFloat()


@dataclass(frozen=True)
class Target:
    """What the vectors of this processor hold.

    `rows` x `rows` sums of `lanes` floats are kept in registers; `pairs`: bfloat16 in pairs.
    """

    lanes: int
    rows: int
    pairs: bool

    @property
    def name(self) -> str:
        return f"{self.lanes}_{self.rows}_{'bf16' if self.pairs else 'f32'}"


class _Code:
    """One function under construction: llvmlite's builder and words for what is done often."""

    def __init__(
        self, module: ir.Module, name: str, arguments: Sequence[str], target: Target
    ) -> None:
        kind = ir.FunctionType(ir.VoidType(), [F32 if a == "bias" else I64 for a in arguments])
        self.function = ir.Function(module, kind, name)
        self.function.linkage = "internal"
        self.function.attributes.add("noinline")
        # Processors that prefer narrow vectors would else be given these in halves.
        for key in ("min-legal-vector-width", "prefer-vector-width"):
            set.add(self.function.attributes, f'"{key}"="{32 * target.lanes}"')
        self.module, self.target = module, target
        self.arguments = dict(zip(arguments, self.function.args, strict=True))
        self.b = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.ints = ir.VectorType(I32, target.lanes)
        self.floats = ir.VectorType(F32, target.lanes)

    def number(self, value: int) -> ir.Constant:
        return ir.Constant(I64, value)

    def all(self, kind: ir.VectorType, value: float) -> ir.Constant:
        """A constant in all lanes."""
        return ir.Constant(kind, [value] * self.target.lanes)

    def times(self, value: Any, factor: int) -> Any:
        return self.b.mul(value, self.number(factor))

    def pointer(self, address: Any, kind: ir.Type) -> Any:
        return self.b.inttoptr(address, kind.as_pointer())

    def load(self, address: Any, kind: ir.Type) -> Any:
        value = self.b.load(self.pointer(address, kind))
        value.align = 4
        return value

    def prefetch(self, address: Any) -> None:
        """Fetch what the next vector needs: these are more rows than the hardware foresees."""
        flags = [ir.Constant(I32, n) for n in (0, PREFETCH_LOCALITY, 1)]
        self.call("llvm.prefetch.p0", ir.VoidType(), self.pointer(address, I32), *flags)

    def spread(self, scalar: Any, kind: ir.VectorType) -> Any:
        """A scalar in all lanes."""
        undefined = ir.Constant(kind, ir.Undefined)
        first = self.b.insert_element(undefined, scalar, ir.Constant(I32, 0))
        lanes = ir.VectorType(I32, self.target.lanes)
        return self.b.shuffle_vector(first, undefined, ir.Constant(lanes, [0] * self.target.lanes))

    def call(self, name: str, result: ir.Type, *values: Any) -> Any:
        kind = ir.FunctionType(result, [v.type for v in values])
        function = self.module.globals.get(name) or ir.Function(self.module, kind, name)
        return self.b.call(function, values)

    def multiply_add(self, weight: Any, x: Any, total: Any) -> Any:
        """`total + weight * x`, of bfloat16 pairs both products."""
        if not self.target.pairs:
            lanes = self.target.lanes
            w, v = (self.b.bitcast(a, self.floats) for a in (weight, x))
            return self.call(f"llvm.fma.v{lanes}f32", self.floats, w, v, total)
        pairs = ir.VectorType(BF16, 2 * self.target.lanes)
        w, v = (self.b.bitcast(a, pairs) for a in (weight, x))
        name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * self.target.lanes}"
        return self.call(name, self.floats, total, w, v)

    def mask(self, count: Any) -> Any:
        """The first `count` lanes."""
        lanes = ir.Constant(self.ints, list(range(self.target.lanes)))
        return self.b.icmp_signed("<", lanes, self.spread(self.b.trunc(count, I32), self.ints))

    def store(self, value: Any, address: Any, mask: Any) -> None:
        lanes = self.target.lanes
        name = f"llvm.masked.store.v{lanes}{'f' if value.type == self.floats else 'i'}32.p0"
        where = self.pointer(address, value.type)
        self.call(name, ir.VoidType(), value, where, ir.Constant(I32, 4), mask)

    def rounded(self, value: Any) -> Any:
        """Floats as bfloat16 in the upper half of 32 bits, to the nearest, ties to even."""
        bits = self.b.bitcast(value, self.ints)
        odd = self.b.and_(self.b.lshr(bits, self.all(self.ints, 16)), self.all(self.ints, 1))
        up = self.b.add(bits, self.b.add(odd, self.all(self.ints, 0x7FFF)))
        return self.b.and_(up, self.all(self.ints, 0xFFFF0000 - (1 << 32)))

    def loop(
        self, count: Any, carried: Sequence[Any], body: Callable[..., Sequence[Any]]
    ) -> list[Any]:
        """`for i in range(count): carried = body(i, *carried)`; count must be at least 1."""
        before = self.b.block
        head = self.b.append_basic_block("loop")
        after = self.b.append_basic_block("after")
        self.b.branch(head)
        self.b.position_at_end(head)
        index = self.b.phi(I64)
        index.add_incoming(self.number(0), before)
        phis = [self.b.phi(v.type) for v in carried]
        for phi, value in zip(phis, carried, strict=True):
            phi.add_incoming(value, before)
        results = body(index, *phis)
        following = self.b.add(index, self.number(1))
        index.add_incoming(following, self.b.block)
        for phi, value in zip(phis, results, strict=True):
            phi.add_incoming(value, self.b.block)
        self.b.cbranch(self.b.icmp_signed("<", following, count), head, after)
        self.b.position_at_end(after)
        return list(results)


CONVOLVE = ("x", "group", "plane", "row", "step", "w", "groups", "bias", "out", "out_plane",
            "out_row", "count", "slot")  # fmt: skip


def convolve(
    module: ir.Module, target: Target, planes: int, rows: int, *, adds: bool
) -> ir.Function:
    """A 3x3x3 convolution of `planes` x `rows` vectors that lie one dilation apart.

    Arguments (bytes): `x` the corner of the first group's inputs, one dilation before the first
    output in z, y and x; `group`, and `plane`, `row`, `step`, the distance of groups and, at the
    dilation, of planes, rows and columns; `w` weights `[group][dx][dz][dy]`; `out` the first output
    with the distances of planes and rows at the dilation; `count` lanes to store. Not `adds`: bias,
    leaky ReLU, and the result goes to the half `slot` of a pair, or is stored. `adds`: the sums are
    added to the floats at `out`.
    """
    name = f"tomoline_convolve_{target.name}_{planes}_{rows}_{int(adds)}"
    if name in module.globals:
        return module.globals[name]
    code = _Code(module, name, CONVOLVE, target)
    a, b = code.arguments, code.b
    sums = [code.all(code.floats, 0.0)] * (planes * rows)

    def add_group(index: Any, *totals: Any) -> list[Any]:
        new = list(totals)
        base = b.add(a["x"], b.mul(index, a["group"]))
        weights = b.add(a["w"], code.times(index, 4 * KERNEL**3))
        for dx in range(KERNEL):
            column = b.add(base, code.times(a["step"], dx))
            w = [
                code.spread(
                    code.load(b.add(weights, code.number(4 * (9 * dx + k))), I32), code.ints
                )
                for k in range(9)
            ]
            for z in range(planes + 2):
                first = b.add(column, code.times(a["plane"], z))
                for y in range(rows + 2):
                    address = b.add(first, code.times(a["row"], y))
                    x = code.load(address, code.ints)
                    if dx == KERNEL - 1:
                        code.prefetch(b.add(address, code.number(8 * target.lanes - 1)))
                    for dz in range(KERNEL):
                        for dy in range(KERNEL):
                            i, j = z - dz, y - dy
                            if 0 <= i < planes and 0 <= j < rows:
                                k = i * rows + j
                                new[k] = code.multiply_add(w[3 * dz + dy], x, new[k])
        return new

    sums = code.loop(a["groups"], sums, add_group)
    mask = code.mask(a["count"])
    for i in range(planes):
        for j in range(rows):
            out = b.add(a["out"], b.add(code.times(a["out_plane"], i), code.times(a["out_row"], j)))
            value = sums[i * rows + j]
            if adds:
                old = code.load(out, code.floats)
                code.store(b.fadd(old, value), out, mask)
            else:
                _store_map(code, b.fadd(value, code.spread(a["bias"], code.floats)), out, mask)
    b.ret_void()
    return code.function


def _store_map(code: _Code, value: Any, out: Any, mask: Any) -> None:
    """Leaky ReLU, and into the buffer; of a pair the other half stays."""
    b = code.b
    positive = b.fcmp_ordered(">", value, code.all(code.floats, 0.0))
    value = b.select(positive, value, b.fmul(value, code.all(code.floats, SLOPE)))
    if code.target.pairs:
        high = code.rounded(value)
        old = code.load(out, code.ints)
        upper = b.or_(b.and_(old, code.all(code.ints, 0xFFFF)), high)
        lower = b.or_(
            b.and_(old, code.all(code.ints, -0x10000)), b.lshr(high, code.all(code.ints, 16))
        )
        is_upper = b.icmp_signed("!=", code.arguments["slot"], code.number(0))
        value = b.select(is_upper, upper, lower)
    code.store(value, out, mask)


MIX = ("x", "group", "w", "groups", "w_class", "bias_at", "out", "out_class", "count")


def mix(module: ir.Module, target: Target, classes: int) -> ir.Function:
    """A 1x1x1 convolution of one vector to `classes` sums, with bias, stored as floats."""
    name = f"tomoline_mix_{target.name}_{classes}"
    if name in module.globals:
        return module.globals[name]
    code = _Code(module, name, MIX, target)
    a, b = code.arguments, code.b
    start = [
        code.spread(code.load(b.add(a["bias_at"], code.number(4 * k)), F32), code.floats)
        for k in range(classes)
    ]

    def add_group(index: Any, *totals: Any) -> list[Any]:
        x = code.load(b.add(a["x"], b.mul(index, a["group"])), code.ints)
        new = []
        for k, total in enumerate(totals):
            w = b.add(b.add(a["w"], code.times(a["w_class"], k)), code.times(index, 4))
            new.append(code.multiply_add(code.spread(code.load(w, I32), code.ints), x, total))
        return new

    sums = code.loop(a["groups"], start, add_group)
    mask = code.mask(a["count"])
    for k, value in enumerate(sums):
        code.store(value, b.add(a["out"], code.times(a["out_class"], k)), mask)
    b.ret_void()
    return code.function


MOST_CLASSES = 24
# Columns of a table of passes: dilation; weights `[group][dx][dz][dy]`; groups to read; addresses
# of the first voxel of the first group to read and of the result; the half of a pair.
STEP, WEIGHTS, GROUPS, SOURCE, OUT, SLOT = range(6)
COLUMNS = 6


def _target(*, pairs: bool) -> Target:
    features = llvmlite.binding.get_host_cpu_features()
    if features.get("avx512f"):
        return Target(16, 4, pairs)
    return Target(8 if features.get("avx2") else 4, 3, pairs)


def has_pairs() -> bool:
    """Whether this processor multiplies pairs of bfloat16."""
    return bool(llvmlite.binding.get_host_cpu_features().get("avx512bf16"))


def has_vectors() -> bool:
    """Whether this processor multiplies and adds in one step; without, these loops are slow."""
    features = llvmlite.binding.get_host_cpu_features()
    is_x86 = llvmlite.binding.get_process_triple().startswith(("x86", "i686", "i386"))
    return bool(features.get("fma")) or not is_x86


PAIRS, FLOATS = _target(pairs=True), _target(pairs=False)
LANES, ROWS = FLOATS.lanes, FLOATS.rows


def _switch(
    builder: ir.IRBuilder, value: Any, functions: dict[int, ir.Function], arguments: Sequence[Any]
) -> None:
    """Call the function that belongs to a value."""
    end = builder.append_basic_block("end")
    switch = builder.switch(value, end)
    for number, function in functions.items():
        block = builder.append_basic_block(f"case{number}")
        switch.add_case(ir.Constant(ir.IntType(64), number), block)
        builder.position_at_end(block)
        builder.call(function, arguments)
        builder.branch(end)
    builder.position_at_end(end)


def _intrinsic(
    target: Target, names: Sequence[str], functions: Callable[[ir.Module], dict[int, ir.Function]]
) -> Any:
    """For numba: call that of some functions, made when they are needed, that belongs to a number.

    The call is `(number, values)`, the values those of `names`; a bias comes as a double.
    """

    @intrinsic
    def call(typingctx, number, arguments):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, values):  # type: ignore[no-untyped-def]
            if target.pairs and not has_pairs():
                return context.get_dummy_value()
            parts = [builder.extract_value(values[1], i) for i in range(len(names))]
            if "bias" in names:
                bias = names.index("bias")
                parts[bias] = builder.fptrunc(parts[bias], ir.FloatType())
            _switch(builder, values[0], functions(builder.module), parts)
            return context.get_dummy_value()

        return types.void(number, arguments), codegen

    return call


def _convolve_intrinsic(target: Target, *, adds: bool) -> Any:
    """`convolve` of p planes and r rows; their number is 8 p + r."""
    counts = range(1, target.rows + 1)
    return _intrinsic(target, CONVOLVE, lambda module: {
        8 * p + r: convolve(module, target, p, r, adds=adds) for p in counts for r in counts
    })  # fmt: skip


def _mix_intrinsic(target: Target) -> Any:
    """`mix` to as many classes as the number says."""
    return _intrinsic(target, MIX, lambda module: {
        k: mix(module, target, k) for k in range(1, MOST_CLASSES + 1)
    })  # fmt: skip


_MAP_FLOATS, _ADD_FLOATS, _MIX_FLOATS = (
    _convolve_intrinsic(FLOATS, adds=False), _convolve_intrinsic(FLOATS, adds=True),
    _mix_intrinsic(FLOATS),
)  # fmt: skip
_MAP_PAIRS, _ADD_PAIRS, _MIX_PAIRS = (
    _convolve_intrinsic(PAIRS, adds=False), _convolve_intrinsic(PAIRS, adds=True),
    _mix_intrinsic(PAIRS),
)  # fmt: skip


def _compiled(function: Callable[..., None]) -> Any:
    """Compile a function at its first call, and keep the code where there is a place for it."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither beside this file nor at home may anything be written
        return njit(nogil=True)(function)


@_compiled
def run_passes(pairs, adds, table, biases, share, shape, blocks):  # type: ignore[no-untyped-def]
    """Passes from one to another, and a part of their blocks: `share` (first, last, part, parts).

    `pairs` and `adds` are True or None, for which numba leaves out what is not asked for.
    `shape`: the buffer's (planes, rows, columns) and its distances of groups, planes and rows
    (bytes); `blocks`: `(first, count)` of all dilations' blocks, and where those of a dilation in
    z, and then in y, begin and end.
    """
    first, last, part, parts = share
    sizes, strides = shape
    chain, begins = blocks
    columns = sizes[2]
    group, plane, row = strides[0], strides[1], strides[2]
    for p in range(first, last):
        d, out = table[p, STEP], table[p, OUT]
        corner = table[p, SOURCE] - d * (plane + row + 4)
        za, ya, yb = begins[d, 0], begins[d, 1], begins[d, 2]
        count = ya - za
        for a in range(za + count * part // parts, za + count * (part + 1) // parts):
            for b in range(ya, yb):
                start = chain[a, 0] * plane + chain[b, 0] * row
                rows = chain[a, 1] * 8 + chain[b, 1]
                for c in range(0, columns, LANES):
                    at = start + 4 * c
                    values = (
                        corner + at, group, d * plane, d * row, 4 * d, table[p, WEIGHTS],
                        table[p, GROUPS], biases[p], out + at, d * plane, d * row,
                        columns - c, table[p, SLOT],
                    )  # fmt: skip
                    if pairs is None:
                        if adds is None:
                            _MAP_FLOATS(rows, values)
                        else:
                            _ADD_FLOATS(rows, values)
                    elif adds is None:
                        _MAP_PAIRS(rows, values)
                    else:
                        _ADD_PAIRS(rows, values)


@_compiled
def mix_planes(pairs, places, numbers, shape):  # type: ignore[no-untyped-def]
    """The 1x1x1 layer of some planes.

    `places`: addresses of the first voxel, of weights `[class][group]`, biases and the result,
    floats `(classes, z, y, x)`; `numbers`: groups, classes, first and last plane; `shape` as in
    `run_passes`.
    """
    x, w, bias, out = places
    groups, classes, first, last = numbers
    sizes, strides = shape
    rows, columns = sizes[1], sizes[2]
    size = sizes[0] * rows * columns
    for z in range(first, last):
        for y in range(rows):
            for c in range(0, columns, LANES):
                values = (
                    x + z * strides[1] + y * strides[2] + 4 * c, strides[0], w, groups,
                    4 * groups, bias, out + 4 * ((z * rows + y) * columns + c), 4 * size,
                    columns - c,
                )  # fmt: skip
                if pairs is None:
                    _MIX_FLOATS(classes, values)
                else:
                    _MIX_PAIRS(classes, values)


@_compiled
def gather_rows(pairs, maps, grads, sizes, share, result):  # type: ignore[no-untyped-def]
    """Rows of a volume without margins: of its maps, and of gradients moved by each tap.

    `maps`, `grads`: a buffer's words, its first voxel's place, distances of groups, planes and rows
    (words); for `grads` (float32) also each channel's dilation. `sizes`: rows of a plane, columns;
    `share` (first row, last row, part, parts); `result`: `(gradient, 27 taps, voxels)`, a map at u
    beside the gradient at u minus the tap, and `(channel, voxels)`, both the words of floats.
    """
    words, words_first, steps = maps
    known, known_first, known_steps, dilations = grads
    rows, columns = sizes
    first, last, part, parts = share
    moved, values = result
    count, channels = moved.shape[0], values.shape[0]
    for k in range(count * part // parts, count * (part + 1) // parts):
        d = dilations[k]
        for tap in range(KERNEL**3):
            dz, dy, dx = tap // 9 - 1, tap // 3 % 3 - 1, tap % 3 - 1
            shift = d * (dz * known_steps[1] + dy * known_steps[2] + dx)
            start = known_first + k * known_steps[0] - shift
            for r in range(first, last):
                at = start + r // rows * known_steps[1] + r % rows * known_steps[2]
                here = (r - first) * columns
                moved[k, tap, here : here + columns] = known[at : at + columns]
    for k in range(channels * part // parts, channels * (part + 1) // parts):
        group = k if pairs is None else k // 2
        start = words_first + group * steps[0]
        for r in range(first, last):
            at = start + r // rows * steps[1] + r % rows * steps[2]
            here = (r - first) * columns
            x = words[at : at + columns]
            if pairs is None:
                values[k, here : here + columns] = x
            elif k % 2:
                values[k, here : here + columns] = x & np.int32(-65536)
            else:
                values[k, here : here + columns] = x << np.int32(16)
