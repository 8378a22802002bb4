"""The native counter and fastmtr.features.counts: every value once, with all of its weight."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from fastmtr import _native
from fastmtr.features.counts import IntCounts, TextCounts

RNG = np.random.default_rng(0)
# Alike at the beginning, at the end, in the middle; of every length around the words that the counter reads.
TEXTS = [
    b"",
    *(b"x" * n for n in (1, 7, 8, 9, 15, 16, 17, 24, 25, 100)),
    *(b"\0" * n for n in (1, 7, 8, 9, 16)),
    *(b"x" * i + b"y" + b"x" * (31 - i) for i in range(32)),
    *(b"12345678" + bytes([i]) for i in range(256)),
    *(bytes([i]) + b"2345678" for i in range(256)),
]


def packed(texts, *, before=b"", after=b"", dtype=np.int64):
    offsets = np.cumsum([len(before), *map(len, texts)], dtype=dtype)
    return np.frombuffer(before + b"".join(texts) + after, np.uint8), offsets


def counted(data, offsets, counts):
    texts = [data[a:b].tobytes() for a, b in pairwise(offsets)]
    assert len(set(texts)) == len(texts)
    return dict(zip(texts, counts.tolist(), strict=True))


def expected(values, valid, weights):
    found = Counter()
    for value, flag, weight in zip(values, valid, weights, strict=True):
        if flag and weight:
            found[value] += int(weight)
    return dict(found)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("around", [(b"", b""), (b"abc", b"0123456789")])
@pytest.mark.parametrize("masked", [False, True])
def test_texts(dtype, around, masked):
    texts = [TEXTS[i] for i in RNG.integers(0, len(TEXTS), 5000)]
    data, offsets = packed(texts, before=around[0], after=around[1], dtype=dtype)
    valid = RNG.integers(0, 2, len(texts)).astype(np.uint8) if masked else None
    weights = RNG.integers(0, 2**40, len(texts)) * RNG.integers(0, 2, len(texts)) if masked else None
    found = counted(*_native.count_texts(data, offsets, valid, weights))
    ones = np.ones(len(texts), np.int64)
    assert found == expected(texts, ones if valid is None else valid, ones if weights is None else weights)


@pytest.mark.parametrize("masked", [False, True])
def test_ints(masked):
    some = np.concatenate(
        [[0, -1, 2**63 - 1, -(2**63)], RNG.integers(-(2**63), 2**63 - 1, 3000), np.arange(3000) << 40]
    )
    values = RNG.choice(some, 20_000)
    valid = RNG.integers(0, 2, len(values)).astype(np.uint8) if masked else None
    weights = RNG.integers(0, 5, len(values)) if masked else None
    found, counts = _native.count_ints(values, valid, weights)
    ones = np.ones(len(values), np.int64)
    wanted = expected(values.tolist(), ones if valid is None else valid, ones if weights is None else weights)
    assert dict(zip(found.tolist(), counts.tolist(), strict=True)) == wanted


def test_many_different_values():
    values = RNG.permutation(200_000)
    found, counts = _native.count_ints(np.concatenate([values, values[:7]]))
    assert found.tolist() == values.tolist()  # in the order in which they come
    assert counts.tolist() == [2] * 7 + [1] * (len(values) - 7)
    texts = [b"%d" % i for i in values[:100_000].tolist()]
    assert counted(*_native.count_texts(*packed(texts))) == dict.fromkeys(texts, 1)


def test_nothing():
    assert [len(part) for part in _native.count_ints(np.zeros(0, np.int64))] == [0, 0]
    assert [len(part) for part in _native.count_texts(np.zeros(0, np.uint8), np.zeros(1, np.int64))] == [0, 1, 0]
    assert counted(*_native.count_texts(np.zeros(0, np.uint8), np.zeros(4, np.int32))) == {b"": 3}


def test_the_order_of_texts():
    distinct = list(dict.fromkeys(TEXTS))
    counts = RNG.integers(1, 4, len(distinct))
    order = _native.order_texts(*packed(distinct), counts)
    wanted = sorted(range(len(distinct)), key=lambda i: (-counts[i], distinct[i]))
    assert order.tolist() == wanted
    assert _native.order_texts(np.zeros(0, np.uint8), np.zeros(1, np.int64), np.zeros(0, np.int64)).tolist() == []
    with pytest.raises(ValueError, match="one more offset than counts"):
        _native.order_texts(*packed([b"a"]), np.ones(2, np.int64))
    with pytest.raises(ValueError, match="offsets must ascend"):
        _native.order_texts(np.zeros(1, np.uint8), np.array([0, 2]), np.ones(1, np.int64))


def test_what_is_no_column_is_refused():
    data, offsets = packed([b"one", b"two"])
    for wrong in ([0, 4, 3], [-1, 3, 6], [0, 3, 7], [3, 2, 6]):
        with pytest.raises(ValueError, match="offsets must ascend within the data"):
            _native.count_texts(data, np.array(wrong))
    with pytest.raises(ValueError, match="one more offset than texts"):
        _native.count_texts(data, np.zeros(0, np.int64))
    with pytest.raises(ValueError, match="valid must be a vector of 2"):
        _native.count_texts(data, offsets, np.ones(3, np.uint8))
    with pytest.raises(ValueError, match="weights must be a vector of 1"):
        _native.count_ints(np.ones(1, np.int64), None, np.ones(2, np.int64))
    with pytest.raises(TypeError):
        _native.count_ints(np.ones(1))


def test_merging_keeps_the_bytes_apart():
    one, two = TextCounts(), TextCounts()
    one.update(*packed(TEXTS))
    two.update(*packed(TEXTS[::2], before=b"zz", dtype=np.int32))
    one.merge(two)
    assert counted(*one.unordered()) == {text: 1 + (i % 2 == 0) for i, text in enumerate(TEXTS)}
    data, offsets, counts = one.by_count(2)
    assert [data[a:b].tobytes() for a, b in pairwise(offsets)] == sorted(TEXTS[::2])
    assert (one.total, one.distinct, len(counts)) == (len(TEXTS) * 3 // 2, len(TEXTS), len(TEXTS) // 2)
    ints = IntCounts()
    ints.update(np.array([3, 1, 3]))
    ints.update(np.array([1, 2]))
    assert [part.tolist() for part in ints.by_count()] == [[1, 3, 2], [2, 2, 1]]
    assert ints.at_most >= ints.distinct == 3
