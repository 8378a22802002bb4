"""Packed features on disk: a folder of safetensors files that are mapped, not read.

``index.json`` says what the folder holds and how far it is; ``part-000000.safetensors``, ``part-000001.safetensors``
and so on hold ``batch_rows`` rows each, the last one the rest. A part's tensors are ``DOMAIN/ids`` (int32 [rows,
width]) and ``DOMAIN/dense`` (float32 [rows, width]) of each domain, and ``column/NAME`` of each column that was kept.

A file is written under a temporary name, flushed to the disk and renamed, first the part, then ``index.json``. So a
part under its final name is whole, and a run that is killed loses at most the part it was at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from fastmtr.errors import SchemaError
from fastmtr.graph import Domain, Packed

__all__ = ["FeatureBatch", "FeatureFiles", "Job", "ShardWriter", "read_features"]

FORMAT_VERSION = 1

_HEAD = "index.json"
_PARTIAL = ".partial"
_DTYPES = {"I32": np.int32, "F32": np.float32, "I64": np.int64, "F64": np.float64}


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a folder of features was, or is to be, made of and with; a run goes on only with the same job.

    Parameters
    ----------
    pipeline : str
        SHA-256 of the schema and the pipeline's state.
    source : str, optional
        The identity of the input; None: only its rows can tell.
    source_rows : int, optional
    domains : tuple of str
    columns : tuple of str
        Kept from the input.
    batch_rows : int
    missing : {"error", "null"}
    """

    pipeline: str
    source: str | None
    source_rows: int | None
    domains: tuple[Domain, ...]
    columns: tuple[str, ...]
    batch_rows: int
    missing: str


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    """The content of ``index.json``."""

    format_version: int
    job: Job
    parts: int = 0
    rows: int = 0
    complete: bool = False


class FeatureBatch(NamedTuple):
    """The rows of one part.

    Attributes
    ----------
    start : int
        The number of its first row.
    packed : dict of domain to Packed
        Mapped from the file: private to the process, so writing to them changes no file.
    columns : dict of str to ndarray
        Those that were kept.
    """

    start: int
    packed: dict[Domain, Packed]
    columns: dict[str, NDArray[Any]]


class FeatureFiles:
    """The batches of a finished folder, to be iterated over as often as wanted. Made by :func:`read_features`.

    Attributes
    ----------
    path : Path
    job : Job
    n_rows : int
    """

    def __init__(self, path: Path, head: _Head) -> None:
        self.path, self.job, self.n_rows = path, head.job, head.rows
        self._parts = head.parts

    def __len__(self) -> int:
        return self._parts

    def __iter__(self) -> Iterator[FeatureBatch]:
        return map(self.batch, range(self._parts))

    def __repr__(self) -> str:
        return f"FeatureFiles({str(self.path)!r}, {self.n_rows:,} rows of {', '.join(self.job.domains)})"

    def batch(self, part: int) -> FeatureBatch:
        """The batch of that number, mapped from its file.

        Raises
        ------
        SchemaError
            The file is missing or damaged.
        """
        if not 0 <= part < self._parts:
            raise SchemaError(f"{self.path} has batches 0 to {self._parts - 1}, found {part}")
        file = self.path / _part_name(part)
        tensors = _mapped(file)
        start = part * self.job.batch_rows
        expected = min(self.job.batch_rows, self.n_rows - start)
        try:
            packed = {d: Packed(tensors[f"{d}/ids"], tensors[f"{d}/dense"]) for d in self.job.domains}
            columns = {name: tensors[f"column/{name}"] for name in self.job.columns}
        except KeyError as error:
            raise SchemaError(f"{file} is damaged: it lacks the tensor {error}; transform again") from error
        kinds = {"ids": (2, np.int32), "dense": (2, np.float32)}
        for name, tensor in tensors.items():
            fits = (tensor.ndim, tensor.dtype) == kinds.get(name.rpartition("/")[2], (1, tensor.dtype))
            if (not name.startswith("column/") and not fits) or tensor.shape[:1] != (expected,):
                raise SchemaError(
                    f"{file} is damaged: {name!r} should hold {expected} rows, found {tensor.dtype} of shape "
                    f"{tensor.shape}; transform again"
                )
        return FeatureBatch(start, packed, columns)


def read_features(path: str | os.PathLike[str]) -> FeatureFiles:
    """Open what :meth:`fastmtr.features.FeaturePipeline.transform_to` wrote.

    Parameters
    ----------
    path : path
        The folder.

    Returns
    -------
    FeatureFiles
        Iterating over it gives a :class:`FeatureBatch` a part: matrices mapped from the files, as the engine and torch
        take them without a copy.

    Raises
    ------
    SchemaError
        The folder is not complete, of another version, or holds something else.
    FileNotFoundError
        There is no such folder.
    """
    folder = Path(path)
    head = _read_head(folder)
    if head is None:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} does not exist")
        raise SchemaError(f"{folder} holds no features: it has no {_HEAD}")
    if not head.complete:
        raise SchemaError(
            f"{folder} is not complete: {head.rows:,} rows were written, then the run was stopped; run it again with "
            "the same arguments to go on"
        )
    return FeatureFiles(folder, head)


class ShardWriter:
    """Writes the parts of a folder one by one.

    Parameters
    ----------
    path : path
        Made if it is not there.
    job : Job
    overwrite : bool
        Begin anew where the folder holds features already.

    Attributes
    ----------
    parts, rows : int
        Written so far, by an earlier run too.
    complete : bool

    Raises
    ------
    SchemaError
        The folder holds something else, or features of another job.
    """

    def __init__(self, path: str | os.PathLike[str], job: Job, *, overwrite: bool = False) -> None:
        self.path = Path(path)
        found = _read_head(self.path)
        if found is None and self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise SchemaError(f"{self.path} is there and holds no features; remove it or give another path")
        self.path.mkdir(parents=True, exist_ok=True)
        if found is not None and found.job != job and not overwrite:
            raise SchemaError(
                f"{self.path} holds features of another run, which differs in {_difference(found.job, job)}; give "
                "another path, or overwrite it"
            )
        self._head = found if found is not None and not overwrite else _Head(format_version=FORMAT_VERSION, job=job)
        if not self.complete:
            # The old head goes first, so that no old part is ever taken for a new one.
            self._write_head()
            keep = {_part_name(part) for part in range(self.parts)}
            for file in self.path.glob("*part-*"):
                if file.name not in keep:
                    file.unlink()

    @property
    def parts(self) -> int:
        return self._head.parts

    @property
    def rows(self) -> int:
        return self._head.rows

    @property
    def complete(self) -> bool:
        return self._head.complete

    def write(self, packed: Mapping[Domain, Packed], columns: Mapping[str, NDArray[Any]], *, rows: int) -> None:
        """Write the next part."""
        _write(self.path / _part_name(self.parts), _content(packed, columns))
        self._head = msgspec.structs.replace(self._head, parts=self.parts + 1, rows=self.rows + rows)
        self._write_head()

    def check_last(self, packed: Mapping[Domain, Packed], columns: Mapping[str, NDArray[Any]]) -> None:
        """Compare the last part with what the same rows give now; SchemaError if they differ."""
        file = self.path / _part_name(self.parts - 1)
        if not file.is_file() or file.read_bytes() != _content(packed, columns):
            raise SchemaError(
                f"{file} is not what these rows give now: the input is another one, or the file was altered; give "
                "another path, or overwrite it"
            )

    def finish(self) -> FeatureFiles:
        """Say that nothing is missing."""
        if not self.complete:
            self._head = msgspec.structs.replace(self._head, complete=True)
            self._write_head()
        return FeatureFiles(self.path, self._head)

    def _write_head(self) -> None:
        _write(self.path / _HEAD, msgspec.json.format(msgspec.json.encode(self._head), indent=1))


def _content(packed: Mapping[Domain, Packed], columns: Mapping[str, NDArray[Any]]) -> bytes:
    tensors: dict[str, NDArray[Any]] = {}
    for domain, (ids, dense) in packed.items():
        tensors[f"{domain}/ids"], tensors[f"{domain}/dense"] = ids, dense
    tensors |= {f"column/{name}": column for name, column in columns.items()}
    return save({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)})


def _write(path: Path, content: bytes) -> None:
    """Write a file that is whole under its name, or not there."""
    temporary = path.with_name(f".{path.name}{_PARTIAL}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _part_name(part: int) -> str:
    return f"part-{part:06d}.safetensors"


def _read_head(folder: Path) -> _Head | None:
    path = folder / _HEAD
    if not path.is_file():
        return None
    try:
        head = msgspec.json.decode(path.read_bytes(), type=_Head)
    except msgspec.DecodeError as error:
        raise SchemaError(f"{path} is damaged or no description of packed features: {error}") from error
    if head.format_version != FORMAT_VERSION:
        raise SchemaError(f"{path} is of version {head.format_version}, this fastmtr reads {FORMAT_VERSION}")
    if min(head.parts, head.rows, head.job.batch_rows - 1) < 0 or head.parts != -(-head.rows // head.job.batch_rows):
        raise SchemaError(f"{path} is damaged: {head.parts} parts of {head.job.batch_rows} make no {head.rows} rows")
    if set(head.job.domains) - set(get_args(Domain)):
        raise SchemaError(f"{path} is damaged: it names the domains {head.job.domains}")
    return head


def _difference(old: Job, new: Job) -> str:
    words = {
        "pipeline": "the fitted features",
        "source": "the input files",
        "source_rows": "the number of input rows",
    }
    return ", ".join(
        words.get(name, f"{name} ({getattr(old, name)} there, {getattr(new, name)} now)")
        for name in Job.__struct_fields__
        if getattr(old, name) != getattr(new, name)
    )


class _Tensor(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def _mapped(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a safetensors file as views of a private mapping."""
    if not path.is_file():
        raise SchemaError(f"{path} is missing; transform again")
    size = path.stat().st_size
    content = np.memmap(path, np.uint8, mode="c") if size else np.zeros(0, np.uint8)
    head_size = int.from_bytes(content[:8].tobytes(), "little")
    if size < 8 or head_size > size - 8:
        raise SchemaError(f"{path} is damaged: it has {size} bytes and its header should have {head_size}")
    try:
        heads = msgspec.json.decode(content[8 : 8 + head_size].tobytes(), type=dict[str, _Tensor])
    except msgspec.DecodeError as error:
        raise SchemaError(f"{path} is damaged: {error}") from error
    data = content[8 + head_size :]
    tensors = {}
    for name, head in heads.items():
        start, end = head.data_offsets
        dtype = _DTYPES.get(head.dtype)
        if dtype is None or not 0 <= start <= end <= len(data) or min(head.shape, default=0) < 0:
            raise SchemaError(f"{path} is damaged: tensor {name!r} is {head}")
        expected = int(np.prod(head.shape, dtype=object)) * np.dtype(dtype).itemsize
        if end - start != expected:
            raise SchemaError(f"{path} is damaged: tensor {name!r} has {end - start} bytes, expected {expected}")
        tensors[name] = np.asarray(data[start:end].view(dtype)).reshape(head.shape)
    return tensors
