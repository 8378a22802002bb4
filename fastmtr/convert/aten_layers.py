"""Operators of PyTorch that hold a layer's weights, or multiply matrices."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from fastmtr.convert import lookups
from fastmtr.convert.aten import Call, Operand, handles, is_value, numpy, same_for_all
from fastmtr.convert.products import conv1d, einsum, gru, weighted
from fastmtr.convert.tensors import Value
from fastmtr.convert.values import Raw, Rows, Shape
from fastmtr.errors import ConversionError

__all__: list[str] = []


@handles("linear")
def _linear(c: Call, x: Value, w: Operand, b: torch.Tensor | None = None) -> Rows:
    rows = c.t.numbers(x)
    if not isinstance(w, torch.Tensor):
        raise ConversionError("the weights of a linear layer are computed from the inputs")
    last = len(x.shape.inner) - 1
    labels = [f"a{i}" for i in range(last)]
    shape = x.shape.with_size(last, w.shape[0])
    bias = None if b is None else numpy(b)
    return weighted(c.t, rows, [*labels, "k"], numpy(w), ["n", "k"], [*labels, "n"], shape=shape, bias=bias)


@handles("embedding")
def _embedding(c: Call, table: Operand, ids: Value, *args: Any) -> Rows:
    if not isinstance(table, torch.Tensor):
        raise ConversionError("the table of an embedding is computed from the inputs")
    if not isinstance(ids, Raw):
        raise ConversionError("its ids are computed; only ids that are given can be looked up")
    return lookups.embedding(c.t, ids, numpy(table), c.weight_name or "table")


@handles("embedding_bag")
def _embedding_bag(
    c: Call,
    table: torch.Tensor,
    ids: Value,
    starts: torch.Tensor,
    scale_grad: bool = False,
    mode: int = 0,
    sparse: bool = False,
    weights: Operand | None = None,
    include_last: bool = False,
    padding: int | None = None,
) -> tuple[Rows, None, None, None]:
    if not isinstance(ids, Raw) or weights is not None:
        raise ConversionError("an embedding bag of computed ids, or with weights, has no counterpart")
    count = ids.columns.size
    if not isinstance(starts, torch.Tensor) or starts[: c.rows].tolist() != list(range(0, c.rows * count, count)):
        raise ConversionError("an embedding bag whose bags differ in length has no counterpart; pad the ids")
    whole = Raw(ids.columns.reshape(-1), Shape((count,)))
    reductions: tuple[Literal["sum"], Literal["mean"], Literal["max"]] = ("sum", "mean", "max")
    name = c.weight_name or "table"
    made = lookups.embedding_bag(c.t, whole, numpy(table), name, mode=reductions[mode], padding=padding)
    return made, None, None, None


@handles("one_hot")
def _one_hot(c: Call, ids: Value, classes: int = -1) -> Rows:
    if not isinstance(ids, Raw) or classes < 1:
        raise ConversionError("one_hot of computed ids, or without a number of classes, has no counterpart")
    return lookups.embedding(c.t, ids, np.eye(classes), f"one_hot{classes}")


# ---- products --------------------------------------------------------------------------------------------------------


@handles("matmul", "mm", "bmm")
def _matmul(c: Call, a: Operand, b: Operand) -> Rows:
    ranks = [x.dim() if isinstance(x, torch.Tensor) else x.shape.rank for x in (a, b)]  # type: ignore[union-attr]
    letters = iter(string.ascii_letters)
    k = next(letters)
    m, n = next(letters), next(letters)
    outer = [next(letters) for _ in range(max(*ranks, 2) - 2)]
    left = [k] if ranks[0] == 1 else [*outer[len(outer) - ranks[0] + 2 :], m, k]
    right = [k] if ranks[1] == 1 else [*outer[len(outer) - ranks[1] + 2 :], k, n]
    out = [*outer, *([m] if ranks[0] > 1 else []), *([n] if ranks[1] > 1 else [])]
    return _einsum_of(c, left, right, out, a, b)


@handles("einsum")
def _einsum(c: Call, equation: str, operands: Sequence[Operand], **kwargs: Any) -> Rows:
    if len(operands) > 2:
        raise ConversionError(f"the einsum {equation!r} has more than two operands; take it apart into several")
    inputs, out = _spelled_out(equation, [x.dim() if isinstance(x, torch.Tensor) else x.shape.rank for x in operands])  # type: ignore[union-attr]
    if len(operands) == 1:
        x = c.t.rows(operands[0])  # type: ignore[arg-type]
        summed = [x.shape.axis(d) for d, label in enumerate(inputs) if label not in out]
        kept = [label for label in inputs if label in out]
        return c.t.rows(c.t.permute(c.t.reduce(x, "sum", summed, keep=False), [kept.index(d) for d in out]))
    left, right = inputs.split(",")
    return _einsum_of(c, list(left), list(right), list(out), *operands)


def _spelled_out(equation: str, ranks: Sequence[int]) -> tuple[str, str]:
    """The left and the right side of an equation, with letters for its ellipsis and for a result that is not named."""
    left, _, right = equation.replace(" ", "").partition("->")
    unused = [g for g in string.ascii_letters if g not in equation]
    terms, many = [], 0
    for term, rank in zip(left.split(","), ranks, strict=True):
        extra = rank - len(term.replace("...", "")) if "..." in term else 0
        many = max(many, extra)
        terms.append(term.replace("...", "".join(unused[:extra][::-1])))  # they are counted from the right
    rest = "".join(unused[:many][::-1])
    if "->" in equation:
        return ",".join(terms), right.replace("...", rest)
    once = [g for g in sorted(set("".join(terms)) - set(rest)) if "".join(terms).count(g) == 1]
    return ",".join(terms), rest + "".join(once)


def _einsum_of(c: Call, left: Sequence[str], right: Sequence[str], out: Sequence[str], a: Operand, b: Operand) -> Rows:
    """With sizes of 1 that broadcast taken out of the way, and constants without a dimension for the batch."""
    if not is_value(a):
        a, b, left, right = b, a, right, left
    x = c.t.numbers(a)  # type: ignore[arg-type]
    if x.shape.joined:
        return _einsum_merged(c, left, right, out, x, b)
    rows = left[x.shape.batch]
    if isinstance(b, Raw | Rows):
        y = c.t.rows(b)
        return einsum(c.t, f"{''.join(left)},{''.join(right)}->{''.join(out)}", *_spread(c, x, left, y, right))
    assert isinstance(b, torch.Tensor)
    w = numpy(b)
    labels = list(right)
    if rows in labels:  # the same for every row
        w, labels = same_for_all(w, labels.index(rows)), [label for label in labels if label != rows]
    for label in list(labels):  # size 1 broadcasts
        at = labels.index(label)
        if w.shape[at] == 1 and label in left and label != rows:
            w, labels = np.squeeze(w, at), [g for g in labels if g != label]
    return einsum(c.t, f"{''.join(left)},{''.join(labels)}->{''.join(out)}", x, w)


def _einsum_merged(c: Call, left: Sequence[str], right: Sequence[str], out: Sequence[str], x: Rows, b: Operand) -> Rows:
    """Of [rows x steps, ...] with a constant: the joined dimension is one of steps and one of rows."""
    if not isinstance(b, torch.Tensor) or x.shape.merged != 1 or x.shape.batch != 0 or x.shape.led:
        raise ConversionError("a product of values in which rows and inner values are joined")
    rows = left[0]
    if rows in right or rows not in out:
        raise ConversionError("a product that sums over the rows of the batch")
    step = next(g for g in string.ascii_letters if g not in [*left, *right, *out])
    apart = Rows(x.name, Shape(x.shape.inner, 0), x.sizes, x.order, x.parts, x.axis)
    spread = [rows, step, *left[1:]]
    at = list(out).index(rows)
    if at:
        raise ConversionError("a product that moves the dimension in which rows and inner values are joined")
    made = einsum(c.t, f"{''.join(spread)},{''.join(right)}->{''.join([rows, step, *out[1:]])}", apart, numpy(b))
    found = c.t.reshape(made, Shape(made.shape.inner, 0, 1))
    assert isinstance(found, Rows)
    return found


def _spread(c: Call, x: Rows, left: Sequence[str], y: Rows, right: Sequence[str]) -> tuple[Rows, Rows]:
    """Sizes of 1 repeated where the other operand has more."""
    sizes: dict[str, int] = {}
    for value, labels in ((x, left), (y, right)):
        for label, size in zip(labels, value.shape.full(c.rows), strict=True):
            sizes[label] = max(sizes.get(label, 1), size)
    made = []
    for value, labels in ((x, left), (y, right)):
        shape = value.shape
        for d, label in enumerate(labels):
            if d != shape.batch and shape.full(c.rows)[d] != sizes[label]:
                shape = shape.with_size(shape.axis(d), sizes[label])
        spread = c.t.expand(value, shape)
        assert isinstance(spread, Rows)
        made.append(spread)
    return made[0], made[1]


@handles("tensordot")
def _tensordot(c: Call, a: Operand, b: Operand, left: Sequence[int], right: Sequence[int]) -> Rows:
    ranks = [x.dim() if isinstance(x, torch.Tensor) else x.shape.rank for x in (a, b)]  # type: ignore[union-attr]
    mine = list(string.ascii_letters[: ranks[0]])
    theirs = list(string.ascii_letters[ranks[0] : sum(ranks)])
    for i, j in zip(left, right, strict=True):
        theirs[j] = mine[i]
    summed = {mine[i] for i in left}
    return _einsum_of(c, mine, theirs, [g for g in [*mine, *theirs] if g not in summed], a, b)


@handles("dot")
def _dot(c: Call, a: Operand, b: Operand) -> Rows:
    raise ConversionError("it multiplies across the rows of the batch")


@handles("addmm", "baddbmm")
def _addmm(c: Call, bias: Operand, a: Operand, b: Operand, *, beta: float = 1, alpha: float = 1) -> Rows:
    product = _matmul(c, a, b)
    if alpha != 1:
        product = c.t.scale(product, alpha)
    if isinstance(bias, torch.Tensor):
        return c.t.shift(product, beta * c.array(bias, product.shape))
    return c.t.binary(product, bias if beta == 1 else c.t.scale(c.t.rows(bias), beta), "add")  # type: ignore[arg-type]


@handles("scaled_dot_product_attention")
def _attention(
    c: Call,
    q: Value,
    k: Value,
    v: Value,
    mask: Operand | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    **kwargs: Any,
) -> Rows:
    if kwargs.get("enable_gqa"):
        raise ConversionError("grouped queries have no counterpart")
    last = q.shape.inner[-1]
    turned = c.t.permute(k, [*range(k.shape.rank - 2), k.shape.rank - 1, k.shape.rank - 2])
    scores = c.t.scale(_matmul(c, q, turned), 1 / math.sqrt(last) if scale is None else scale)
    if is_causal:
        size = (scores.shape.inner[-2], scores.shape.inner[-1])
        scores = c.t.shift(scores, np.where(np.tri(*size, dtype=bool), 0, lookups.MINUS_INFINITY))
    if isinstance(mask, torch.Tensor):
        added = torch.where(mask, 0.0, lookups.MINUS_INFINITY) if mask.dtype == torch.bool else mask
        scores = c.t.shift(scores, np.maximum(c.array(added, scores.shape), lookups.MINUS_INFINITY))
    elif isinstance(mask, Rows) and mask.name in c.t.flags:
        scores = lookups.where(c.t, mask, scores, np.asarray(lookups.MINUS_INFINITY))
    elif isinstance(mask, Rows):
        scores = c.t.binary(scores, mask, "add")
    return _matmul(c, c.t.softmax(scores, len(scores.shape.inner) - 1), v)


# ---- normalisation, convolution, recurrence --------------------------------------------------------------------------


@handles("_native_batch_norm_legit_no_training")
def _batch_norm(
    c: Call,
    x: Value,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    mean: torch.Tensor,
    var: torch.Tensor,
    momentum: float,
    eps: float,
) -> tuple[Rows, None, None]:
    learned = {role: numpy(v) for role, v in (("scale", scale), ("shift", shift)) if v is not None}
    return c.t.batch_norm(x, x.shape.axis(1), mean=numpy(mean), var=numpy(var), eps=eps, **learned), None, None


@handles("batch_norm")
def _batch_norm_of_module(
    c: Call,
    x: Value,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    mean: torch.Tensor | None,
    var: torch.Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn: bool,
) -> Rows:
    if training or mean is None or var is None:
        raise ConversionError("a batch norm without running statistics depends on the batch, not on the row")
    return _batch_norm(c, x, scale, shift, mean, var, momentum, eps)[0]


@handles("layer_norm")
def _layer_norm(
    c: Call,
    x: Value,
    sizes: Sequence[int],
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    eps: float = 1e-5,
    *args: Any,
) -> Rows:
    rank = len(x.shape.inner)
    axes = range(rank - len(sizes), rank)
    learned = {role: numpy(v) for role, v in (("scale", scale), ("shift", shift)) if v is not None}
    return c.t.layer_norm(x, axes, eps=eps, **learned)


@handles("conv1d")
def _conv1d(
    c: Call,
    x: Value,
    w: torch.Tensor,
    b: torch.Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] | str = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Rows:
    if isinstance(padding, str):
        kernel = (w.shape[2] - 1) * dilation[0]
        if padding != "valid" and kernel % 2:
            raise ConversionError("a convolution padded by another number on either side has no counterpart")
        padding = [0 if padding == "valid" else kernel // 2]
    return conv1d(
        c.t,
        c.t.rows(x),
        numpy(w),
        None if b is None else numpy(b),
        stride=stride[0],
        padding=padding[0],
        dilation=dilation[0],
        groups=groups,
    )


@handles("gru.input")
def _gru(
    c: Call,
    x: Value,
    state: Operand,
    params: Sequence[torch.Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Rows, Value]:
    if bidirectional:
        raise ConversionError("a GRU that reads in both directions has no counterpart")
    if not isinstance(state, torch.Tensor) or state.any():
        raise ConversionError("a GRU that starts from another state than zeros has no counterpart")
    value = c.t.rows(x if batch_first else c.t.permute(x, [1, 0, 2]))
    last: list[Value] = []
    each = 4 if has_biases else 2
    for layer in range(layers):
        given = [numpy(p) for p in params[each * layer : each * (layer + 1)]]
        weights = dict(zip(("w_x", "w_h", "b_x", "b_h"), given, strict=False))
        value, end = gru(c.t, value, weights, name="" if layers == 1 else f"layer{layer}")
        last.append(c.t.unsqueeze(end, 0))
    out = value if batch_first else c.t.permute(value, [1, 0, 2])
    assert isinstance(out, Rows)
    return out, c.t.cat(last, 0)
