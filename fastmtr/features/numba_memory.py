"""Memory by address, for Numba: unaligned loads and stores, prefetching, and the bits of numbers.

Arrow's buffers come as addresses: one signature for whatever holds them. Nothing here checks an address; the callers
make them from arrays whose type and size they know.
"""

from __future__ import annotations

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

__all__ = [
    "bits_of",
    "entry",
    "item_f32",
    "item_f64",
    "item_i32",
    "item_i64",
    "item_u64",
    "kernel",
    "load_f64",
    "load_i32",
    "load_i64",
    "load_u8",
    "load_u64",
    "number_of",
    "prefetch",
    "prefetch_lines",
    "store_f32",
    "store_f64",
    "store_i32",
    "store_i64",
    "store_u8",
    "store_u64",
    "upper_product",
]

# Functions that Numba keeps on the disk, and those that are part of them.
entry = njit(nogil=True, cache=True, error_model="numpy")
kernel = njit(nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)

_MOST_AHEAD = 1024


def _pointer(builder, address, kind):
    return builder.inttoptr(address, kind.as_pointer())


def _loading(found):
    def typing(context, address):
        def code(context, builder, signature, args):
            kind = context.get_data_type(found)
            load = builder.load(_pointer(builder, args[0], kind), typ=kind)
            load.align = 1
            return load

        return found(types.int64), code

    return intrinsic(typing)


def _storing(kind):
    def typing(context, address, value):
        def code(context, builder, signature, args):
            store = builder.store(args[1], _pointer(builder, args[0], context.get_data_type(kind)))
            store.align = 1
            return context.get_dummy_value()

        return types.void(types.int64, kind), code

    return intrinsic(typing)


def _item(found):
    def typing(context, address, i):
        def code(context, builder, signature, args):
            kind = context.get_data_type(found)
            load = builder.load(builder.gep(_pointer(builder, args[0], kind), [args[1]]), typ=kind)
            load.align = 1
            return load

        return found(types.int64, types.int64), code

    return intrinsic(typing)


# item_i32(address, i) is the number i of those from an address on: loops over i may become vectors.
item_i32, item_i64, item_u64 = _item(types.int32), _item(types.int64), _item(types.uint64)
item_f32, item_f64 = _item(types.float32), _item(types.float64)
load_u8, load_i32, load_i64 = _loading(types.uint8), _loading(types.int32), _loading(types.int64)
load_u64, load_f64 = _loading(types.uint64), _loading(types.float64)
store_u8, store_i32, store_i64 = _storing(types.uint8), _storing(types.int32), _storing(types.int64)
store_u64, store_f32, store_f64 = _storing(types.uint64), _storing(types.float32), _storing(types.float64)


@intrinsic
def prefetch(context, address):
    """Bring what will be read soon near."""

    def code(context, builder, signature, args):
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), i32, i32, i32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [ir.IntType(8).as_pointer()], kind)
        builder.call(function, [_pointer(builder, args[0], ir.IntType(8)), i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(types.int64), code


@kernel
def prefetch_lines(address, size):
    """Bring so many bytes near, a few of them if these are many."""
    for line in range(0, min(size, _MOST_AHEAD), 64):
        prefetch(address + line)


@intrinsic
def upper_product(context, a, b):
    """The upper 64 bits of a product of two numbers of 64 bits."""

    def code(context, builder, signature, args):
        i128 = ir.IntType(128)
        product = builder.mul(builder.zext(args[0], i128), builder.zext(args[1], i128))
        return builder.trunc(builder.lshr(product, i128(64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), code


@intrinsic
def bits_of(context, x):
    """The bits of a float64."""

    def code(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(64))

    return types.uint64(types.float64), code


@intrinsic
def number_of(context, bits):
    """The float64 of these bits."""

    def code(context, builder, signature, args):
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.uint64), code
