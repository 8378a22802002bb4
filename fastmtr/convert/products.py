"""Sums of products: einsum, matrix products, linear layers, convolutions and recurrent layers as nodes of a graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fastmtr.convert import lookups
from fastmtr.convert.layout import Stepped
from fastmtr.convert.tensors import Array, Tensors
from fastmtr.convert.values import Rows, Shape
from fastmtr.errors import ConversionError

__all__ = ["contract", "conv1d", "einsum", "gru", "weighted"]


_MOST_EXPERTS = 16
"""So many columns of weights are taken for those of experts, which are mixed; more are those of a sequence."""


def contract(t: Tensors, a: Rows, b: Rows, axes: Sequence[int]) -> Rows:
    """The sum of ``a * b``, two tensors of one shape, along some inner axes; these keep the size 1."""
    inner = a.shape.inner
    alone = [[i for i in axes if x.order[i] is not None and y.order[i] is None] for x, y in ((a, b), (b, a))]
    times = math.prod(inner[i] for i in axes if a.order[i] is None and b.order[i] is None)
    if alone[0]:
        a = replace(t.reduce(a, "sum", alone[0], keep=True), shape=a.shape)
    if alone[1]:
        b = replace(t.reduce(b, "sum", alone[1], keep=True), shape=b.shape)
    k = [i for i in axes if a.order[i] is not None and b.order[i] is not None]
    kept = [i for i in range(len(inner)) if i not in axes]
    both = [i for i in kept if a.order[i] is not None and b.order[i] is not None]
    m = [i for i in a.axes if i in kept and b.order[i] is None]
    n = [i for i in b.axes if i in kept and a.order[i] is None]
    shape = a.shape
    for i in axes:
        shape = shape.with_size(i, 1)
    if not k:
        left, right = (replace(x, shape=shape) for x in (a, b))
        made = t.binary(left, right, "mul")
    elif not (both or m or n):
        bag = lookups.summed(t, a, b) or lookups.summed(t, b, a)
        made = Rows.laid_out(bag or t.builder.dot(a.name, t.in_order(b, a.axes), name=t.name("dot")), shape, ())
    elif both and not (m or n) and not (set(a.axes[-len(k) :]) == set(b.axes[-len(k) :]) == set(k)):
        made = t.reduce_columns(t.binary(a, b, "mul"), "sum", k, keep=True)
        made = replace(made, shape=shape)
    elif not both and not (m and n):
        made = _mix(t, a, b, k, n, shape) if n else _mix(t, b, a, k, m, shape)
    else:
        made = _matmul(t, a, b, (both, m, k, n), shape)
    return t.scale(made, times) if times > 1 else made


def _mix(t: Tensors, gate: Rows, experts: Rows, k: Sequence[int], n: Sequence[int], shape: Shape) -> Rows:
    """One weight an expert: a mixture where the experts are few or values side by side, else a product of matrices."""
    count = math.prod(_sizes_of(experts, k))
    whole = set(experts.axes[: len(k)]) == set(k)
    bag = lookups.summed(t, gate, experts) if whole else None
    if bag is not None:
        return Rows.laid_out(bag, shape, [i for i in experts.axes if i in n])
    width = t.builder.width(experts.name) // count
    alike = [t.builder.width(p) for p in t.joined.get(experts.name, ())] == [width] * count
    if whole and (alike or count <= _MOST_EXPERTS):
        order = [i for i in experts.axes if i in k]
        pieces = [t.cut(experts.name, i * width, width) for i in range(count)]
        name = t.builder.mixture(t.in_order(gate, order), pieces, name=t.name("mixture"))
        return Rows.laid_out(name, shape, [i for i in experts.axes if i in n])
    return _matmul(t, gate, experts, ([], [], k, n), shape)


def _sizes_of(x: Rows, axes: Sequence[int]) -> list[int]:
    """Sizes of these inner axes."""
    return [x.shape.inner[i] for i in axes]


def _matmul(t: Tensors, a: Rows, b: Rows, labels: tuple[Sequence[int], ...], shape: Shape) -> Rows:
    outer, m, k, n = labels
    # The columns of b that vary last decide whether it is taken as it lies, or transposed.
    transposed = bool(n) and bool(b.axes) and b.axes[-1] in k
    left = t.in_order(a, [*outer, *m, *k])
    right = t.in_order(b, [*outer, *n, *k] if transposed else [*outer, *k, *n])
    o, rows, depth, columns = (math.prod(_sizes_of(a, part)) for part in (outer, m, k, n))
    name = t.builder.matmul(
        left, right, m=rows, k=depth, n=columns, outer=o, transpose_b=transposed, name=t.name("matmul")
    )
    return Rows.laid_out(name, shape, [*outer, *m, *n])


# ---- with constants --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Term:
    """A tensor and the constant that it is multiplied with; each of their axes has a label."""

    x: Rows
    labels: tuple[str, ...]
    w: Array
    w_labels: tuple[str, ...]

    def has_columns(self, label: str) -> bool:
        """The tensor does not merely repeat along that axis."""
        return label in self.labels and self.x.order[self.labels.index(label)] is not None

    def summed(self, out: Sequence[str]) -> list[str]:
        """Labels that the product is summed over."""
        return [label for label in self.labels if label in self.w_labels and label not in out]


def weighted(
    t: Tensors,
    x: Rows,
    labels: Sequence[str],
    w: Array,
    w_labels: Sequence[str],
    out: Sequence[str],
    *,
    shape: Shape,
    bias: Array | None = None,
    name: str = "",
) -> Rows:
    """An einsum of a tensor and a constant, whatever way it was written: one affine.

    Parameters
    ----------
    x : Rows
    labels : sequence of str
        One for each inner axis of x.
    w : ndarray
    w_labels : sequence of str
        One for each axis of w.
    out : sequence of str
        One for each inner axis of the result. Labels that are not here are summed over.
    shape : Shape
        Of the result.
    bias : ndarray, optional
        Broadcasts to the result's inner axes.
    name : str
        Of the result, within the scope.
    """
    w = np.asarray(w, np.float64)
    surplus = tuple(i for i, label in enumerate(w_labels) if label not in out and label not in labels)
    w, w_labels = w.sum(axis=surplus), [label for i, label in enumerate(w_labels) if i not in surplus]
    alone = [i for i, label in enumerate(labels) if label not in out and label not in w_labels]
    if alone:
        x = t.reduce(x, "sum", alone, keep=False)
        labels = [label for i, label in enumerate(labels) if i not in alone]
    whole = _Term(x, tuple(labels), w, tuple(w_labels))
    if x.parts and labels[x.axis] in whole.summed(out) and not any(g in out and g in labels for g in w_labels):
        return _sum(t, _shares(t, whole), out, shape=shape, bias=bias, name=name)
    whole = replace(whole, x=t.rows(x))
    if whole.summed(out):
        return _sum(t, [whole], out, shape=shape, bias=bias, name=name)
    order = tuple(whole.x.order[labels.index(label)] if label in labels else None for label in out)
    by = w.transpose([w_labels.index(label) for label in out if label in w_labels])
    spread = by.reshape([w.shape[w_labels.index(label)] if label in w_labels else 1 for label in out])
    made = t.scale(replace(whole.x, shape=shape, order=order), spread)
    return made if bias is None else t.shift(made, bias)


def _shares(t: Tensors, whole: _Term) -> list[_Term]:
    """Of a tensor in parts, each part with its share of the weights.

    A sum or difference of other parts shares their products: ``[q, k, q - k] W`` is two products, not three.
    """
    at = whole.w_labels.index(whole.labels[whole.x.axis])
    shares: dict[str, _Term] = {}
    start = 0
    for part in whole.x.parts:
        stop = start + part.shape.inner[whole.x.axis]
        share = np.take(whole.w, range(start, stop), axis=at)
        start = stop
        for x, sign in _addends(t, part, whole.x.parts):
            key = repr((x.name, x.sizes, x.order))
            before = shares[key].w if key in shares else 0.0
            shares[key] = replace(whole, x=x, w=before + sign * share)
    return list(shares.values())


def _addends(t: Tensors, part: Rows, among: Sequence[Rows]) -> list[tuple[Rows, float]]:
    terms = t.terms.get(part.name)
    found = terms.of(part) if terms is not None and terms.kind in ("add", "sub") else None
    if terms is None or found is None or not all(any(_same(f, p) for p in among) for f in found):
        return [(part, 1.0)]
    return [(found[0], 1.0), (found[1], 1.0 if terms.kind == "add" else -1.0)]


def _same(a: Rows, b: Rows) -> bool:
    return (a.name, a.shape.inner, a.sizes, a.order) == (b.name, b.shape.inner, b.sizes, b.order)


def _sum(
    t: Tensors, terms: Sequence[_Term], out: Sequence[str], *, shape: Shape, bias: Array | None, name: str
) -> Rows:
    """The sum of the products and the bias: one takes the others as addends.

    That is the one that is done most often: with columns for each step, and for candidates.
    """
    given = [_without_repeats(each, out) for each in terms]
    steps = [g for g in out if any(each.has_columns(g) and g not in each.w_labels for each in given)]
    groups = [g for g in out if given[0].has_columns(g) and g in given[0].w_labels]
    free = [g for g in out if g in given[0].w_labels and g not in groups]
    first = max(range(len(given)), key=lambda i: (_steps(given[i], steps), _of_candidates(t, given[i].x), -i))
    given.insert(0, given.pop(first))
    inside = [out.index(g) for g in [*groups, *free]]
    vector = None if bias is None else _bias_vector(bias, inside, shape)
    addends: list[str] = []
    for i, each in reversed(list(enumerate(given))):
        summed = each.summed(out)
        w = each.w.transpose([each.w_labels.index(g) for g in [*groups, *free, *summed]])
        n_groups, n = (math.prod(shape.inner[out.index(g)] for g in part) for part in (groups, free))
        stepping = _steps(each, steps)
        order = [each.labels.index(g) for g in [*(steps if stepping else []), *groups, *summed]]
        made = t.name(name if i == 0 else f"{name}.part{i}".lstrip("."))
        source = t.in_order(each.x, order)
        w = w.reshape((n_groups, n, -1)) if groups else w.reshape((n, -1))
        count = math.prod(shape.inner[out.index(g)] for g in steps) if stepping else 1
        value = t.builder.affine(
            source,
            w=t.weight(f"{made}.w", w),
            b=t.weight(f"{made}.b", vector) if i == 0 and vector is not None else None,
            addends=addends if i == 0 else [],
            groups=n_groups,
            steps=count,
            name=made,
        )
        addends.insert(0, value)
        if count > 1 and len(given) == 1 and not groups:
            t.stepped[value] = Stepped(source, w, vector, count)
    stepped = [out.index(g) for g in steps] if _steps(given[0], steps) else []
    result = Rows.laid_out(value, shape, [*stepped, *inside])
    return result if bias is None or vector is not None else t.shift(result, bias)


def _of_candidates(t: Tensors, x: Rows) -> bool:
    return t.builder.domain(x.name) == "candidate"


def _steps(term: _Term, steps: Sequence[str]) -> bool:
    return any(term.has_columns(g) for g in steps)


def _without_repeats(term: _Term, out: Sequence[str]) -> _Term:
    """Summed axes along which the tensor repeats become one column with the sum of the weights."""
    x, w = term.x, term.w
    for label in term.summed(out):
        axis = term.labels.index(label)
        if x.order[axis] is None:
            x = replace(x, shape=x.shape.with_size(axis, 1))
            w = w.sum(axis=term.w_labels.index(label), keepdims=True)
    return replace(term, x=x, w=w)


def _bias_vector(bias: Array, inside: Sequence[int], shape: Shape) -> NDArray[np.float64] | None:
    """One number a column of the product; None for a bias that differs along other axes."""
    full = np.reshape(bias, (1,) * (len(shape.inner) - np.ndim(bias)) + np.shape(bias)).astype(np.float64)
    if any(full.shape[i] > 1 for i in range(full.ndim) if i not in inside):
        return None
    turned = full.transpose([*inside, *[i for i in range(full.ndim) if i not in inside]])
    sizes = [shape.inner[i] for i in inside]
    return np.broadcast_to(turned.reshape(turned.shape[: len(inside)]), sizes).reshape(-1)


# ---- as the sources write them ---------------------------------------------------------------------------------------


def einsum(t: Tensors, equation: str, a: Rows, b: Rows | Array) -> Rows:
    """An einsum of two operands, the second a tensor or a constant; the equation has no ellipsis.

    Parameters
    ----------
    equation : str
        Such as "bhd,bmd->bhmd"; the label of the batch is the one that stands for it in the first operand.
    """
    (left, right), out = equation.split("->")[0].split(","), equation.split("->")[1]
    rows = left[a.shape.batch]
    if a.shape.joined or out.count(rows) != 1 or len(set(left)) < len(left) or len(set(right)) < len(right):
        raise ConversionError(f"the einsum {equation!r} sums over the rows of the batch, or takes a diagonal")
    mine = [c for c in left if c != rows]
    inner = [c for c in out if c != rows]
    if not isinstance(b, Rows):
        sizes = dict(zip(mine, a.shape.inner, strict=True)) | dict(zip(right, np.shape(b), strict=True))
        if rows in right:
            raise ConversionError(f"the einsum {equation!r} has a constant with a row for each row of the batch")
        shape = Shape(tuple(sizes[c] for c in inner), out.index(rows))
        return weighted(t, a, mine, np.asarray(b), right, inner, shape=shape)
    if right[b.shape.batch] != rows:
        raise ConversionError(f"the einsum {equation!r} has its rows under two labels")
    theirs = [c for c in right if c != rows]
    sizes = dict(zip(mine, a.shape.inner, strict=True)) | dict(zip(theirs, b.shape.inner, strict=True))
    summed = [c for c in sizes if c not in inner]
    every = [*inner, *summed]
    shape = Shape(tuple(sizes[c] for c in every), out.index(rows))
    x, y = (
        replace(v, shape=shape, order=tuple(v.order[own.index(c)] if c in own else None for c in every))
        for v, own in ((t.rows(a), mine), (t.rows(b), theirs))
    )
    if not summed:
        return replace(t.binary(x, y, "mul"), shape=shape)
    last = range(len(inner), len(every))
    return t.dropped(contract(t, x, y, list(last)), list(last))


def conv1d(
    t: Tensors, x: Rows, w: Array, b: Array | None, *, stride: int, padding: int, dilation: int, groups: int
) -> Rows:
    """Over the last axis of [channels, steps]; `w` is [out, channels / groups, kernel]."""
    *front, _, steps = x.shape.inner
    out, _, kernel = w.shape
    shape = x.shape.with_size(len(front), out)
    labels = [f"front{i}" for i in range(len(front))]
    if kernel == 1 and (stride, padding) == (1, 0) and groups == 1:
        y = [*labels, "out", "steps"]
        by_channel = None if b is None else np.reshape(b, (-1, 1))
        return weighted(t, x, [*labels, "in", "steps"], w[:, :, 0], ["out", "in"], y, shape=shape, bias=by_channel)
    if groups != 1 or math.prod(front) != 1:
        raise ConversionError("a convolution in groups, or over more than one dimension, has no counterpart")
    ends = (steps + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    name = t.name("")
    value = t.builder.conv1d(
        t.in_order(x, [len(front) + 1, len(front)]),
        w=t.weight(f"{name}.w", w),
        b=None if b is None else t.weight(f"{name}.b", b),
        steps=steps,
        stride=stride,
        padding=padding,
        dilation=dilation,
        name=name,
    )
    return Rows.laid_out(value, shape.with_size(len(front) + 1, ends), [len(front) + 1, len(front)])


def gru(t: Tensors, x: Rows, weights: Mapping[str, Array], *, name: str = "") -> tuple[Rows, Rows]:
    """One layer in one direction over x with inner axes (steps, width), from a state of zeros.

    Parameters
    ----------
    weights : mapping
        ``w_x`` [3 H, width], ``w_h`` [3 H, H], ``b_x`` and ``b_h`` [3 H] if any: gates r, z, n.

    Returns
    -------
    tuple of Rows
        The state after every step (steps, H), and after the last one (H).
    """
    steps, hidden = x.shape.inner[0], weights["w_h"].shape[1]
    value = t.name(name or "gru")
    w_x, w_h = (t.weight(f"{value}.{role}", weights[role]) for role in ("w_x", "w_h"))
    b_x, b_h = (t.weight(f"{value}.{role}", weights[role]) if role in weights else None for role in ("b_x", "b_h"))
    source = t.in_order(x, [0, 1])
    t.builder.gru(source, steps=steps, w_x=w_x, w_h=w_h, b_x=b_x, b_h=b_h, output="all", name=value)
    last = t.cut(value, (steps - 1) * hidden, hidden)
    return Rows.packed(value, replace(x.shape, inner=(steps, hidden))), Rows.packed(last, Shape((hidden,)))
