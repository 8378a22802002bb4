"""Bundles that are wrong in one place each: the engine must refuse them, and say where."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import HandmadeModel, handmade_model, seal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malformed import Plan, put, refused, refused_plan, remove, step
from safetensors.numpy import save_file

from fastmtr import BundleError
from fastmtr._native import Model, Session


@pytest.fixture
def handmade() -> HandmadeModel:
    return handmade_model(n_items=10)


@pytest.fixture
def bundle(handmade: HandmadeModel, tmp_path: Path) -> Path:
    path = handmade.maker.write(tmp_path / "m", handmade.catalogue)
    Model(path)  # is sound before it is attacked
    return path


# ---- plan.json: a change of the parsed plan, and what must be said ---------------------------------------------------


def buffer(plan: Plan, operand: list[int]) -> dict[str, Any]:
    found: dict[str, Any] = plan["buffers"][operand[0]]
    return found


def before(name: str, other: str) -> Callable[[Plan], None]:
    """Move a step in front of another."""

    def change(plan: Plan) -> None:
        moved = step(plan, name)
        plan["steps"].remove(moved)
        plan["steps"].insert(plan["steps"].index(step(plan, other)), moved)

    return change


def add(**new: Any) -> Callable[[Plan], None]:
    return lambda plan: plan["steps"].append({"name": "new", "weights": {}, "attrs": {}} | new)


PLANS: dict[str, tuple[Callable[[Plan], None], str]] = {
    "version 0": (
        put("plan_version", 0),
        "plan_version is 0; fastmtr .* executes versions 1 to 2: compile",
    ),
    "version 3": (put("plan_version", 3), "executes versions 1 to 2: install a newer fastmtr"),
    "version text": (put("plan_version", "1"), "'plan_version' must be a whole number, found text"),
    "no steps": (remove("", "steps"), "'steps' is missing"),
    "unknown member": (put("extra", 1), "top level: unknown member 'extra'"),
    "unknown member of a step": (put("steps/user/hint", 1), r"step 0 \(embedding 'user'\): unknown member 'hint'"),
    "unknown attr": (put("steps/user/attrs/axis", 1), "attrs: unknown member 'axis'; this version knows padding"),
    "unknown weight": (
        put("steps/user/weights/w", "user.table"),
        "weights: unknown member 'w'; this version knows table",
    ),
    "unknown op": (put("steps/user/op", "convolve"), "'op' is 'convolve', expected one of gather, copy"),
    "unknown domain": (
        put("steps/user/domain", "users"),
        "'domain' is 'users', expected one of request, item, candidate",
    ),
    "buffer out of range": (put("steps/user/inputs/0/0", 99), "input 0 names buffer 99, there are "),
    "buffer 2^32": (put("steps/user/inputs/0/0", 2**32), "input 0 names buffer 4294967296"),
    "buffer -1": (put("steps/user/inputs/0/0", -1), "input 0 must be three whole numbers"),
    "columns out of range": (
        put("steps/user/output/1", 12),
        r"output is columns 12 .. 20 of buffer 7 \('b7'\), which has 19",
    ),
    "columns that wrap around": (put("steps/user/output/1", 2**63 - 1), "output is columns 9223372036854775807"),
    "width 0": (put("steps/user/inputs/0/2", 0), "input 0 has width 0"),
    "fraction": (put("steps/user/inputs/0/1", 0.5), "input 0 must be three whole numbers"),
    "operand of two": (put("steps/user/inputs/0", [0, 1]), r"input 0 must be a list \[buffer, offset, width\]"),
    "huge width": (put("buffers/8/width", 2**40), "'width' must be a whole number 1 .. 1048576, found 1099511627776"),
    "huge in all": (
        lambda plan: plan["buffers"].extend(
            [{"name": "b", "domain": "item", "dtype": "f32", "width": 2**20, "stored": False}] * 17
        ),
        "have .* columns; at most 16777216 are read",
    ),
    "read before written": (
        before("first.request", "profile"),
        r"input 0 is columns 0 .. 19 of request buffer 7 .*; column 16 is read before",
    ),
    "written twice": (
        put("steps/history/output/1", 4),
        "output is columns 4 .. 12 .*, which an earlier step has written",
    ),
    "written into an input": (put("steps/profile/output", [2, 0, 3]), "which holds an input"),
    "output is input": (
        put("steps/experts/output", [15, 0, 32]),
        "output is columns 0 .. 32 of candidate buffer 15 .*, which an earlier",
    ),
    "item step reads a request": (
        put("steps/price/inputs/0", [2, 0, 2]),
        "an item step cannot read input 0, columns 0 .. 2 of request buffer 2",
    ),
    "request step reads an item": (put("steps/profile/inputs/0", [4, 0, 2]), "a request step cannot read input 0"),
    "candidate step reads an item": (
        put("steps/experts/inputs/0", [12, 0, 32]),
        "a candidate step reads items through gather or an addend",
    ),
    "item that is not stored": (
        put("buffers/12/stored", False),
        r"input 2 is columns 0 .. 36 of item buffer 12 \('b12'\), which is not stored",
    ),
    "stored without input": (
        put("buffers/15/stored", True),
        "'stored' is true, but it is a candidate buffer that holds no input",
    ),
    "input not stored": (put("buffers/0/stored", False), "holds an input, so its 'stored' must be true"),
    "step writes another domain": (put("steps/place/domain", "request"), "a request step cannot read input 0"),
    "output of another domain": (
        put("steps/profile/output", [11, 7, 3]),
        "a request step cannot write columns 7 .. 10 of item buffer 11",
    ),
    "x is a stored item": (put("steps/first.candidate/inputs/0", [12, 0, 3]), "reads items through gather"),
    "addend width": (
        put("steps/first.candidate/inputs/2/2", 35),
        "addend .input 2. has width 35, expected the output's 36",
    ),
    "ids as numbers": (
        put("steps/profile/inputs/0", [1, 0, 3]),
        "of dtype i32, expected f32|output is .* of dtype f32, expected i32",
    ),
    "numbers as ids": (put("steps/user/inputs/0", [2, 0, 1]), "of dtype f32, expected i32"),
    "more ids than table rows": (
        put("inputs/0/rows", 51),
        "ids of .* may be as large as 50, but the table has 50 rows",
    ),
    "padding beyond the table": (put("steps/user/attrs/padding", 50), "padding is 50, but the table has 50 rows"),
    "padding negative": (put("steps/user/attrs/padding", -1), "'padding' must be a whole number"),
    "padding of the input": (put("inputs/1/padding", 40), "'padding' must be a whole number 0 .. 39, found 40"),
    "rows 0": (put("inputs/0/rows", 0), "'rows' must be a whole number 1 .. 2147483647, found 0"),
    "rows 2^31": (put("inputs/0/rows", 2**31), "'rows' must be a whole number"),
    "rows missing": (remove("inputs/0", "rows"), "'rows' is missing"),
    "rows of a number": (put("inputs/2/rows", 5), "'rows' and 'padding' belong to kind 'ids'"),
    "input columns overlap": (put("inputs/1/offset", 0), "columns 0 .. 6 overlap those of another input"),
    "input columns huge": (put("inputs/1/offset", 2**20), "columns end at"),
    "input width": (put("inputs/1/width", 5), "has width 6, expected the input's 5"),
    "input domain": (put("inputs/2/domain", "candidate"), "has domain request, expected candidate|overlap"),
    "input kind": (put("inputs/2/kind", "ids"), "overlap|'rows' is missing"),
    "two inputs of a buffer": (put("inputs/4/buffer", 2), "already holds another input"),
    "input names a buffer": (put("inputs/0/buffer", 400), "names buffer 400"),
    "name twice": (put("inputs/1/name", "user"), "the name stands twice"),
    "no such tensor": (put("steps/user/weights/table", "nobody"), "weights.safetensors: there is no tensor 'nobody'"),
    "w of another shape": (
        put("steps/first.item/weights/w", "first.request.w"),
        r"'w' has shape \[36, 19\], expected \[1, 36, 10\]",
    ),
    "b of another shape": (put("steps/second/weights/b", "tower.buy.b"), r"'b' has shape \[1\], expected \[16\]"),
    "table of another shape": (
        put("steps/user/weights/table", "second.w"),
        r"'table' has shape \[2, 8, 16\], expected \[rows, dimension\]",
    ),
    "table of another width": (
        put("steps/user/weights/table", "place.table"),
        "may be as large as 49|output has width",
    ),
    "x without w": (put("steps/first.item/weights", {}), "addend .input 0. has width 10, expected the output's 36"),
    "w without x": (put("steps/first.candidate/attrs/has_x", False), "has a weight 'w' but no x"),
    "nothing at all": (lambda plan: plan["steps"].append({}), "step 21: 'name' is missing"),
    "groups": (put("steps/second/attrs/groups", 3), "output has width 16, which is no multiple of the 3 groups"),
    "groups of x": (put("steps/second/inputs/0/2", 31), "x has width 31, which is no multiple of the 2 groups"),
    "groups 0": (put("steps/second/attrs/groups", 0), "'groups' must be a whole number"),
    "activation": (put("steps/second/attrs/activation", "cube"), "'activation' is 'cube', expected one of none, relu"),
    "no alpha": (remove("steps/second/attrs", "alpha"), "'alpha' is missing"),
    "alpha infinite": (put("steps/second/attrs/alpha", 1e300), "'alpha' is beyond float32"),
    "prelu without slope": (put("steps/second/attrs/activation", "prelu"), "'slope' is missing"),
    "softmax size": (put("steps/gates/attrs/size", 3), "input has width 4, no multiple of size 3"),
    "softmax size 0": (put("steps/gates/attrs/size", 0), "'size' must be a whole number"),
    "gate width": (put("steps/mixture.buy/inputs/0", [18, 0, 3]), "the gate has width 3 for 2 experts"),
    "expert width": (put("steps/mixture.buy/inputs/1/2", 7), "expert 0 has width 7, expected the output's 8"),
    "no experts": (
        lambda plan: step(plan, "mixture.buy").update(inputs=[[18, 0, 2]]),
        "has 1 inputs, expected at least 2",
    ),
    "binary widths": (put("steps/chain/inputs/0", [18, 0, 2]), "output has width 1, expected 2 = its wider input's"),
    "binary of three": (lambda plan: step(plan, "chain")["inputs"].append([18, 0, 1]), "has 3 inputs, expected 2"),
    "binary fn": (put("steps/chain/attrs/fn", "pow"), "'fn' is 'pow'"),
    "copy width": (put("steps/profile/output/2", 2), "output has width 2, expected 3 = its input's"),
    "reduce": (
        add(
            op="reduce",
            domain="candidate",
            inputs=[[15, 0, 36]],
            output=[22, 0, 1],
            attrs={"fn": "sum", "outer": 5, "axis": 7, "inner": 1},
        ),
        "input has width 36, expected 35 = outer times axis times inner",
    ),
    "reduce that overflows": (
        add(
            op="reduce",
            domain="candidate",
            inputs=[[15, 0, 36]],
            output=[22, 0, 1],
            attrs={"fn": "sum", "outer": 2**20, "axis": 2**20, "inner": 2**20},
        ),
        "expected 1152921504606846976 =",
    ),
    "dot": (
        add(op="dot", domain="request", inputs=[[2, 0, 2], [2, 0, 3]], output=[10, 0, 1]),
        "inputs have widths 2 and 3, expected equal ones",
    ),
    "gather of a request": (
        add(op="gather", domain="candidate", inputs=[[2, 0, 1]], output=[22, 0, 1]),
        "gather is a candidate step over a stored",
    ),
    "gather in the item phase": (
        add(op="gather", domain="item", inputs=[[4, 0, 1]], output=[11, 0, 1]),
        "gather is a candidate step over a stored",
    ),
    "task of width 2": (put("outputs/0/operand/2", 2), "a task has width 1, found 2"),
    "task of an item": (put("outputs/0/operand", [4, 0, 1]), "a task is a candidate or request value"),
    "task of ids": (put("outputs/0/operand", [0, 0, 1]), "of dtype i32, expected f32"),
    "output never written": (
        lambda plan: plan["steps"].remove(step(plan, "chain")),
        "output 1 .'buy'.: .*nothing writes column 1",
    ),
    "request output of a candidate": (put("outputs/0/role", "request"), "an output of role request is a request value"),
    "a candidate in halves": (
        put("buffers/15/dtype", "f16"),
        "buffer 15 .* has dtype f16, which only stored item buffers may have",
    ),
    "an item that is not stored in bytes": (put("buffers/11/dtype", "i8"), "which only stored item buffers may have"),
    "an input in halves": (put("buffers/4/dtype", "f16"), "has dtype f16, expected f32"),
    "ids in bytes": (put("buffers/3/dtype", "i8"), "has dtype i8, expected i32"),
    "an output in bytes": (put("buffers/13/dtype", "i8"), "its dtype is i8, but outputs are f32"),
    "bytes that nothing writes": (
        lambda plan: plan["buffers"][12].update(dtype="i8", width=40),
        r"item buffer 12 \('b12'\) of dtype i8 is encoded as a whole, but nothing writes column 36",
    ),
    "item output not stored": (put("outputs/3/operand", [11, 0, 4]), "an output of role item is a stored item value"),
    "output name twice": (put("outputs/1/name", "click"), "the name stands twice"),
    "output role": (put("outputs/1/role", "loss"), "'role' is 'loss'"),
    "fusion kind": (put("fusion/kind", "max"), "'kind' is 'max', expected one of sum, product"),
    "fusion of nobody": (put("fusion/tasks/0", "like"), "'tasks' names 'like', which is no task output"),
    "fusion of no task": (put("fusion/tasks", []), "'tasks' is empty"),
    "fusion twice": (put("fusion/tasks/0", "click"), "'tasks' names 'click' twice"),
    "fusion weights": (put("fusion/weights", [1.0]), "there are 1 weights for 2 tasks"),
    "fusion offsets": (put("fusion/offsets", [1.0]), "there are 1 offsets for 2 tasks"),
    "fusion weight text": (put("fusion/weights/0", "1"), "'weights' must be a number, found text"),
    "steps are an object": (put("steps", {}), "'steps' must be a list, found an object"),
    "a step is a number": (lambda plan: plan["steps"].append(7), "expected an object, found a number"),
}


@pytest.mark.parametrize("case", PLANS)
def test_plan(bundle: Path, case: str) -> None:
    refused_plan(bundle, *PLANS[case])


# ---- JSON text -------------------------------------------------------------------------------------------------------

TEXTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "line 1, column 1: the text ends where a value was expected"),
    "truncated": (b'{"plan_version": 1, "inp', "the text ends within a string"),
    "unclosed": (b'{"plan_version": 1', "the text ends where '}' was expected"),
    "text after it": (b"{} {}", "text after the end of the JSON value"),
    "member twice": (b'{"a": 1, "a": 2}', "member 'a' stands twice"),
    "NaN": (b'{"a": NaN}', "expected a value"),
    "Infinity": (b'{"a": -Infinity}', "expected a value"),
    "1e999": (b'{"a": 1e999}', "a number beyond what a double holds"),
    "leading zero": (b'{"a": 01}', "expected '}'"),
    "bare point": (b'{"a": 1.}', "expected a digit"),
    "comment": (b'{"a": 1 /* one */}', "expected '}'"),
    "trailing comma": (b'{"a": 1,}', "expected the name of a member"),
    "single quotes": (b"{'a': 1}", "expected the name of a member"),
    "control character": (b'{"a": "x\ny"}', "a control character within a string"),
    "zero character": (b'{"a": "x\\u0000y"}', r"text with the character U\+0000"),
    "lone surrogate": (b'{"a": "\\ud800"}', "a high surrogate without a low one"),
    "low surrogate": (b'{"a": "\\udc00"}', "a low surrogate without a high one"),
    "unknown escape": (b'{"a": "\\x41"}', "an unknown escape"),
    "latin 1": (b'{"a": "\xe9"}', "text that is not UTF-8"),
    "overlong UTF-8": (b'{"a": "\xc0\xaf"}', "text that is not UTF-8"),
    "UTF-8 surrogate": (b'{"a": "\xed\xa0\x80"}', "text that is not UTF-8"),
    "beyond U+10FFFF": (b'{"a": "\xf4\x90\x80\x80"}', "text that is not UTF-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "expected a value"),
    "deep": (b"[" * 100_000, "nested deeper than 64"),
    "deep objects": (b'{"a":' * 100_000, "nested deeper than 64"),
    "many values": (b"[" + b"0," * 4_000_000 + b"0]", "more than 4000000 values"),
    "no object": (b"[]", "expected an object, found a list"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_json_text(bundle: Path, case: str) -> None:
    text, message = TEXTS[case]
    (bundle / "plan.json").write_bytes(text)
    refused(seal(bundle), message)


# ---- manifest and files ----------------------------------------------------------------------------------------------


def test_versions_of_the_format(bundle: Path) -> None:
    refused(
        seal(bundle, format_version=2), "the bundle has format version 2; fastmtr .* reads version 1: install a newer"
    )
    refused(seal(bundle, format_version=0), "format version 0; .*make the bundle again")
    refused(seal(bundle, format_version="1"), "'format_version' is missing or no whole number")


@pytest.mark.parametrize("name", ["plan.json", "weights.safetensors", "catalogue.safetensors"])
def test_files_that_are_missing_or_altered(bundle: Path, name: str) -> None:
    whole = (bundle / name).read_bytes()
    (bundle / name).write_bytes(whole[:-1])
    refused(bundle, f"{name} has {len(whole) - 1} bytes, manifest.json says {len(whole)}")
    (bundle / name).write_bytes(whole + b"\0")
    refused(bundle, f"{name} has {len(whole) + 1} bytes")
    (bundle / name).unlink()
    refused(bundle, f"{name} is missing, but manifest.json lists it")
    (bundle / name).mkdir()
    refused(bundle, f"{name} is missing|no regular file")


@pytest.mark.parametrize("name", ["plan.json", "weights.safetensors", "catalogue.safetensors"])
def test_files_that_the_manifest_does_not_list(bundle: Path, name: str) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["files"][name]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    refused(bundle, "does not list")


@pytest.mark.parametrize("name", ["../plan.json", "/etc/passwd", "", "..", "a/b"])
def test_files_outside_the_bundle(bundle: Path, name: str) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": "", "bytes": 1}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    refused(bundle, "is no plain file name")


def test_no_bundle_at_all(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "is no bundle: expected a directory with a manifest.json")
    refused(tmp_path, "is no bundle")
    (tmp_path / "manifest.json").write_text("[]")
    refused(tmp_path, "'format_version' is missing")
    (tmp_path / "manifest.json").write_text('{"format_version": 1}')
    refused(tmp_path, "'files' is missing or no object")
    (tmp_path / "manifest.json").write_text('{"format_version": 1, "files": {"plan.json": {"bytes": -1}}}')
    refused(tmp_path, "file 'plan.json': 'bytes' is missing or no whole number of 0 or more")


# ---- safetensors -----------------------------------------------------------------------------------------------------


def tensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: Any, shape: Any, offsets: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes are too few"),
    "seven bytes": (b"\0" * 7, "7 bytes are too few"),
    "header beyond the file": (tensors({}, length=1000), "the header says 1000 bytes, but the file ends after 2"),
    "header of 2^63": (tensors({}, length=2**63), "the header says 9223372036854775808 bytes, at most"),
    "header of 2^64-1": (tensors({}, length=2**64 - 1), "the header says 18446744073709551615 bytes, at most"),
    "header is a list": (tensors([]), "the header must be an object, found a list"),
    "tensor is a number": (tensors({"a": 1}), "tensor 'a': expected exactly the members"),
    "no shape": (tensors({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, b"1234"), "expected exactly the members"),
    "unknown dtype": (tensors({"a": entry("F31", [1], [0, 4])}, b"1234"), "unknown dtype 'F31'"),
    "negative extent": (
        tensors({"a": entry("F32", [-1], [0, 4])}, b"1234"),
        "an extent must be a whole number of 0 or more",
    ),
    "extent fraction": (tensors({"a": entry("F32", [1.5], [0, 4])}, b"1234"), "an extent must be a whole number"),
    "product overflows": (
        tensors({"a": entry("F32", [2**32, 2**32], [0, 0])}),
        "the shape's product overflows 64 bits",
    ),
    "overflow behind a zero": (tensors({"a": entry("F32", [0, 2**62, 2**62], [0, 0])}), "overflows 64 bits"),
    "too many dimensions": (tensors({"a": entry("F32", [1] * 9, [0, 4])}, b"1234"), "at most 8 numbers"),
    "size differs": (
        tensors({"a": entry("F32", [2], [0, 4])}, b"1234"),
        r"F32 \[2\] needs 8 bytes, data offsets give 4",
    ),
    "end before begin": (tensors({"a": entry("F32", [1], [4, 0])}, b"1234"), "data offsets 4 .. 0 do not lie within"),
    "beyond the file": (
        tensors({"a": entry("F32", [2], [0, 8])}, b"1234"),
        "data offsets 0 .. 8 do not lie within the file's 4",
    ),
    "offset 2^63": (
        tensors({"a": entry("F32", [1], [2**63, 2**63 + 4])}, b"1234"),
        "a data offset must be a whole number",
    ),
    "three offsets": (
        tensors({"a": entry("F32", [1], [0, 4, 8])}, b"1234"),
        "data_offsets must be a list of two numbers",
    ),
    "overlap": (
        tensors({"a": entry("F32", [2], [0, 8]), "b": entry("F32", [2], [4, 12])}, b"0" * 12),
        "it overlaps another",
    ),
    "the same twice": (
        tensors({"a": entry("F32", [1], [0, 4]), "b": entry("F32", [1], [0, 4])}, b"1234"),
        "it overlaps another",
    ),
    "gap": (tensors({"a": entry("F32", [1], [0, 4]), "b": entry("F32", [1], [8, 12])}, b"0" * 12), "there is a gap"),
    "bytes left over": (
        tensors({"a": entry("F32", [1], [0, 4])}, b"0" * 8),
        "the tensors end at data byte 4, the file at 8",
    ),
    "name twice": (
        tensors(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            b"1234",
        ),
        "member 'a' stands twice",
    ),
}


@pytest.mark.parametrize("name", ["weights.safetensors", "catalogue.safetensors"])
@pytest.mark.parametrize("case", SAFETENSORS)
def test_safetensors(bundle: Path, case: str, name: str) -> None:
    data, message = SAFETENSORS[case]
    (bundle / name).write_bytes(data)
    refused(seal(bundle), message)


def test_a_weight_of_another_type(handmade: HandmadeModel, bundle: Path) -> None:
    weights: dict[str, Any] = dict(handmade.maker.weights)
    weights["user.table"] = weights["user.table"].astype(np.float64)
    save_file(weights, bundle / "weights.safetensors")
    refused(seal(bundle), "tensor 'user.table' is F64, expected F32 or F16 or U8")


# Of the table [50, 8] of 'user' in bytes: what is changed in its tensors (None: left out), its step, and what is said.
ENCODED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "signed bytes": ({"table": np.zeros((50, 8), np.int8)}, {}, "'user.table' is I8, expected F32 or F16 or U8"),
    "no bits": ({}, {"bits": None}, "'bits' is missing"),
    "2 bits": ({}, {"bits": 2}, "'bits' must be a whole number 4 .. 8, found 2"),
    "5 bits": ({}, {"bits": 5}, "'bits' must be 4 or 8, found 5"),
    "4 bits where there are 8": ({}, {"bits": 4}, r"output has width 8, expected 16 = ids times table columns"),
    "an odd width in halves of bytes": (
        {"table": np.zeros((50, 3), np.uint8)},
        {"bits": 4},
        "output has width 8, expected 6 = ids times table columns",
    ),
    "bits of numbers": ({"table": np.zeros((50, 8), np.float32)}, {}, "unknown member 'bits'"),
    "a scale of numbers": ({"table": np.zeros((50, 8), np.float16)}, {"bits": None}, "unknown member 'table_scale'"),
    "no scale": ({"table_scale": None}, {}, "'table_scale' is missing"),
    "no shift": ({"table_shift": None}, {}, "'table_shift' is missing"),
    "scale of another type": ({"table_scale": np.ones(50)}, {}, "'user.table_scale' is F64, expected F32"),
    "scales for fewer rows": (
        {"table_scale": np.ones(49, np.float32)},
        {},
        r"'table_scale' has shape \[49\], expected \[50\]",
    ),
    "scale NaN": ({"table_scale": np.full(50, np.nan, np.float32)}, {}, "'table_scale' is nan for row 0"),
    "shift infinite": ({"table_shift": np.float32([0] * 49 + [np.inf])}, {}, "'table_shift' is inf for row 49"),
}


@pytest.mark.parametrize("case", ENCODED)
def test_encoded_tables(handmade: HandmadeModel, bundle: Path, case: str) -> None:
    tensors_changed, attrs, message = ENCODED[case]
    roles: dict[str, Any] = {
        "table": np.zeros((50, 8), np.uint8),
        "table_scale": np.ones(50, np.float32),
        "table_shift": np.zeros(50, np.float32),
    }
    plan = handmade.maker.plan()

    def write(roles: dict[str, Any], attrs: dict[str, Any]) -> Path:
        there = {role: array for role, array in roles.items() if array is not None}
        user = step(plan, "user")
        user["weights"] = {role: f"user.{role}" for role in there}
        user["attrs"] = {
            name: value for name, value in ({"bits": 8, "padding": 0} | attrs).items() if value is not None
        }
        (bundle / "plan.json").write_text(json.dumps(plan))
        weights = handmade.maker.weights | {f"user.{role}": array for role, array in there.items()}
        save_file(weights, bundle / "weights.safetensors")
        return seal(bundle)

    Model(write(roles, {}))
    refused(write(roles | tensors_changed, attrs), message)


def test_a_weight_out_of_step_with_its_type(handmade: HandmadeModel, bundle: Path) -> None:
    header: dict[str, Any] = {"pad": entry("U8", [2], [0, 2])}
    data = b"xx"
    for name, array in handmade.maker.weights.items():
        header[name] = entry("F32", list(array.shape), [len(data), len(data) + array.nbytes])
        data += array.tobytes()
    text = json.dumps(header).encode()
    (bundle / "weights.safetensors").write_bytes(tensors(text + b" " * (-len(text) % 8), data))
    refused(seal(bundle), "does not begin at a multiple of its element's size")


CATALOGUES: dict[str, tuple[dict[str, Any], str]] = {
    "no keys": ({"keys": None}, "there is no tensor 'keys'"),
    "keys int32": ({"keys": np.arange(10, dtype=np.int32)}, "tensor 'keys' is I32, expected I64"),
    "keys of two dimensions": ({"keys": np.zeros((10, 1), dtype=np.int64)}, r"'keys' has shape \[10, 1\]"),
    "key twice": ({"keys": np.array([5, 1, 2, 3, 4, 5, 6, 7, 8, 9])}, "item key 5 stands twice, in rows 0 and 5"),
    "ids width": ({"ids": np.zeros((10, 2), dtype=np.int32)}, r"'ids' has shape \[10, 2\], expected \[10, 1\]"),
    "ids rows": ({"ids": np.zeros((9, 1), dtype=np.int32)}, r"'ids' has shape \[9, 1\], expected \[10, 1\]"),
    "ids int64": ({"ids": np.zeros((10, 1), dtype=np.int64)}, "tensor 'ids' is I64, expected I32"),
    "id too large": (
        {"ids": np.full((10, 1), 40, dtype=np.int32)},
        "input 'item', item row 0, position 0: id 40 is out of range",
    ),
    "id negative": ({"ids": np.full((10, 1), -1, dtype=np.int32)}, "id -1 is out of range"),
    "dense width": ({"dense": np.zeros((10, 3), dtype=np.float32)}, r"'dense' has shape \[10, 3\], expected \[10, 2\]"),
    "dense NaN": (
        {"dense": np.full((10, 2), np.nan, dtype=np.float32)},
        "input 'price', item row 0, position 0: NaN found",
    ),
    "dense float64": ({"dense": np.zeros((10, 2))}, "tensor 'dense' is F64, expected F32"),
}


@pytest.mark.parametrize("case", CATALOGUES)
def test_catalogue(handmade: HandmadeModel, bundle: Path, case: str) -> None:
    change, message = CATALOGUES[case]
    arrays = {name: array for name, array in (handmade.catalogue | change).items() if array is not None}
    save_file(arrays, bundle / "catalogue.safetensors")
    refused(seal(bundle), message)
    Model(bundle, without_catalogue=True)


# ---- anything else ---------------------------------------------------------------------------------------------------


def _sound_parts(plan: Plan) -> list[tuple[Any, Any]]:
    """Every (container, key) of the plan that holds a number, text, truth value or null."""
    found: list[tuple[Any, Any]] = []
    todo: list[Any] = [plan]
    while todo:
        at = todo.pop()
        for key, value in at.items() if isinstance(at, dict) else enumerate(at):
            if isinstance(value, dict | list):
                todo.append(value)
            else:
                found.append((at, key))
    return found


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_is_refused_or_harmless(handmade: HandmadeModel, bundle: Path, data: st.DataObject) -> None:
    """A plan with up to three values replaced either is refused as a bundle, or scores without a crash."""
    plan = json.loads(json.dumps(handmade.maker.plan()))
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(_sound_parts(plan)))
        if isinstance(container[key], int) and not isinstance(container[key], bool):
            container[key] = data.draw(
                st.integers(-1, 60) | st.sampled_from([2**31 - 1, 2**31, 2**53, 2**63 - 1, -(2**63)])
            )
        else:
            names = [
                "request",
                "item",
                "candidate",
                "task",
                "f32",
                "i32",
                "ids",
                "dense",
                "sum",
                "max",
                "relu",
                "prelu",
            ]
            container[key] = data.draw(
                st.sampled_from([None, True, False, 0, 1, 0.5, -1e9, "", *names, *handmade.maker.weights])
            )
    (bundle / "plan.json").write_text(json.dumps(plan))
    try:
        model = Model(seal(bundle))
    except BundleError:
        return
    about = json.loads(model.describe())

    def zeros(domain: str, n: int) -> tuple[Any, Any]:
        width = about["widths"][domain]
        return np.zeros((n, width["ids"]), dtype=np.int32), np.zeros((n, width["dense"]), dtype=np.float32)

    session = Session(model, tile=3)
    ids, dense = zeros("candidate", 20)
    if model.n_tasks:
        session.rank(*zeros("request", 2), None, None, k=4, candidate_ids=ids, candidate_dense=dense)
    for output in about["outputs"]:
        if output["role"] == "request":
            session.request_output(output["name"], *zeros("request", 3))
        if output["role"] == "item":
            model.item_output(output["name"])
