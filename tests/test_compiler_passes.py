"""Each pass, on random graphs of all operators: the same outputs as before."""

from collections.abc import Callable

import numpy as np
import pytest
from cases import EXACT, MODELS, fill, model_graph, random_graphs
from hypothesis import given, settings

from fastmtr.compiler.dead_code import merge_equal_nodes, remove_dead_code
from fastmtr.compiler.flatten import flatten
from fastmtr.compiler.fold_batch_norm import fold_batch_norm
from fastmtr.compiler.fuse_activation import fuse_activation
from fastmtr.compiler.split_by_domain import split_by_domain
from fastmtr.compiler.stack_siblings import stack_siblings
from fastmtr.graph import Graph
from fastmtr.reference import evaluate

PASSES = (remove_dead_code, merge_equal_nodes, flatten, fuse_activation, stack_siblings, split_by_domain)


def assert_same_outputs(before: Graph, after: Graph, tolerance: float) -> None:
    packed = fill(before, n_items=5, n_candidates=5)
    expected, found = evaluate(before, packed), evaluate(after, packed)
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance * (1 + abs(value).max()), err_msg=name)


@pytest.mark.parametrize("one_pass", PASSES)
@settings(max_examples=60, deadline=None)
@given(graph=random_graphs())
def test_a_pass_keeps_every_output(one_pass: Callable[[Graph], Graph], graph: Graph) -> None:
    assert_same_outputs(graph, one_pass(graph), 1e-12)


@settings(max_examples=100, deadline=None)
@given(graph=random_graphs())
def test_folded_scales_keep_every_output_to_float32(graph: Graph) -> None:
    assert_same_outputs(graph, fold_batch_norm(graph), 1e-5)


@settings(max_examples=40, deadline=None)
@given(graph=random_graphs(grow=EXACT))
def test_passes_after_one_another_keep_every_output(graph: Graph) -> None:
    after = graph
    for one_pass in (*PASSES, fold_batch_norm, *PASSES):
        after = one_pass(after)
    assert_same_outputs(graph, after, 1e-11)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("one_pass", [*PASSES, fold_batch_norm])
def test_a_pass_keeps_the_outputs_of_models(one_pass: Callable[[Graph], Graph], kind: str) -> None:
    graph = model_graph(kind, batch_norm=True)
    assert_same_outputs(graph, one_pass(graph), 1e-6 if one_pass is fold_batch_norm else 1e-12)
