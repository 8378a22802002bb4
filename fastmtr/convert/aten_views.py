"""Operators of PyTorch that show the same numbers in another shape, a part of them, or several side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fastmtr.convert.aten import Call, Operand, handles, is_value, numpy
from fastmtr.convert.lookups import embedding
from fastmtr.convert.tensors import Value
from fastmtr.convert.values import Raw, Rows, Shape
from fastmtr.errors import ConversionError

__all__: list[str] = []


@handles(
    "alias",
    "alpha_dropout",
    "clone",
    "contiguous",
    "detach",
    "dropout",
    "feature_dropout",
    "lift_fresh",
    "lift_fresh_copy",
)
def _same(c: Call, x: Value, *args: Any, **kwargs: Any) -> Value:
    return x


@handles("to", "_to_copy", "type_as", "float", "long", "int", "double", "bool", "half")
def _cast(c: Call, x: Value, *args: Any, **kwargs: Any) -> Value:
    if isinstance(x, Rows) and not c.dtype.is_floating_point and not c.whole:
        raise ConversionError(f"it turns computed numbers into {c.dtype}; a score that jumps has no counterpart")
    if isinstance(x, Rows) and c.boolean:
        c.t.flags.add(x.name)
    return x


@handles("view", "reshape", "_unsafe_view", "_reshape_alias")
def _view(c: Call, x: Value, sizes: Sequence[int], *args: Any) -> Value:
    total = math.prod(x.shape.full(c.rows))
    return c.t.reshape(x, x.shape.reshaped(c.sizes(sizes, total), c.rows))


@handles("view_as", "reshape_as")
def _view_as(c: Call, x: Value, other: Value | torch.Tensor) -> Value:
    sizes = other.shape if isinstance(other, torch.Tensor) else other.shape.full(c.rows)
    return _view(c, x, list(sizes))


@handles("flatten")
def _flatten(c: Call, x: Value, start: int = 0, end: int = -1) -> Value:
    full = x.shape.full(c.rows)
    start, end = start % len(full), end % len(full)
    return _view(c, x, [*full[:start], math.prod(full[start : end + 1]), *full[end + 1 :]])


@handles("unflatten")
def _unflatten(c: Call, x: Value, dim: int, sizes: Sequence[int]) -> Value:
    full = x.shape.full(c.rows)
    dim %= len(full)
    return _view(c, x, [*full[:dim], *c.sizes(sizes, full[dim]), *full[dim + 1 :]])


@handles("squeeze")
def _squeeze(c: Call, x: Value, dim: int | Sequence[int] | None = None) -> Value:
    rank = x.shape.rank
    dims = range(rank) if dim is None else [dim] if isinstance(dim, int) else dim
    for d in sorted({d % rank for d in dims} - {x.shape.batch_dim}, reverse=True):
        x = c.t.squeeze(x, x.shape.axis(d))
    return x


@handles("unsqueeze")
def _unsqueeze(c: Call, x: Value, dim: int) -> Value:
    return c.t.unsqueeze(x, dim)


@handles("permute")
def _permute(c: Call, x: Value, dims: Sequence[int]) -> Value:
    return c.t.permute(x, dims)


@handles("transpose", "swapaxes", "swapdims")
def _transpose(c: Call, x: Value, a: int, b: int) -> Value:
    dims = list(range(x.shape.rank))
    dims[a], dims[b] = dims[b], dims[a]
    return c.t.permute(x, dims)


@handles("t")
def _t(c: Call, x: Value) -> Value:
    return c.t.permute(x, range(x.shape.rank)[::-1])


@handles("movedim", "moveaxis")
def _movedim(c: Call, x: Value, source: int | Sequence[int], target: int | Sequence[int]) -> Value:
    rank = x.shape.rank
    sources = [d % rank for d in ([source] if isinstance(source, int) else source)]
    targets = [d % rank for d in ([target] if isinstance(target, int) else target)]
    order = [d for d in range(rank) if d not in sources]
    for at, d in sorted(zip(targets, sources, strict=True)):
        order.insert(at, d)
    return c.t.permute(x, order)


@handles("expand", "broadcast_to")
def _expand(c: Call, x: Value, sizes: Sequence[int], **kwargs: Any) -> Value:
    full = x.shape.full(c.rows)
    added = len(sizes) - len(full)
    wanted = [full[i - added] if s == -1 else s for i, s in enumerate(sizes)]
    shape = x.shape
    for i in range(added):
        shape, _ = shape.insert(i, wanted[i])
    for d in range(len(wanted)):
        if d != shape.batch_dim:
            shape = shape.with_size(shape.axis(d), wanted[d])
    if shape.full(c.rows) != tuple(wanted):
        raise ConversionError(f"it expands {list(full)} to {wanted}, which repeats the rows of the batch")
    return c.t.expand(x, shape)


@handles("expand_as")
def _expand_as(c: Call, x: Value, other: Value | torch.Tensor) -> Value:
    return _expand(c, x, list(other.shape if isinstance(other, torch.Tensor) else other.shape.full(c.rows)))


@handles("repeat", "tile")
def _repeat(c: Call, x: Value, times: Sequence[int]) -> Value:
    times = [*[1] * (x.shape.rank - len(times)), *times]
    while x.shape.rank < len(times):
        x = c.t.unsqueeze(x, 0)
    made = c.t.rows(x)
    for d, n in enumerate(times):
        if n != 1:
            made = c.t.tile(made, made.shape.axis(d), n)
    return made


@handles("repeat_interleave")
def _repeat_interleave(c: Call, x: Value, times: int | torch.Tensor, dim: int | None = None, **kwargs: Any) -> Value:
    if dim is None:
        raise ConversionError("it repeats the elements of all rows one by one")
    if isinstance(times, torch.Tensor):
        counts = times.flatten().tolist()
        axis = x.shape.axis(dim)
        size = x.shape.inner[axis]
        counts = counts * size if len(counts) == 1 else counts
        return c.t.take(x, axis, [i for i, n in enumerate(counts) for _ in range(n)])
    return c.t.repeat_each(c.t.rows(x), x.shape.axis(dim), times)


# ---- parts -----------------------------------------------------------------------------------------------------------


@handles("slice")
def _slice(c: Call, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Value:
    size = x.shape.full(c.rows)[dim]
    chosen = range(size)[start:end:step]
    if dim % x.shape.rank == x.shape.batch_dim and len(chosen) == size:
        return x
    return c.t.take(x, x.shape.axis(dim), chosen)


@handles("narrow")
def _narrow(c: Call, x: Value, dim: int, start: int, length: int) -> Value:
    return c.t.slice(x, x.shape.axis(dim), start, length)


@handles("select")
def _select(c: Call, x: Value, dim: int, index: int) -> Value:
    axis = x.shape.axis(dim)
    return c.t.squeeze(c.t.slice(x, axis, index % x.shape.inner[axis], 1), axis)


@handles("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes")
def _split(c: Call, x: Value, sizes: int | Sequence[int], dim: int = 0) -> list[Value]:
    axis = x.shape.axis(dim)
    size = x.shape.inner[axis]
    if isinstance(sizes, int):
        sizes = [min(sizes, size - at) for at in range(0, size, sizes)]
    starts = np.cumsum([0, *sizes]).tolist()
    return [c.t.slice(x, axis, start, n) for start, n in zip(starts, sizes, strict=False)]


@handles("chunk")
def _chunk(c: Call, x: Value, chunks: int, dim: int = 0) -> list[Value]:
    return _split(c, x, -(-x.shape.inner[x.shape.axis(dim)] // chunks), dim)


@handles("unbind")
def _unbind(c: Call, x: Value, dim: int = 0) -> list[Value]:
    return [_select(c, x, dim, i) for i in range(x.shape.inner[x.shape.axis(dim)])]


@handles("flip")
def _flip(c: Call, x: Value, dims: Sequence[int]) -> Value:
    for d in dims:
        axis = x.shape.axis(d)
        x = c.t.take(x, axis, range(x.shape.inner[axis])[::-1])
    return x


@handles("masked_select")
def _masked_select(c: Call, x: Value, mask: Operand) -> Value:
    if not isinstance(mask, torch.Tensor) or x.shape.batch_dim != 0 or x.shape.joined:
        raise ConversionError("it selects as many values as a mask that depends on the inputs says")
    chosen = np.flatnonzero(np.broadcast_to(c.array(mask, x.shape), x.shape.inner))
    flat = c.t.reshape(x, Shape((math.prod(x.shape.inner),)))
    return c.t.reshape(c.t.take(flat, 0, chosen.tolist()), Shape((len(chosen),), merged=1))


@handles("sym_size")
def _size(c: Call, x: Value, dim: int) -> int:
    return x.shape.full(c.rows)[dim]


@handles("index_select")
def _index_select(c: Call, x: Value | torch.Tensor, dim: int, index: Value | torch.Tensor) -> Value:
    if isinstance(x, torch.Tensor) and isinstance(index, Raw) and dim % x.dim() == 0 and x.dim() == 2:
        return embedding(c.t, index, numpy(x), "table")
    if not (isinstance(x, Rows | Raw) and isinstance(index, torch.Tensor)):
        raise ConversionError("it selects by computed positions")
    return c.t.take(x, x.shape.axis(dim), index.tolist())


@handles("index")
def _index(c: Call, x: Value | torch.Tensor, indices: Sequence[Any]) -> Value:
    if isinstance(x, torch.Tensor):
        (index,) = indices
        if isinstance(index, Raw) and x.dim() == 2:
            return embedding(c.t, index, numpy(x), "table")
    given = [(d, i) for d, i in enumerate(indices) if i is not None]
    if not isinstance(x, Rows | Raw) or any(is_value(i) for _, i in given):
        raise ConversionError("it selects by computed positions")
    if len(given) == 1:
        ((dim, index),) = given
        if index.dtype == torch.bool:
            index = index.nonzero()[:, 0]
        if index.dim() == 1:
            return c.t.take(x, x.shape.axis(dim), index.tolist())
    dims = [d for d, _ in given]
    if dims != list(range(dims[0], dims[0] + len(dims))) or x.shape.batch_dim in dims:
        raise ConversionError("it selects by positions along several dimensions that are not neighbours")
    places = torch.broadcast_tensors(*[i for _, i in given])  # type: ignore[no-untyped-call]
    sizes = [x.shape.inner[x.shape.axis(d)] for d in dims]
    flat = np.ravel_multi_index([p.flatten().numpy() for p in places], sizes)
    joined = _flatten(c, x, dims[0], dims[-1])
    taken = c.t.take(joined, joined.shape.axis(dims[0]), flat.tolist())
    return _unflatten(c, taken, dims[0], list(places[0].shape))


# ---- side by side ----------------------------------------------------------------------------------------------------


def _values(c: Call, tensors: Sequence[Operand]) -> list[Value]:
    """Constants among values become values themselves."""
    like = next(x for x in tensors if isinstance(x, Rows | Raw))
    made: list[Value] = []
    for x in tensors:
        if isinstance(x, Rows | Raw):
            made.append(x)
            continue
        assert isinstance(x, torch.Tensor)
        inner = c.array(x, like.shape)
        source = c.t.rows(like)
        shape = replace(source.shape, inner=(1,) * inner.ndim)
        made.append(c.t.constant(Rows.packed(c.t.cut(source.name, 0, 1), shape), inner))
    return made


@handles("cat", "concat", "concatenate")
def _cat(c: Call, tensors: Sequence[Operand], dim: int = 0) -> Value:
    values = _values(c, [x for x in tensors if not (isinstance(x, torch.Tensor) and x.numel() == 0)])
    return c.t.cat(values, values[0].shape.axis(dim))


@handles("stack")
def _stack(c: Call, tensors: Sequence[Operand], dim: int = 0) -> Value:
    values = [c.t.unsqueeze(x, dim) for x in _values(c, tensors)]
    return c.t.cat(values, values[0].shape.axis(dim))


@handles("slice_scatter")
def _slice_scatter(
    c: Call, x: Value, part: Operand, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    size = x.shape.full(c.rows)[dim]
    chosen = range(size)[start:end:step]
    if len(chosen) == size and step == 1 and isinstance(part, Rows | Raw):
        return part
    if step != 1:
        raise ConversionError("an assignment to every so many-th value has no counterpart")
    axis = x.shape.axis(dim)
    middle = _values(c, [x, part])[1]
    around = [
        c.t.slice(x, axis, at, n) if n else None for at, n in ((0, chosen.start), (chosen.stop, size - chosen.stop))
    ]
    return c.t.cat([p for p in (around[0], middle, around[1]) if p is not None], axis)


@handles("copy")
def _copy(c: Call, x: Value, source: Operand, *args: Any) -> Value:
    return _expand_as(c, _values(c, [x, source])[1], x)


@handles("_assert_tensor_metadata")
def _nothing(c: Call, x: Value, *args: Any, **kwargs: Any) -> None:
    return None


# ---- constants of a value's shape ------------------------------------------------------------------------------------


@handles("zeros_like", "new_zeros")
def _zeros(c: Call, x: Value, sizes: Sequence[int] | None = None, **kwargs: Any) -> torch.Tensor:
    return torch.zeros(tuple(sizes) if sizes is not None else x.shape.full(c.rows), dtype=c.dtype)


@handles("ones_like", "new_ones")
def _ones(c: Call, x: Value, sizes: Sequence[int] | None = None, **kwargs: Any) -> torch.Tensor:
    return torch.ones(tuple(sizes) if sizes is not None else x.shape.full(c.rows), dtype=c.dtype)


@handles("full_like")
def _full_like(c: Call, x: Value, value: float, **kwargs: Any) -> torch.Tensor:
    return torch.full(x.shape.full(c.rows), value, dtype=c.dtype)


@handles("new_full")
def _new_full(c: Call, x: Value, sizes: Sequence[int], value: float, **kwargs: Any) -> torch.Tensor:
    return torch.full(tuple(sizes), value, dtype=c.dtype)


@handles("empty_like", "new_empty")
def _empty(c: Call, x: Value, sizes: Sequence[int] | None = None, **kwargs: Any) -> torch.Tensor:
    return _zeros(c, x, sizes)
