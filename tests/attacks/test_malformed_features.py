"""features.json and its arrays as the engine reads them from a directory: what was changed is refused or harmless."""

from __future__ import annotations

import ctypes
import json
import re
from pathlib import Path
from typing import Any

import operator_schema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

import fastmtr
from fastmtr.features import FeaturePipeline
from fastmtr.schema import Schema, Task
from fastmtr.tables import read_table

ITEM, BUNDLE = 1, 3


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    features = tuple(f for f in operator_schema.FEATURES if f.entity == "item" and f.kind != "target")
    schema = Schema(user="user", item="item", timestamp="time", features=features, tasks=(Task(name="click"),))
    raw = operator_schema.raw_tables()
    items = read_table(raw["items"] | {"time": raw["log"]["time"][: len(raw["items"]["item"])]})
    state, arrays = FeaturePipeline(schema).fit(items=items).state()
    return {"features.json": json.dumps(state).encode(), "features.safetensors": save(arrays)}


class _Library:
    """The C ABI, as a program of another language would call it."""

    def __init__(self) -> None:
        self.c = ctypes.CDLL(fastmtr.get_library())
        self.c.fmtr_last_error.restype = ctypes.c_char_p
        self.c.fmtr_features_width.restype = ctypes.c_uint64
        self.c.fmtr_features_width.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
        self.c.fmtr_features_free.argtypes = [ctypes.c_void_p]

    def load(self, folder: Path) -> tuple[int, str]:
        """The status and its message; a program that is read encodes a row of nulls."""
        features = ctypes.c_void_p()
        status = int(self.c.fmtr_features_load(str(folder).encode(), ctypes.byref(features)))
        if status == 0:
            ids, dense = (self.c.fmtr_features_width(features, ITEM, kind) for kind in (0, 1))
            assert ids + dense < 10**7
            row = (ctypes.c_int32 * ids)(), (ctypes.c_float * dense)()
            self.c.fmtr_features_encode(features, ITEM, None, ctypes.c_uint64(0), None, None, *row)
            self.c.fmtr_features_free(features)
        return status, "" if status == 0 else self.c.fmtr_last_error().decode(errors="replace")


def _written(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_a_program_of_a_directory(files: dict[str, bytes], tmp_path: Path) -> None:
    assert _Library().load(_written(files, tmp_path)) == (0, "")


@pytest.mark.parametrize("name", ["features.json", "features.safetensors"])
def test_a_file_that_is_not_there(files: dict[str, bytes], tmp_path: Path, name: str) -> None:
    _written(files, tmp_path)
    (tmp_path / name).unlink()
    status, message = _Library().load(tmp_path)
    assert status == BUNDLE
    assert name in message


@pytest.mark.parametrize("name", ["features.json", "features.safetensors"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes(files: dict[str, bytes], tmp_path: Path, name: str, data: Any) -> None:
    content = bytearray(files[name])
    # Most of the bytes of tensors are harmless; the header is not.
    end = len(content) if name == "features.json" else 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    status, _ = _Library().load(_written(files | {name: bytes(content)}, tmp_path))
    assert status in (0, BUNDLE)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_numbers(files: dict[str, bytes], tmp_path: Path, data: Any) -> None:
    """Any number of the program becomes another: of the wrong sign, too large, a fraction."""
    text = files["features.json"].decode()
    numbers = list(re.finditer(r"-?\d+(\.\d+)?(e[-+]?\d+)?", text[: text.index('"statistics"')]))
    chosen = data.draw(st.sampled_from(numbers))
    other = data.draw(st.sampled_from(["-1", "0", "1", "3", "1.5", "2147483647", "4294967297", "9223372036854775807"]))
    changed = text[: chosen.start()] + other + text[chosen.end() :]
    status, _ = _Library().load(_written(files | {"features.json": changed.encode()}, tmp_path))
    assert status in (0, BUNDLE)
