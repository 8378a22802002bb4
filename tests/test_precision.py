"""Models loaded with 8-bit products: near fp32, and the same bits whatever the tile, the threads and the neighbours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from handmade import ISAS

import fastmtr
from fastmtr import Ranker
from fastmtr._native import Model, Session
from fastmtr.errors import ConfigError
from fastmtr.graph import Packed

BUNDLE = Path(fastmtr.__file__).parent / "datasets" / "kuairand_bundle"


@pytest.fixture(scope="module")
def users() -> Packed:
    """The packed requests of the bundle's users."""
    ranker = Ranker.load(BUNDLE)
    return ranker._packer.pack(list(ranker.users[:40]), None).packed


def scores(users: Packed, *, precision: str = "int8", isa: str | None = None, threads: int = 1, tile: int = 0) -> bytes:
    session = Session(Model(BUNDLE, precision=precision, isa=isa), threads=threads, tile=tile)
    values, _ = session.score(users.ids, users.dense, None, None)
    return values.tobytes()


def as_array(values: bytes) -> np.ndarray:
    return np.frombuffer(values, np.float32)


def test_what_is_in_8_bits() -> None:
    def steps(precision: str) -> list[str]:
        described = json.loads(Model(BUNDLE, precision=precision).describe())
        assert described["precision"] == precision
        return list(described["int8_steps"])

    assert steps("int8") == ["experts.1"]  # gates, towers of 16 columns and the last layers gain nothing
    assert steps("fp32") == []
    with pytest.raises(ValueError, match="precision must be 'fp32' or 'int8', found 'int4'"):
        Model(BUNDLE, precision="int4")


@pytest.mark.parametrize("isa", ISAS)
def test_near_fp32_and_nearly_the_same_everywhere(users: Packed, isa: str) -> None:
    users = users.take(np.arange(8))
    exact = as_array(scores(users, precision="fp32"))
    coarse = as_array(scores(users, isa=isa))
    assert 0 < np.abs(coarse - exact).max() < 0.02
    # The 8-bit products have the same bits everywhere; the fp32 ones before and after round apart.
    np.testing.assert_allclose(coarse, as_array(scores(users, isa="baseline")), rtol=0.02, atol=2e-3)


def test_bits_do_not_depend_on_tile_or_threads(users: Packed) -> None:
    whole = scores(users)
    assert scores(users, tile=7) == whole
    assert scores(users, tile=100, threads=3) == whole
    first = users.take(np.array([0]))
    assert scores(first, threads=2) == whole[: len(whole) // len(users.ids)]


def test_ranker_and_its_precision() -> None:
    ranker = Ranker.load(BUNDLE, precision="int8")
    assert ranker.precision == "int8"
    assert Ranker.load(BUNDLE).precision == "fp32"
    assert len(ranker.rank(ranker.users[0], None, k=5)) == 5
    with pytest.raises(ConfigError, match="precision must be one of fp32, int8, found 'half'"):
        Ranker.load(BUNDLE, precision="half")  # type: ignore[arg-type]
