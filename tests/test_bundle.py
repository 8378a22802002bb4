"""Bundles: what is written is read again, and every kind of damage has its own clear error."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cases import fill, model_graph
from fastmtr import _native
from fastmtr import bundle as bundle_module
from fastmtr.bundle import Bundle, Catalogue, open_bundle, write_bundle
from fastmtr.errors import BundleError, ConversionError, SchemaError
from fastmtr.graph import Packed
from fastmtr.schema import Feature, Schema, Task

GRAPH = model_graph("esmm")
SCHEMA = Schema(
    user="user_id",
    item="item_id",
    features=(Feature(name="age", entity="user", kind="numeric"),),
    tasks=(Task(name="click"), Task(name="buy", depends_on="click")),
)
PACKED = fill(GRAPH, n_items=5)
KEYS = np.array([10, 20, 30, 40, 50])
ITEMS = Catalogue(KEYS, PACKED["item"], tuple(f"item {k}" for k in KEYS))
USERS = Catalogue(np.array(["ann", "bob"], dtype=object), PACKED["request"].take([0, 0]))
SEEN = (np.array([0, 2, 2]), np.array([4, 1]))
STATE = ({"age": {"kind": "numeric"}}, {"age.mean": np.array([1.5])})


def write(path: Path, **changes: Any) -> Path:
    arguments: dict[str, Any] = {"schema": SCHEMA, "graph": GRAPH, "catalogue": ITEMS, "users": USERS, "seen": SEEN}
    arguments |= {"pipeline_state": STATE, "metadata": {"data": "test"}, "report": {"auc": 0.75}}
    return write_bundle(path, **(arguments | changes))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "bundle")


def test_all_that_is_written_is_read(path: Path) -> None:
    bundle = open_bundle(path)
    assert bundle.schema == SCHEMA
    assert bundle.graph.to_json() == GRAPH.to_json()
    assert bundle.metadata == {"data": "test"}
    assert bundle.report == {"auc": 0.75}
    assert bundle.n_items == 5
    assert bundle.catalogue is not None
    assert bundle.catalogue.keys.tolist() == KEYS.tolist()
    assert bundle.labels == list(ITEMS.labels or ())
    assert bundle.item_names is None
    assert bundle.user_names == ["ann", "bob"]
    assert bundle.users is not None
    assert bundle.users.keys.tolist() == [0, 1]
    np.testing.assert_array_equal(bundle.users.packed.ids, USERS.packed.ids)
    np.testing.assert_array_equal(bundle.catalogue.packed.dense, ITEMS.packed.dense)
    assert bundle.seen is not None
    assert [v.tolist() for v in bundle.seen] == [[0, 2, 2], [4, 1]]
    assert bundle.pipeline_state is not None
    head, arrays = bundle.pipeline_state
    assert head == STATE[0]
    np.testing.assert_array_equal(arrays["age.mean"], [1.5])
    assert bundle.plan["fusion"]["tasks"] == ["click", "buy"]
    assert bundle.manifest["item_keys"] == "int"
    assert bundle.manifest["user_keys"] == "str"


def test_a_bundle_may_be_as_little_as_a_model(tmp_path: Path) -> None:
    bundle = open_bundle(write_bundle(tmp_path / "b", schema=SCHEMA, graph=GRAPH))
    optional = (bundle.catalogue, bundle.users, bundle.seen, bundle.labels, bundle.item_names, bundle.user_names)
    assert optional == (None,) * 6
    assert bundle.pipeline_state is None
    assert bundle.report is None
    assert bundle.n_items == 0
    assert _native.Model(str(bundle.path)).n_items == 0


def test_text_keys_become_rows_for_the_engine(tmp_path: Path) -> None:
    items = Catalogue(np.array(["a", "b", "c", "d", "e"]), ITEMS.packed)
    bundle = open_bundle(write(tmp_path / "b", catalogue=items))
    assert bundle.item_names == ["a", "b", "c", "d", "e"]
    assert bundle.labels is None
    assert _native.Model(str(bundle.path)).keys().tolist() == [0, 1, 2, 3, 4]


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    assert {f.name: f.read_bytes() for f in one.iterdir()} == {f.name: f.read_bytes() for f in two.iterdir()}


def test_regression_tasks_are_not_in_the_default_product(tmp_path: Path) -> None:
    for kinds, expected in (
        (("binary", "regression"), ("product", ["click"])),
        (("regression",) * 2, ("sum", ["click", "buy"])),
    ):
        tasks = tuple(Task(name=n, kind=k) for n, k in zip(("click", "buy"), kinds, strict=True))  # type: ignore[arg-type]
        schema = Schema(user="u", item="i", features=SCHEMA.features, tasks=tasks)
        fusion = open_bundle(write(tmp_path / kinds[0], schema=schema)).plan["fusion"]
        assert (fusion["kind"], fusion["tasks"]) == expected


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_nothing_is_replaced_unless_asked(path: Path) -> None:
    with pytest.raises(BundleError, match="overwrite=True"):
        write(path)
    write(path, report={"auc": 0.8}, overwrite=True)
    assert open_bundle(path).report == {"auc": 0.8}
    assert os.listdir(path.parent) == ["bundle"]


def test_replacing_works_where_the_system_cannot_exchange(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "_exchange", lambda a, b: False)
    write(path, report={"auc": 0.8}, overwrite=True)
    assert open_bundle(path).report == {"auc": 0.8}
    assert os.listdir(path.parent) == ["bundle"]


def test_what_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for name, message in (("photos", "not a bundle"), ("file", "not a bundle"), ("link", "symbolic link")):
        with pytest.raises(BundleError, match=message):
            write(tmp_path / name, overwrite=True)
    assert (tmp_path / "photos" / "cat.jpg").exists()


def test_an_empty_directory_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    assert open_bundle(write(tmp_path / "b", overwrite=True)).n_items == 5


@pytest.mark.parametrize("error", [KeyboardInterrupt, BundleError])
@pytest.mark.parametrize("where", ["_check_with_engine", "_flush", "_publish"])
def test_a_failing_writer_leaves_the_old_bundle_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: type[BaseException]
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(bundle_module, where, fail)
    with pytest.raises(error):
        write(path, report={"auc": 0.8}, overwrite=True)
    assert open_bundle(path).report == {"auc": 0.75}
    assert os.listdir(path.parent) == ["bundle"]


def test_the_old_bundle_comes_back_when_the_last_step_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "_exchange", lambda a, b: False)
    rename, calls = Path.rename, []

    def fail_second(self: Path, to: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise OSError("disk on fire")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(OSError, match="fire"):
        write(path, report={"auc": 0.8}, overwrite=True)
    assert open_bundle(path).report == {"auc": 0.75}
    assert os.listdir(path.parent) == ["bundle"]


def test_metadata_may_come_from_the_complete_bundle(path: Path) -> None:
    def describe(made: Path) -> dict[str, Any]:
        return {"items": _native.Model(str(made)).n_items, "data": open_bundle(made, verify=True).metadata}

    write(path, metadata=describe, overwrite=True)
    assert open_bundle(path, verify=True).metadata == {"items": 5, "data": {}}

    def refuse(made: Path) -> dict[str, Any]:
        raise ConversionError("not as it should be")

    with pytest.raises(ConversionError, match="not as it should be"):
        write(path, metadata=refuse, overwrite=True)
    assert open_bundle(path).metadata["items"] == 5
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_killed_writer_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    program = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from fastmtr import bundle
        from cases import model_graph
        from fastmtr.schema import Feature, Schema, Task
        bundle._check_with_engine = lambda building: os.kill(os.getpid(), signal.SIGKILL)
        schema = Schema(user="u", item="i", features=(Feature(name="a", entity="user", kind="numeric"),),
                        tasks=(Task(name="click"), Task(name="buy")))
        bundle.write_bundle({str(tmp_path / "b")!r}, schema=schema, graph=model_graph("esmm"))
    """
    done = subprocess.run([sys.executable, "-P", "-c", textwrap.dedent(program)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "b").exists()


def test_the_bundle_can_be_read_by_others(path: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o777 & ~mask
    for file in path.iterdir():
        assert file.stat().st_mode & 0o777 == 0o666 & ~mask, file.name


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"graph": model_graph("mmoe")}, SchemaError, "tasks"),
        ({"catalogue": Catalogue(KEYS[:4], ITEMS.packed)}, SchemaError, r"catalogue.*\(4, 2\)"),
        (
            {"catalogue": Catalogue(KEYS, Packed(ITEMS.packed.ids.astype(np.int64), ITEMS.packed.dense))},
            SchemaError,
            "int64",
        ),
        ({"catalogue": Catalogue(np.array([1, 2, 3, 4, 1]), ITEMS.packed)}, SchemaError, "1 stands 2 times"),
        ({"catalogue": Catalogue(KEYS + 0.5, ITEMS.packed)}, SchemaError, "whole numbers or text"),
        ({"catalogue": Catalogue(KEYS, ITEMS.packed, ["a"])}, SchemaError, "5 keys, but 1 labels"),
        ({"catalogue": Catalogue(KEYS, Packed(ITEMS.packed.ids + 40, ITEMS.packed.dense))}, SchemaError, "'item_id'"),
        ({"catalogue": Catalogue(KEYS, Packed(ITEMS.packed.ids, ITEMS.packed.dense * np.nan))}, SchemaError, "finite"),
        ({"users": Catalogue(np.array([1, 2]), PACKED["item"].take([0, 1]))}, SchemaError, "users"),
        ({"seen": (np.array([0, 2]), np.array([4, 1]))}, SchemaError, "offsets"),
        ({"seen": (np.array([0, 2, 2]), np.array([4, 5]))}, SchemaError, "0 to 4"),
        ({"users": None}, SchemaError, "seen"),
        ({"fusion": {"tasks": ["like"]}}, ConversionError, "like"),
        ({"metadata": {"x": object()}}, BundleError, "metadata"),
    ],
)
def test_what_does_not_fit_is_not_written(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        write(tmp_path / "b", **changes)
    assert not list(tmp_path.iterdir())


# ---- damage ----------------------------------------------------------------------------------------------------------


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def flip(path: Path, name: str) -> None:
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(data)


FILES = (
    *("catalogue.safetensors", "features.json", "features.safetensors", "graph.json", "labels.json", "plan.json"),
    *("report.json", "schema.json", "users.json", "users.safetensors", "weights.safetensors"),
)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_truncated_or_altered(path: Path, name: str) -> None:
    whole = (path / name).read_bytes()
    flip(path, name)
    with pytest.raises(BundleError, match=rf"{name} is altered: its SHA-256"):
        open_bundle(path)
    (path / name).write_bytes(whole[:-1])
    with pytest.raises(BundleError, match=rf"{name} is truncated: it has {len(whole) - 1} bytes"):
        open_bundle(path, verify=False)
    (path / name).write_bytes(whole + b"\n")
    with pytest.raises(BundleError, match=rf"{name} is altered: it has {len(whole) + 1} bytes"):
        open_bundle(path, verify=False)
    (path / name).unlink()
    with pytest.raises(BundleError, match=rf"{name} is missing"):
        open_bundle(path)
    (path / name).write_bytes(whole)
    (path / name).rename(path.parent / name)
    (path / name).symlink_to(path.parent / name)
    with pytest.raises(BundleError, match=rf"{name} is a symbolic link"):
        open_bundle(path)


def test_large_files_are_checked_by_size_alone_unless_asked(path: Path) -> None:
    flip(path, "weights.safetensors")
    assert isinstance(open_bundle(path, verify=False), Bundle)
    with pytest.raises(BundleError, match="altered"):
        open_bundle(path, verify=True)
    flip(path, "weights.safetensors")
    flip(path, "plan.json")
    with pytest.raises(BundleError, match="altered"):
        open_bundle(path, verify=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format_version=2, fastmtr_version="9.0"), r"format 2 \(written by fastmtr 9.0\).*upgrade"),
        (lambda m: m.update(format_version=0), "format 0"),
        (lambda m: m.update(format_version="one"), "format_version"),
        (lambda m: m.pop("format_version"), "format_version"),
        (lambda m: m.pop("files"), "files"),
        (lambda m: m["files"].pop("plan.json"), "does not list plan.json"),
        (lambda m: m["files"].pop("catalogue.safetensors"), "added later"),
        (lambda m: m["files"].update({"../secret": m["files"]["plan.json"]}), "'../secret'"),
        (lambda m: m["files"].update({"/etc/passwd": m["files"]["plan.json"]}), "'/etc/passwd'"),
        (lambda m: m["files"].update({"model.pkl": m["files"]["plan.json"]}), "'model.pkl'"),
        (lambda m: m["files"]["plan.json"].update(bytes="many"), "damaged"),
        (lambda m: m["files"]["plan.json"].update(sha256="0" * 64), "SHA-256"),
    ],
)
def test_a_manifest_that_is_wrong(path: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    edit_manifest(path, change)
    with pytest.raises(BundleError, match=message):
        open_bundle(path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b'{"format_version": 1}'])
def test_a_manifest_that_is_no_json(path: Path, text: bytes) -> None:
    (path / "manifest.json").write_bytes(text)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        open_bundle(path)


def rewrite(path: Path, name: str, text: bytes) -> None:
    """Alter a file as a careful attacker would: the manifest agrees."""
    (path / name).write_bytes(text)
    entry = {"sha256": bundle_module._sha256(path / name), "bytes": len(text)}
    edit_manifest(path, lambda m: m["files"].update({name: entry}))


def test_files_that_say_nonsense(path: Path) -> None:
    whole = {name: (path / name).read_bytes() for name in FILES}
    for name in ("schema.json", "plan.json", "report.json"):
        rewrite(path, name, b"{nonsense")
        with pytest.raises(BundleError, match=name):
            open_bundle(path)
        rewrite(path, name, whole[name])
    uses: dict[str, Callable[[Bundle], Any]] = {
        "features.json": lambda b: b.pipeline_state,
        "features.safetensors": lambda b: b.pipeline_state,
        "labels.json": lambda b: b.labels,
        "users.json": lambda b: b.user_names,
        "users.safetensors": lambda b: b.users,
        "catalogue.safetensors": lambda b: b.catalogue,
        "weights.safetensors": lambda b: b.graph,
        "graph.json": lambda b: b.graph,
    }
    for name, use in uses.items():
        rewrite(path, name, b"{nonsense")
        bundle = open_bundle(path)
        with pytest.raises(BundleError, match=name):
            use(bundle)
        rewrite(path, name, whole[name])
    assert open_bundle(path).n_items == 5


def test_a_path_that_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for name, message in (("nothing", "not there"), ("file", "is a file"), ("folder", "not a bundle")):
        with pytest.raises(BundleError, match=message):
            open_bundle(tmp_path / name)
