"""Which item values are stored."""

import numpy as np
import pytest

from fastmtr.compiler.storage import AUTO_MEMORY, choose_storage, row_bytes
from fastmtr.graph import Graph, GraphBuilder, Input


def wide_item_part(width: int) -> Graph:
    """An item product of that width, added to the user's."""
    g = GraphBuilder([Input("user", "request", "dense", 0, width), Input("item", "item", "dense", 0, 32)])
    part = g.affine("item", w=g.weight("w", np.ones((width, 32))), name="part")
    g.output("click", g.reduce(g.affine(addends=["user", part], activation="relu"), "sum"))
    return g.build()


@pytest.mark.parametrize(("n_items", "stored"), [(0, True), (200_000, True), (250_000, True), (300_000, False)])
def test_auto_memory_holds_the_partials_of_a_large_catalogue(n_items: int, stored: bool) -> None:
    storage = choose_storage(wide_item_part(8 * 256 + 24), n_items=n_items)
    assert storage.stored == (frozenset({"part"}) if stored else frozenset())
    assert stored == (n_items * row_bytes(8 * 256 + 24) <= AUTO_MEMORY)


def test_a_value_is_stored_only_where_reading_it_is_quicker_than_computing_it() -> None:
    g = GraphBuilder([Input("user", "request", "dense", 0, 32), Input("item", "item", "dense", 0, 1)])
    part = g.affine("item", w=g.weight("w", np.ones((32, 1))))
    g.output("click", g.reduce(g.affine(addends=["user", part], activation="relu"), "sum"))
    storage = choose_storage(g.build(), n_items=1000)
    assert not storage.stored
    assert "longer than computing" in storage.refused[part]


def test_what_is_repeated_is_stored_instead_of_the_repetition() -> None:
    g = GraphBuilder([Input("user", "request", "dense", 0, 32), Input("item", "item", "ids", 0, 1, rows=100)])
    embedded = g.embedding("item", g.weight("t", np.ones((100, 8))))
    hidden = g.affine(embedded, w=g.weight("w", np.ones((8, 8))), activation="tanh")
    repeated = g.repeat(hidden, 4)
    g.output("click", g.dot(repeated, "user"))
    storage = choose_storage(g.build(), n_items=1000)
    assert storage.stored == {hidden}
    assert "what it repeats" in storage.refused[repeated]


@pytest.mark.parametrize("also_read", [False, True])
def test_what_a_candidate_would_read_instead_counts(also_read: bool) -> None:
    """A sum of columns is cheap, but its inputs are more bytes than it is; unless the candidate reads them anyway."""
    g = GraphBuilder([Input("user", "request", "dense", 0, 8), Input("item", "item", "dense", 0, 24)])
    pooled = g.reduce("item", "sum", axis=3, inner=8)
    g.output("click", g.reduce(g.mul("user", pooled), "sum"))
    if also_read:
        g.output("like", g.reduce(g.mul(g.slice("item", 0, 8), "user"), "sum"))
    assert choose_storage(g.build(), n_items=10**7).stored == (frozenset() if also_read else frozenset({pooled}))
