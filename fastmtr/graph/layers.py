"""Building a graph by the layers that recommenders are made of: each method is a few operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastmtr.errors import ConversionError
from fastmtr.graph.builder import OperatorBuilder

__all__ = ["GraphBuilder"]


class GraphBuilder(OperatorBuilder):
    """Builds a :class:`Graph` node by node; each method returns the name of its value and checks at once.

    Parameters
    ----------
    inputs : sequence of Input
        The model's inputs, such as ``FeaturePipeline.inputs``.

    Raises
    ------
    ConversionError
        From every method: a shape, a name or a domain does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> g = GraphBuilder([Input("u", "request", "dense", 0, 2), Input("i", "item", "dense", 0, 3)])
    >>> w = g.weight("w", np.ones((1, 5), np.float32))
    >>> p = g.affine(g.concat(["u", "i"]), w=w, activation="sigmoid")
    >>> g.output("click", p)
    >>> g.build().domain(p)
    'candidate'
    """

    def linear(self, x: str, *, w: str, b: str | None = None, name: str | None = None, **activation: Any) -> str:
        """``torch.nn.Linear`` on the last axis: each run of k columns of x goes through ``w`` [n, k].

        Parameters
        ----------
        x : str
            Width steps * k.
        w, b, name : str
        **activation
            ``activation``, ``alpha`` and ``slope`` of :meth:`affine`.

        Returns
        -------
        str
            Width steps * n.
        """
        steps = self.width(x) // max(self._array_of(w).shape[-1], 1)
        return self.affine(x, w=w, b=b, steps=max(steps, 1), name=name, **activation)

    def cross(
        self,
        x0: str,
        x: str,
        *,
        w: str,
        b: str | None = None,
        u: str | None = None,
        version: Literal[1, 2] = 2,
        name: str | None = None,
    ) -> str:
        """A layer of a deep and cross network over the first layer's input x0 and this layer's input x, of width n.

        Parameters
        ----------
        x0, x : str
        w : str
            Version 1: [1, n]; version 2: [n, n], or [rank, n] where ``u`` is given.
        b : str, optional
            [n].
        u : str, optional
            [n, rank]: the second factor of a low-rank matrix.
        version : {1, 2}
            1: ``x0 * (w x) + b + x``; 2: ``x0 * (u w x + b) + x``.
        name : str, optional

        References
        ----------
        Wang et al., "Deep & Cross Network for Ad Click Predictions" (2017), and "DCN V2" (2021).
        """
        if version == 1:
            if u is not None:
                raise ConversionError("cross: 'u' belongs to version 2, but the version is 1")
            return self.affine(addends=[self.mul(x0, self.affine(x, w=w)), x], b=b, name=name)
        if version != 2:
            raise ConversionError(f"cross: version must be 1 or 2, found {version!r}")
        crossing = self.affine(x, w=w, b=b) if u is None else self.affine(self.affine(x, w=w), w=u, b=b)
        return self.add(self.mul(x0, crossing), x, name=name)

    def fm(self, values: Sequence[str], *, size: int, summed: bool = True, name: str | None = None) -> str:
        """Inner products of all pairs of fields, ``((sum of v)^2 - sum of v^2) / 2``.

        Sums over the fields of the user and over those of the item are made apart, so that they need not be made for
        each candidate.

        Parameters
        ----------
        values : sequence of str
            Each one or more field vectors of ``size`` columns side by side.
        size : int
        summed : bool
            Sum over the columns of a vector, so that the result is one column; False: ``size`` columns, the
            bi-interaction of a neural factorisation machine.
        name : str, optional

        References
        ----------
        Rendle, "Factorization Machines" (2010); He and Chua, "Neural Factorization Machines" (2017).
        """
        by_domain: dict[str, list[str]] = {}
        for value in values:
            self._part(value, size, "fm")
            by_domain.setdefault(self._values[value].domain, []).append(value)
        sums, squares = [], []
        for fields in by_domain.values():
            x = fields[0] if len(fields) == 1 else self.concat(fields)
            sums.append(self.reduce(x, "sum", inner=size))
            squares.append(self.reduce(self.mul(x, x), "sum", inner=size))
        total = reduce(self.add, sums)
        pairs = self.sub(self.mul(total, total), reduce(self.add, squares))
        if summed:
            pairs = self.reduce(pairs, "sum")
        n = self.width(pairs)
        half = self._constant(pairs, "scale", np.full(n, 0.5))
        return self.scale_shift(pairs, scale=half, shift=self._constant(pairs, "shift", np.zeros(n)), name=name)

    def dice(
        self,
        x: str,
        *,
        mean: str,
        var: str,
        alpha: str | None = None,
        scale: str | None = None,
        shift: str | None = None,
        eps: float = 1e-8,
        name: str | None = None,
    ) -> str:
        """``x * (p + alpha * (1 - p))`` with ``p = sigmoid(batch_norm(x))``, for each run of n columns.

        Parameters
        ----------
        x : str
            Width steps * n.
        mean, var : str
            [n], statistics of training.
        alpha : str, optional
            [n], or [1] for all columns. None: zeros.
        scale, shift : str, optional
            [n], of the batch norm.
        eps : float
        name : str, optional

        References
        ----------
        Zhou et al., "Deep Interest Network for Click-Through Rate Prediction" (2018).
        """
        n = len(self._array_of(mean))
        steps = self._part(x, n, "dice")
        given = {"mean": mean, "var": var, "scale": scale, "shift": shift}
        norm = {role: w for role, w in given.items() if w is not None}
        if steps > 1:
            norm = {role: self._constant(x, role, np.tile(self._array_of(w), steps)) for role, w in norm.items()}
        p = self.activation(self.batch_norm(x, eps=eps, **norm), "sigmoid")
        if alpha is None:
            return self.mul(x, p, name=name)
        a = self._array_of(alpha)
        if a.shape not in ((1,), (n,)):
            raise ConversionError(f"dice: weight {alpha!r} must have the shape (1,) or ({n},), found {a.shape}")
        a = np.broadcast_to(a, n)
        share = self.scale_shift(
            p,
            scale=self._constant(p, "scale", np.tile(1 - a, steps)),
            shift=self._constant(p, "shift", np.tile(a, steps)),
        )
        return self.mul(x, share, name=name)

    def target_attention(
        self,
        keys: str,
        query: str,
        ids: str | None = None,
        *,
        score: Callable[[str], str],
        softmax: bool = False,
        padding: int = 0,
        name: str | None = None,
    ) -> str:
        """The attention of a deep interest network: a sum of keys, weighted by what a small network says of each.

        Parameters
        ----------
        keys : str
            [steps, n], such as the embeddings of a history.
        query : str
            [n], such as the embedding of the candidate item.
        ids : str, optional
            The ids of the keys; a key whose id is ``padding`` counts nothing.
        score : callable
            Gets ``[q, k, q - k, q * k]`` of each step, a value of width steps * 4n, and returns one number a step, a
            value of width steps: layers of :meth:`linear` and activations.
        softmax : bool
            The weights of a row sum to one. Where all its ids are padding, they are equal.
        padding : int
        name : str, optional

        Returns
        -------
        str
            Width n.

        References
        ----------
        Zhou et al., "Deep Interest Network for Click-Through Rate Prediction" (2018).
        """
        n = self.width(query)
        steps = self._part(keys, n, "target_attention")
        repeated = self.repeat(query, steps)
        parts = self.concat([repeated, keys, self.sub(repeated, keys), self.mul(repeated, keys)])
        weights = score(self.transpose(parts, a=4, b=steps, inner=n))
        if ids is not None:
            weights = self.mask(weights, ids, padding=padding, value=-1e9 if softmax else 0.0)
        if softmax:
            weights = self.softmax(weights)
        return self.matmul(weights, keys, m=1, k=steps, n=n, name=name)

    def product(self, values: Sequence[str], *, name: str | None = None) -> str:
        """The product of several values, such as the probabilities along a path of behaviour (ESMM)."""
        if len(values) < 2:
            raise ConversionError(f"product: it takes two or more values, found {len(values)}")
        return self.mul(reduce(self.mul, values[:-1]), values[-1], name=name)

    def _part(self, x: str, n: int, where: str) -> int:
        """How many runs of n columns the value has."""
        if n < 1 or self.width(x) % n:
            raise ConversionError(f"{where}: {x!r} has {self.width(x)} columns, which is not a multiple of {n}")
        return self.width(x) // n

    def _constant(self, value: str, role: str, array: NDArray[Any]) -> str:
        """A weight that belongs to a value made so far."""
        name, number = f"{value}.{role}", 1
        while name in self._weights:
            number += 1
            name = f"{value}.{role}~{number}"
        return self.weight(name, array)
