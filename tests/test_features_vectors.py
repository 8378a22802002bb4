"""Texts to vectors through an encoder."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fastmtr.errors import FastMTRError, SchemaError
from fastmtr.features.vectors import embed_texts

CALLS: list[list[str]] = []


def lengths(texts: list[str]) -> Any:
    CALLS.append(texts)
    return [[len(text), text.count("a")] for text in texts]


@pytest.mark.parametrize("kind", [list, pa.array, lambda texts: pa.chunked_array([texts[:2], texts[2:]])])
def test_each_text_gets_its_vector_and_null_none(kind: Any) -> None:
    CALLS.clear()
    found = embed_texts(kind(["abba", None, "", "abba", "cab"]), lengths, batch=2)
    assert found.type == pa.list_(pa.float32(), 2)
    assert found.to_pylist() == [[4, 2], None, [0, 0], [4, 2], [3, 1]]
    assert CALLS == [["abba", ""], ["cab"]], "equal texts are encoded once, in batches"


def test_nothing_but_nulls() -> None:
    assert embed_texts([None, None], lengths).to_pylist() == [None, None]
    assert embed_texts([], lengths).to_pylist() == []


@pytest.mark.parametrize(
    "encoder",
    [
        lambda texts: np.ones(len(texts)),
        lambda texts: np.ones((len(texts) + 1, 2)),
        lambda texts: np.full((len(texts), 2), np.nan),
        lambda texts: np.ones((len(texts), 0)),
    ],
)
def test_refuses_what_is_no_vector(encoder: Any) -> None:
    with pytest.raises(SchemaError, match="one vector of finite numbers for each of 2 texts"):
        embed_texts(["a", "b"], encoder)


def test_refuses_vectors_of_different_widths() -> None:
    with pytest.raises(SchemaError, match=r"different widths: \[1, 2\]"):
        embed_texts(["a", "bb"], lambda texts: np.ones((1, len(texts[0]))), batch=1)


def test_a_name_needs_sentence_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    monkeypatch.setattr("fastmtr.features.vectors.find_spec", lambda name: None)
    with pytest.raises(FastMTRError, match="'some-model' is the name of a model of sentence-transformers"):
        embed_texts(["a"], "some-model")


def test_a_name_is_given_to_sentence_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    class SentenceTransformer:
        def __init__(self, name: str) -> None:
            self.width = len(name)

        def encode(self, texts: list[str], *, show_progress_bar: bool) -> Any:
            assert not show_progress_bar
            return np.ones((len(texts), self.width), np.float32)

    module: Any = ModuleType("sentence_transformers")
    module.SentenceTransformer = SentenceTransformer
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    monkeypatch.setattr("fastmtr.features.vectors.find_spec", lambda name: module)
    assert embed_texts(["a", None], "abc").to_pylist() == [[1, 1, 1], None]
