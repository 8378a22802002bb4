"""Bundles: a directory of JSON and safetensors that holds a compiled model and all it needs. Never pickle.

``docs/bundle.md`` describes the files. A bundle is written beside its final place, checked by the engine and renamed,
so under its name there is always a whole bundle or none.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata as package_metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from fastmtr.compiler import Explanation, ItemPrecision, compile_encoded, explain
from fastmtr.encodings import EmbeddingPrecision, decoded_shapes, decoded_weights
from fastmtr.errors import BundleError, ConversionError, SchemaError
from fastmtr.graph import Domain, Graph, Packed
from fastmtr.schema import Schema
from fastmtr.tensor_file import save_tensors

__all__ = ["FORMAT_VERSION", "Bundle", "Catalogue", "open_bundle", "write_bundle"]

FORMAT_VERSION = 1

_REQUIRED = ("schema.json", "graph.json", "plan.json", "weights.safetensors")
_OPTIONAL = (
    "features.json",
    "features.safetensors",
    "catalogue.safetensors",
    "labels.json",
    "users.safetensors",
    "users.json",
    "report.json",
)
_VERIFY_ALL_BELOW = 256 << 20
_ELEMENT_BYTES = {"F32": 4, "F16": 2, "U8": 1}  # of tensors of weights

_T = TypeVar("_T")
PipelineState = tuple[dict[str, Any], dict[str, NDArray[Any]]]


class Seen(NamedTuple):
    """The items that each known user met: user u's are ``item_rows[offsets[u]:offsets[u + 1]]``."""

    offsets: NDArray[np.int64]
    item_rows: NDArray[np.int64]

    def of(self, user_row: int) -> NDArray[np.int64]:
        """Catalogue rows, ascending."""
        return self.item_rows[self.offsets[user_row] : self.offsets[user_row + 1]]


class Catalogue(NamedTuple):
    """Items, or known users, with their packed inputs.

    Parameters
    ----------
    keys : ndarray, shape (n,)
        int64, or text; no key twice.
    packed : Packed
        n rows.
    labels : sequence of str, optional
        How each is shown to a human.
    """

    keys: NDArray[Any]
    packed: Packed
    labels: Sequence[str] | None = None


class _File(msgspec.Struct, frozen=True):
    sha256: str
    bytes: int


class _Manifest(msgspec.Struct, frozen=True):
    format_version: int
    fastmtr_version: str
    files: dict[str, _File]
    item_keys: Literal["int", "str"] | None = None
    user_keys: Literal["int", "str"] | None = None
    n_items: int = 0
    metadata: dict[str, Any] = {}


class _Labels(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    keys: list[str] | None = None
    labels: list[str] | None = None


@dataclass(frozen=True, eq=False)
class Bundle:
    """An open bundle; what is large is read when it is first used. Made by :func:`open_bundle`.

    Parameters
    ----------
    path : Path
    manifest : dict
    schema : Schema
    plan : dict
    report : dict, optional
        The quality measured when the bundle was made.
    """

    path: Path
    manifest: Mapping[str, Any]
    schema: Schema
    plan: dict[str, Any]
    report: Any
    _texts: Mapping[str, bytes] = field(repr=False)

    @property
    def metadata(self) -> dict[str, Any]:
        """What was given to :func:`write_bundle` as ``metadata``."""
        found: dict[str, Any] = self.manifest["metadata"]
        return found

    @cached_property
    def weights(self) -> dict[str, NDArray[Any]]:
        """Every tensor of graph and plan, as it is kept; :attr:`graph` has tables of embeddings in fp32."""
        return _read_tensors(self.path / "weights.safetensors")

    @cached_property
    def graph(self) -> Graph:
        """The model before compilation."""
        return self._graph_with(decoded_weights(self.plan, self.weights))

    def _graph_with(self, weights: Mapping[str, NDArray[np.float32]]) -> Graph:
        try:
            return Graph.from_json(self._texts["graph.json"], weights)
        except ConversionError as error:
            raise BundleError(f"{self.path / 'graph.json'}: {error}") from error

    @cached_property
    def pipeline_state(self) -> PipelineState | None:
        """State of the feature pipeline, for ``FeaturePipeline.from_state``."""
        if "features.json" not in self._texts:
            return None
        head = _decode(self._texts["features.json"], dict[str, Any], self.path / "features.json")
        return head, _read_tensors(self.path / "features.safetensors")

    def explain(self) -> Explanation:
        """Each step of the plan: when it runs, what it costs, what was split, stored or merged, and why not."""
        shapes, sizes = _read_shapes(self.path / "weights.safetensors")
        outlines = {
            name: np.broadcast_to(np.float32(0), shape) for name, shape in decoded_shapes(self.plan, shapes).items()
        }
        return explain(self.plan, shapes, n_items=self.n_items, item_sizes=sizes, graph=self._graph_with(outlines))

    @property
    def n_items(self) -> int:
        """Items of the catalogue; 0 without one."""
        n: int = self.manifest["n_items"]
        return n

    @cached_property
    def catalogue(self) -> Catalogue | None:
        """The items; their keys are int64 (row numbers where the keys are text, see ``item_names``)."""
        if "catalogue.safetensors" not in self.manifest["files"]:
            return None
        tensors = _read_tensors(self.path / "catalogue.safetensors")
        return Catalogue(tensors["keys"], Packed(tensors["ids"], tensors["dense"]), self.labels)

    @cached_property
    def users(self) -> Catalogue | None:
        """Known users; their keys are int64 (row numbers where the keys are text, see ``user_names``)."""
        tensors = self._users
        return None if tensors is None else Catalogue(tensors["keys"], Packed(tensors["ids"], tensors["dense"]))

    @cached_property
    def seen(self) -> Seen | None:
        """The items that each of the users met."""
        tensors = self._users
        if tensors is None or "seen_offsets" not in tensors:
            return None
        return Seen(tensors["seen_offsets"], tensors["seen_rows"])

    @property
    def labels(self) -> list[str] | None:
        """What each item of the catalogue is shown as."""
        return self._item_texts.labels

    @property
    def item_names(self) -> list[str] | None:
        """The items' keys where they are text; the engine's keys are then row numbers."""
        return self._item_texts.keys

    @property
    def user_names(self) -> list[str] | None:
        """The same of the known users."""
        return self._user_texts.keys

    @cached_property
    def _item_texts(self) -> _Labels:
        return self._read_labels("labels.json")

    @cached_property
    def _user_texts(self) -> _Labels:
        return self._read_labels("users.json")

    def _read_labels(self, name: str) -> _Labels:
        return _decode(self._texts[name], _Labels, self.path / name) if name in self._texts else _Labels()

    @cached_property
    def _users(self) -> dict[str, NDArray[Any]] | None:
        if "users.safetensors" not in self.manifest["files"]:
            return None
        return _read_tensors(self.path / "users.safetensors")


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_bundle(
    path: str | os.PathLike[str],
    *,
    schema: Schema,
    graph: Graph,
    pipeline_state: PipelineState | None = None,
    catalogue: Catalogue | None = None,
    users: Catalogue | None = None,
    seen: Seen | None = None,
    fusion: Mapping[str, Any] | None = None,
    item_memory: int | Literal["auto"] = "auto",
    item_precision: ItemPrecision = "fp32",
    fold_memory: int | Literal["auto"] = "auto",
    embedding_precision: EmbeddingPrecision = "fp32",
    progress: bool = False,
    metadata: Mapping[str, Any] | Callable[[Path], Mapping[str, Any]] | None = None,
    report: Any = None,
    overwrite: bool = False,
) -> Path:
    """Compile a graph and write it with all it needs.

    Parameters
    ----------
    path : path
        The directory to make.
    schema : Schema
    graph : Graph
        Its task outputs are the schema's tasks.
    pipeline_state : tuple of dict and dict of arrays, optional
        ``FeaturePipeline.state()``.
    catalogue : Catalogue, optional
        The items to score; a service may also give them to the engine later.
    users : Catalogue, optional
        Request inputs of known users.
    seen : tuple of int64 arrays, optional
        ``(offsets [users + 1], item rows)``: what each user met already.
    fusion : mapping, optional
        As for :func:`~fastmtr.compiler.compile_graph`; None: the product of the binary tasks, or the sum of all tasks
        where none is binary.
    item_memory : int or "auto"
        Bytes for item values computed ahead of time.
    item_precision : {"fp32", "fp16", "int8"}
        What they are kept in; see :func:`~fastmtr.compiler.compile_graph` for the error.
    fold_memory : int or "auto"
        Bytes for tables in which products of embeddings are looked up.
    embedding_precision : {"fp32", "fp16", "int8", "int4"}
        What tables of embeddings are kept in, at most; see :func:`~fastmtr.encodings.encode_table`. The bundle's graph
        is then that of the decoded numbers. :func:`~fastmtr.evaluation.compare_precision` tells what it costs.
    progress : bool
        Show how far the encoding of tables is.
    metadata : mapping of JSON values, or function that gives it, optional
        A function is called with the bundle, complete and checked, before that gets its name; if it raises, nothing is
        written.
    report : JSON value, optional
    overwrite : bool
        Replace a bundle that is there. It stays until the new one is complete.

    Returns
    -------
    Path
        The bundle.

    Raises
    ------
    BundleError
        Something is at ``path`` already, or the engine refuses the result.
    SchemaError
        Tasks, catalogue or users do not fit schema and graph, or an item's value does not fit ``item_precision``.
    ConversionError
        The graph cannot be compiled.
    """
    target = Path(path)
    _check_target(target, overwrite)
    if set(graph.tasks) != {t.name for t in schema.tasks}:
        raise SchemaError(f"the schema's tasks are {[t.name for t in schema.tasks]}, the graph's {list(graph.tasks)}")
    n_items = 0 if catalogue is None else len(catalogue.keys)
    if fusion is None:
        fusion = _default_fusion(schema)
    plan, weights = compile_encoded(
        graph,
        embedding_precision=embedding_precision,
        track=_tracked if progress else iter,
        fusion=fusion,
        n_items=n_items,
        item_memory=item_memory,
        item_precision=item_precision,
        fold_memory=fold_memory,
    )
    texts: dict[str, Any] = {"schema.json": schema.to_json(), "graph.json": graph.to_json(), "plan.json": plan}
    tensors: dict[str, dict[str, NDArray[Any]]] = {"weights.safetensors": weights}
    manifest: dict[str, Any] = {"format_version": FORMAT_VERSION, "fastmtr_version": _version()}
    if pipeline_state is not None:
        texts["features.json"], tensors["features.safetensors"] = pipeline_state
    if catalogue is not None:
        kind, tensors["catalogue.safetensors"], names = _rows(catalogue, graph, "item")
        manifest["item_keys"], manifest["n_items"] = kind, n_items
        labels = None if catalogue.labels is None else [str(label) for label in catalogue.labels]
        if names is not None or labels is not None:
            texts["labels.json"] = _Labels(keys=names, labels=labels)
    if users is not None:
        kind, tensors["users.safetensors"], names = _rows(users, graph, "request")
        manifest["user_keys"] = kind
        if names is not None:
            texts["users.json"] = _Labels(keys=names)
    if seen is not None:
        tensors.setdefault("users.safetensors", {}).update(_seen(seen, users, n_items))
    if report is not None:
        texts["report.json"] = report

    target.parent.mkdir(parents=True, exist_ok=True)
    with _temporary_sibling(target) as building:
        for name, content in texts.items():
            _write(building / name, content if isinstance(content, bytes) else _encode(content, name))
        for name, arrays in tensors.items():
            save_tensors(arrays, building / name)
            _flush(building / name)
        manifest["files"] = {
            f.name: {"sha256": _sha256(f), "bytes": f.stat().st_size} for f in sorted(building.iterdir())
        }
        manifest["metadata"] = {} if callable(metadata) else dict(metadata or {})
        _write(building / "manifest.json", _encode(manifest, "metadata"))
        _flush(building)
        _check_with_engine(building)
        if callable(metadata):
            manifest["metadata"] = dict(metadata(building))
            (building / "manifest.json").unlink()
            _write(building / "manifest.json", _encode(manifest, "metadata"))
            _flush(building)
        _publish(building, target, overwrite)
    return target


def _tracked(names: Iterable[str]) -> Iterable[str]:
    try:
        from rich.progress import track
    except ModuleNotFoundError:
        return names
    return track(list(names), description="encoding tables", transient=True)


def _default_fusion(schema: Schema) -> dict[str, Any]:
    binary = [t.name for t in schema.tasks if t.kind == "binary"]
    return {"kind": "product", "tasks": binary} if binary else {"kind": "sum"}


def _rows(given: Catalogue, graph: Graph, domain: Domain) -> tuple[str, dict[str, NDArray[Any]], list[str] | None]:
    """Kind of the keys, the tensors, and the keys' texts if they are text."""
    what = "catalogue" if domain == "item" else "users"
    keys = np.asarray(given.keys)
    n = len(keys)
    ids, dense = given.packed
    for matrix, kind, dtype in ((ids, "ids", np.int32), (dense, "dense", np.float32)):
        expected = (n, graph.packed_width(domain, "ids" if kind == "ids" else "dense"))
        if matrix.shape != expected or matrix.dtype != dtype:
            raise SchemaError(
                f"{what}: packed {kind} must be {np.dtype(dtype)} of shape {expected} (the graph's {domain} inputs), "
                f"found {matrix.dtype} of shape {matrix.shape}"
            )
    for i in graph.inputs:
        columns = ids[:, i.offset : i.offset + i.width]
        if (
            i.domain == domain
            and i.rows is not None
            and columns.size
            and not 0 <= columns.min() <= columns.max() < i.rows
        ):
            raise SchemaError(
                f"{what}: ids of {i.name!r} must be 0 to {i.rows - 1}, found {columns.min()} to {columns.max()}"
            )
    if not np.isfinite(dense).all():
        raise SchemaError(f"{what}: dense inputs must be finite, found NaN or infinite ones")
    if given.labels is not None and len(given.labels) != n:
        raise SchemaError(f"{what}: {n} keys, but {len(given.labels)} labels")
    names = None
    if keys.dtype.kind in "iu":
        if keys.dtype.kind == "u" and n and keys.max() > np.iinfo(np.int64).max:
            raise SchemaError(f"{what}: keys must fit in int64, found {keys.max()}")
        engine_keys = keys.astype(np.int64)
    elif keys.dtype.kind in "UO" and all(isinstance(key, str) for key in keys.tolist()):
        names = keys.tolist()
        engine_keys = np.arange(n, dtype=np.int64)
    else:
        raise SchemaError(f"{what}: keys must be whole numbers or text, found {keys.dtype}")
    unique, counts = np.unique(keys.astype(str) if names is not None else engine_keys, return_counts=True)
    if len(unique) != n:
        raise SchemaError(f"{what}: each key stands once, but {unique[counts > 1][0]} stands {counts.max()} times")
    return "int" if names is None else "str", {"keys": engine_keys, "ids": ids, "dense": dense}, names


def _seen(seen: Seen, users: Catalogue | None, n_items: int) -> dict[str, NDArray[Any]]:
    offsets, rows = (np.asarray(v) for v in seen)
    n_users = 0 if users is None else len(users.keys)
    ascending = offsets.shape == (n_users + 1,) and offsets[0] == 0 and (np.diff(offsets) >= 0).all()
    if users is None or not ascending or offsets[-1] != len(rows):
        raise SchemaError(
            f"seen: offsets must ascend from 0 to {len(rows)} in {n_users + 1} steps, one a user and one more"
        )
    if rows.size and not 0 <= rows.min() <= rows.max() < n_items:
        raise SchemaError(f"seen: item rows must be 0 to {n_items - 1}, found {rows.min()} to {rows.max()}")
    return {"seen_offsets": offsets.astype(np.int64), "seen_rows": rows.astype(np.int64)}


def _check_target(target: Path, overwrite: bool) -> None:
    if target.is_symlink():
        raise BundleError(f"{target} is a symbolic link; give the directory itself")
    if not target.exists():
        return
    if not overwrite:
        raise BundleError(f"{target} exists already; pass overwrite=True to replace it, or another path")
    if not target.is_dir() or not ((target / "manifest.json").is_file() or not any(target.iterdir())):
        raise BundleError(f"{target} is there and is not a bundle; it is not replaced: remove it or give another path")


@contextlib.contextmanager
def _temporary_sibling(target: Path) -> Iterator[Path]:
    building = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        building.chmod(0o777 & ~_umask())  # mkdtemp makes it private, but services run as other users
        yield building
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _encode(content: Any, what: str) -> bytes:
    try:
        return msgspec.json.format(msgspec.json.encode(content), indent=1)
    except (TypeError, msgspec.MsgspecError) as error:
        raise BundleError(f"{what} cannot be written as JSON: {error}") from error


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush(path: Path) -> None:
    """Ask the system to put a file or directory on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_with_engine(building: Path) -> None:
    """The engine is the authority on a plan's validity: load what was written."""
    from fastmtr import _native

    _native.Model(str(building))


def _publish(building: Path, target: Path, overwrite: bool) -> None:
    _check_target(target, overwrite)
    if not target.exists() or not any(target.iterdir()):
        building.rename(target)  # in place of an empty directory, too
    elif _exchange(building, target):
        pass  # the old bundle has the temporary name now, under which it is removed
    else:
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
        target.rename(aside)
        try:
            building.rename(target)
        except BaseException:
            aside.rename(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    _flush(target.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two directories in one step where the system can (Linux's renameat2); False where it cannot."""
    at_working_directory, exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError):
        return False
    return bool(
        renameat2(at_working_directory, os.fsencode(a), at_working_directory, os.fsencode(b), ctypes.c_uint(exchange))
        == 0
    )


def _version() -> str:
    try:
        return package_metadata.version("fastmtr")
    except package_metadata.PackageNotFoundError:
        return "unknown"


# ---- reading ---------------------------------------------------------------------------------------------------------


def open_bundle(path: str | os.PathLike[str], *, verify: bool | None = None) -> Bundle:
    """Open a bundle and check that it is whole.

    Parameters
    ----------
    path : path
    verify : bool, optional
        True: compare the SHA-256 of every file; False: of the JSON files only, and the size of every file. None: True
        for bundles below 256 MB.

    Returns
    -------
    Bundle

    Raises
    ------
    BundleError
        There is no bundle, a file is missing, truncated or altered, or it was written by a newer fastmtr.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise BundleError(
            f"{directory} is not there; expected a bundle's directory"
            if not directory.exists()
            else f"{directory} is a file; expected a bundle's directory"
        )
    manifest = _read_manifest(directory)
    for name in _REQUIRED:
        if name not in manifest.files:
            raise BundleError(f"{directory}: manifest.json does not list {name}, which every bundle has")
    for name in (*_REQUIRED, *_OPTIONAL):
        if name not in manifest.files and os.path.lexists(directory / name):
            raise BundleError(f"{directory}: {name} is there, but manifest.json does not list it; it was added later")
    total = sum(file.bytes for file in manifest.files.values())
    verify_all = total < _VERIFY_ALL_BELOW if verify is None else verify
    texts = {}
    for name, file in manifest.files.items():
        text = _check_file(directory, name, file, verify_all)
        if text is not None:
            texts[name] = text
    try:
        schema = Schema.from_json(texts["schema.json"])
    except SchemaError as error:
        raise BundleError(f"{directory / 'schema.json'}: {error}") from error
    report = _decode(texts["report.json"], object, directory / "report.json") if "report.json" in texts else None
    plan = _decode(texts["plan.json"], dict[str, Any], directory / "plan.json")
    return Bundle(directory, msgspec.to_builtins(manifest), schema, plan, report, texts)


def _read_manifest(directory: Path) -> _Manifest:
    path = directory / "manifest.json"
    if not path.is_file() or path.is_symlink():
        raise BundleError(f"{directory} is not a bundle: it has no manifest.json")
    text = path.read_bytes()
    head = _decode(text, dict[str, Any], path)
    version = head.get("format_version")
    if not isinstance(version, int):
        raise BundleError(f"{path}: format_version must be a whole number, found {version!r}; is this a bundle?")
    if version != FORMAT_VERSION:
        made_by = head.get("fastmtr_version", "unknown")
        raise BundleError(
            f"{directory} has bundle format {version} (written by fastmtr {made_by}); fastmtr {_version()} reads "
            f"format {FORMAT_VERSION}: {'upgrade fastmtr' if version > FORMAT_VERSION else 'write the bundle again'}"
        )
    manifest = _decode(text, _Manifest, path)
    for name in manifest.files:
        if name not in _REQUIRED + _OPTIONAL:
            raise BundleError(f"{path}: lists {name!r}, which is not a file of a bundle")
    return manifest


def _check_file(directory: Path, name: str, expected: _File, verify: bool) -> bytes | None:
    """The text of a JSON file; None for others."""
    path = directory / name
    if path.is_symlink():
        raise BundleError(f"{path} is a symbolic link; a bundle holds its files itself")
    if not path.is_file():
        raise BundleError(f"{path} is missing; the bundle is not complete: copy or write it again")
    size = path.stat().st_size
    if size != expected.bytes:
        how = "truncated" if size < expected.bytes else "altered"
        raise BundleError(f"{path} is {how}: it has {size} bytes, expected {expected.bytes}; copy or write it again")
    is_json = name.endswith(".json")
    text = path.read_bytes() if is_json else None
    if text is not None:
        found = hashlib.sha256(text).hexdigest()
    elif verify:
        found = _sha256(path)
    else:
        return None
    if found != expected.sha256:
        raise BundleError(
            f"{path} is altered: its SHA-256 is {found}, expected {expected.sha256}; copy or write it again"
        )
    return text


def _decode(text: bytes, kind: type[_T], path: Path) -> _T:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as error:
        raise BundleError(f"{path} is damaged: {error}") from error


def _read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from error


def _read_shapes(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Shapes, and bytes of an element; the tensors themselves are not read."""
    try:
        with safe_open(path, "numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(each.get_shape()) for name, each in slices.items()}
            return shapes, {name: _ELEMENT_BYTES[each.get_dtype()] for name, each in slices.items()}
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
