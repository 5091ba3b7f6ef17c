"""Vectors of float32 for loops that numba compiles: what `nasengine.kernels` is written in. Needs numba.

A vector has 16 lanes where the processor has registers for them (AVX-512), else 8, which is one register with AVX2 and
two with SSE or NEON. Addresses are int64, in bytes, and need only the alignment of a float. Every function is an
instruction or two; products and sums may be fused and nothing else is allowed to the compiler, so NaN and infinity go
where IEEE 754 sends them.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-call, no-any-unimported"

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

LANES: Final = 16 if binding.get_host_cpu_features().get("avx512f") else 8
BYTES: Final = 4 * LANES
_FLOAT = ir.FloatType()
_INT = ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_MASK = ir.VectorType(ir.IntType(1), LANES)
_FUSE: Final = ("contract",)

Signature = tuple[Any, Callable[..., Any]]


class _Vector(types.Type):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


vector = _Vector()


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


def _pointer(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _spread(builder: Any, number: Any, kind: Any) -> Any:
    """A vector with the number in every lane."""
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def _first(builder: Any, count: Any) -> Any:
    """The mask of the first lanes."""
    wide = ir.VectorType(_INT, LANES)
    return builder.icmp_signed("<", ir.Constant(wide, list(range(LANES))), _spread(builder, count, wide))


def load_at(builder: Any, address: Any) -> Any:
    """A vector of what lies at an address, for LLVM."""
    return builder.load(_pointer(builder, address, _VECTOR), align=4)


def splat_at(builder: Any, address: Any) -> Any:
    """The one float at an address in all lanes, for LLVM."""
    return _spread(builder, builder.load(_pointer(builder, address, _FLOAT), align=4), _VECTOR)


def fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, for LLVM."""
    return builder.fadd(builder.fmul(a, b, flags=_FUSE), c, flags=_FUSE)


@intrinsic
def load(typing: Any, address: Any) -> Signature:
    """A vector of what lies at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return load_at(builder, arguments[0])

    return vector(types.int64), generate


@intrinsic
def store(typing: Any, address: Any, value: Any) -> Signature:
    """Writes a vector."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[1], _pointer(builder, arguments[0], _VECTOR), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, vector), generate


@intrinsic
def load_first(typing: Any, address: Any, count: Any) -> Signature:
    """The first `count` floats, zeros in the other lanes; nothing behind them is read."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(builder, arguments[0], _VECTOR)
        kind = ir.FunctionType(_VECTOR, [pointer.type, ir.IntType(32), _MASK, _VECTOR])
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.v{LANES}f32.p0")
        mask, zeros = _first(builder, arguments[1]), ir.Constant(_VECTOR, [0.0] * LANES)
        return builder.call(function, [pointer, ir.Constant(ir.IntType(32), 4), mask, zeros])

    return vector(types.int64, types.int64), generate


@intrinsic
def store_first(typing: Any, address: Any, value: Any, count: Any) -> Signature:
    """Writes the first `count` lanes and nothing else."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(builder, arguments[0], _VECTOR)
        kind = ir.FunctionType(ir.VoidType(), [_VECTOR, pointer.type, ir.IntType(32), _MASK])
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.store.v{LANES}f32.p0")
        mask = _first(builder, arguments[2])
        builder.call(function, [arguments[1], pointer, ir.Constant(ir.IntType(32), 4), mask])
        return context.get_dummy_value()

    return types.void(types.int64, vector, types.int64), generate


@intrinsic
def zeros(typing: Any) -> Signature:
    """A vector of zeros."""
    return vector(), lambda context, builder, signature, arguments: ir.Constant(_VECTOR, [0.0] * LANES)


@intrinsic
def splat(typing: Any, address: Any) -> Signature:
    """The one float at an address, in all lanes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return splat_at(builder, arguments[0])

    return vector(types.int64), generate


@intrinsic
def filled(typing: Any, number: Any) -> Signature:
    """A float32 in all lanes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _spread(builder, arguments[0], _VECTOR)

    return vector(types.float32), generate


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Signature:
    """a * b + c."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return fused(builder, *arguments)

    return vector(vector, vector, vector), generate


@intrinsic
def add(typing: Any, a: Any, b: Any) -> Signature:
    """a + b."""
    return vector(vector, vector), lambda context, builder, signature, arguments: builder.fadd(*arguments)


@intrinsic
def subtract(typing: Any, a: Any, b: Any) -> Signature:
    """a - b."""
    return vector(vector, vector), lambda context, builder, signature, arguments: builder.fsub(*arguments)


@intrinsic
def multiply(typing: Any, a: Any, b: Any) -> Signature:
    """a * b."""
    return vector(vector, vector), lambda context, builder, signature, arguments: builder.fmul(*arguments)


@intrinsic
def gate(typing: Any, value: Any, by: Any) -> Signature:
    """Zero where `by` is at most zero, else the value, NaN too: the rectifier (of `by` = value), and its gradient."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        none = ir.Constant(_VECTOR, [0.0] * LANES)
        return builder.select(builder.fcmp_ordered("<=", arguments[1], none), none, arguments[0])

    return vector(vector, vector), generate


@intrinsic
def word(typing: Any, address: Any) -> Signature:
    """The int64 at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_pointer(builder, arguments[0], _INT))

    return types.int64(types.int64), generate


@intrinsic
def put_word(typing: Any, address: Any, value: Any) -> Signature:
    """Writes an int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[1], _pointer(builder, arguments[0], _INT))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def number(typing: Any, address: Any) -> Signature:
    """The float at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_pointer(builder, arguments[0], _FLOAT))

    return types.float32(types.int64), generate


@intrinsic
def put_number(typing: Any, address: Any, value: Any) -> Signature:
    """Writes a float."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[1], _pointer(builder, arguments[0], _FLOAT))
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), generate


@intrinsic
def claim(typing: Any, address: Any) -> Signature:
    """Takes the next number of a counter that threads share: the int64 at the address, which grows by one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", _pointer(builder, arguments[0], _INT), _INT(1), "seq_cst")

    return types.int64(types.int64), generate
