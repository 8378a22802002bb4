"""The feature pipeline: fitted once on training data, saved in the bundle, the same for tables and for one request."""

from __future__ import annotations

import difflib
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from fastmtr import _native
from fastmtr.errors import SchemaError
from fastmtr.features import hashing, values
from fastmtr.features.array_times import Part, clock_part
from fastmtr.features.attributes import Attributes
from fastmtr.features.categories import MISSING, Categories, encode_lists, split_lists
from fastmtr.features.engines import need_numba, numba_is_worth_it
from fastmtr.features.kinds import OPERATORS, is_operator, operation, operator_from_state
from fastmtr.features.made_categories import Buckets, Cross
from fastmtr.features.operators import Operator, clock_of, readers
from fastmtr.features.quality import Statistics, read_statistics
from fastmtr.features.scales import Scale
from fastmtr.graph import Domain, Input, Packed
from fastmtr.schema import Entity, Feature, Schema

if TYPE_CHECKING:
    import pyarrow as pa

    from fastmtr.features.quality import FeatureCheck, Limits
    from fastmtr.features.shards import FeatureFiles

__all__ = ["STATE_VERSION", "FeaturePipeline", "unset_rows"]

STATE_VERSION = 2

# What version 1 was; it is read where nothing is hashed.
_BEFORE = (1, "fnv1a64-fmix64")

Encoder = Categories | Attributes | Scale | Operator

_ENTITIES: dict[Domain, tuple[Entity, ...]] = {
    "request": ("user", "context"),
    "item": ("item",),
    "candidate": ("candidate",),
}


class FeaturePipeline:
    """Turns raw columns into the packed inputs of a model.

    What it learns is independent of the order of the rows, and of how they are cut into batches. Rules for values:

    * A category is a whole number, a boolean or text. Null (None, NaN) is row 0, one that was not seen often enough row
      1.
    * A number that is null becomes the fitted mean, or an error (``nulls = "error"``); see
      :class:`fastmtr.schema.Feature` for values out of range.
    * A ``multi`` drops nulls and repeats, a ``sequence`` drops nulls; both keep the first ``length`` values.
    * A value of the wrong kind (text for a number) is an error in both :meth:`transform` and :meth:`transform_row`.

    Parameters
    ----------
    schema : Schema

    Attributes
    ----------
    statistics : dict of feature to Statistics
        What the fitted rows were like, for :meth:`check`; empty of bundles of earlier releases.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self._encoders: dict[str, Encoder] = {}
        self._native: _native.Features | None = None
        # What engine="cupy" copied to devices.
        self.uploads: dict[Any, Any] = {}
        self.statistics: dict[str, Statistics] = {}

    def __repr__(self) -> str:
        fitted = "fitted" if self._encoders else "not fitted"
        return f"FeaturePipeline({len(self.schema.features)} features, {fitted})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a FeaturePipeline is not pickled: a pickle runs code when it is read, and is bound to one release. Save "
            "state() (JSON and arrays) or a bundle, and read it with from_state()"
        )

    # ------------------------------------------------------------------ fitting

    def fit(
        self,
        *,
        users: Any | None = None,
        items: Any | None = None,
        interactions: Any | None = None,
        threads: int = 1,
        progress: bool = False,
    ) -> FeaturePipeline:
        """Learn vocabularies and scales.

        Each source is read once, batch by batch, and may be larger than memory: a table, a path of Parquet files, an
        Arrow dataset or stream, an iterator of tables (see :func:`fastmtr.features.batches.open_source`). How they are
        cut, and the order of the rows, does not matter.

        Parameters
        ----------
        users, items : table or source, optional
            One row an entity. If `interactions` has the key column, a row counts as often as its key occurs there; so a
            user or item that never occurs teaches nothing.
        interactions : table or source, optional
            One row an event. Features of context and candidate, statistics of the past, and whatever column the other
            two tables lack are taken from here; so are the labels that a ``target`` learns from, in columns of the
            tasks' names. What is learned of both (labels, or the timestamp, and a user's or an item's column) is joined
            by the keys, for which the other table is read once more.
        threads : int
            Features that are learned from at once.
        progress : bool
            Show how far it is.

        Raises
        ------
        SchemaError
            A feature's column is nowhere, or holds values of the wrong kind.
        """
        from fastmtr.features.fitting import fit_encoders

        self._encoders, self.statistics = fit_encoders(
            self, users=users, items=items, interactions=interactions, threads=threads, progress=progress
        )
        self._native = None
        self.uploads = {}
        return self

    # ------------------------------------------------------------------ what the model sees

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Where each feature stands in the packed matrices; known after :meth:`fit`."""
        found: list[Input] = []
        for domain in _ENTITIES:
            offsets = {"ids": 0, "dense": 0}
            for feature in self.features(domain):
                width = self._width(feature)
                if feature.is_dense:
                    found.append(Input(feature.name, domain, "dense", offsets["dense"], width))
                    offsets["dense"] += width
                    continue
                padding = None if feature.kind == "categorical" else MISSING
                rows = self._rows(feature)
                found.append(Input(feature.name, domain, "ids", offsets["ids"], width, rows=rows, padding=padding))
                offsets["ids"] += width
        return tuple(found)

    def features(self, domain: Domain) -> tuple[Feature, ...]:
        """The features of a domain in the order in which they are packed."""
        return self.schema.of_entity(*_ENTITIES[domain])

    # ------------------------------------------------------------------ tables

    def transform(
        self,
        domain: Domain,
        table: Any,
        *,
        missing: Literal["error", "null"] = "error",
        engine: Literal["auto", "numba", "arrays", "cupy"] = "auto",
        threads: int = 1,
    ) -> Packed:
        """Pack the rows of a table.

        Parameters
        ----------
        domain : {"request", "item", "candidate"}
        table : table
            The raw column of each feature; others are ignored. Whatever :func:`fastmtr.tables.read_table` takes: Arrow,
            pandas, Polars, a mapping of columns, a file.
        missing : {"error", "null"}
            What a feature without a column does: raise, or count as null.
        engine : {"auto", "numba", "arrays", "cupy"}
            What goes through the rows; the bits are the same. "auto": Numba, if it is there (``pip install
            'fastmtr[features]'``) and either the table is large or :func:`fastmtr.features.warm_up` was called.
            "cupy": a GPU, where the result then is; the table may have columns there.
        threads : int
            Of Numba; of arrays, features that are packed at once.

        Returns
        -------
        Packed
            Matrices of their own, C-contiguous: training and engine take them as they are. With "cupy" they are
            CuPy's.

        Raises
        ------
        SchemaError
            A column is missing, or holds values that its feature refuses.
        BackendError
            The engine that was asked for is not there: no Numba, no CuPy, or no GPU.
        """
        if engine == "cupy":
            from fastmtr.features import cupy_kernels, device_batch

            return device_batch.transform(self, domain, table, missing=missing, xp=cupy_kernels.namespace())
        from fastmtr.tables import read_table

        given = read_table(table)
        places = {i.name: i for i in self.inputs if i.domain == domain}
        packed = unset_rows(places.values(), given.num_rows)
        packed_already: Container[str] = ()
        if engine == "numba":
            need_numba()
        if engine == "numba" or (engine == "auto" and numba_is_worth_it(given.num_rows)):
            from fastmtr.features.numba_batch import fill

            packed_already = fill(self, given, into=packed, places=places, threads=threads)
        left = [feature for feature in self.features(domain) if feature.name not in packed_already]

        def pack(feature: Feature) -> None:
            at = places[feature.name]
            into = getattr(packed, at.kind)[:, at.offset : at.offset + at.width]
            blocks = self.transform_blocks((feature,), given, missing=missing)
            into[:] = blocks.get(feature.name, self.null(feature))

        with ThreadPoolExecutor(threads) if threads > 1 else nullcontext() as pool:
            for _ in (map if pool is None else pool.map)(pack, left):
                pass
        return packed

    def fit_transform(self, domain: Domain, table: Any, *, threads: int = 1) -> Packed:
        """Fit on one table that has all columns, and pack its rows for a domain."""
        return self.fit(interactions=table, threads=threads).transform(domain, table, threads=threads)

    def get_feature_names_out(self, domain: Domain) -> tuple[list[str], list[str]]:
        """What the columns of the packed ids and of the packed numbers are called, as in scikit-learn.

        Returns
        -------
        ids, dense : list of str
            The feature's name; with ``_0``, ``_1``, ... where it has several columns.
        """
        names: dict[str, list[str]] = {"ids": [], "dense": []}
        for each in self.inputs:
            if each.domain == domain:
                several = [f"{each.name}_{i}" for i in range(each.width)]
                names[each.kind] += several if each.width > 1 else [each.name]
        return names["ids"], names["dense"]

    def transform_to(
        self,
        path: str | os.PathLike[str],
        *,
        source: Any,
        domains: Sequence[Domain] | None = None,
        keep: Sequence[str] = (),
        missing: Literal["error", "null"] = "error",
        batch_rows: int | None = None,
        progress: bool = False,
        overwrite: bool = False,
    ) -> FeatureFiles:
        """Pack data larger than memory into a folder of files that are mapped when they are read.

        A run that was stopped goes on when it is called again. See :func:`fastmtr.features.streaming.transform_to`,
        and :func:`fastmtr.features.read_features` for reading.
        """
        from fastmtr.features.batches import BATCH_ROWS
        from fastmtr.features.streaming import transform_to

        return transform_to(
            self,
            path,
            source=source,
            domains=domains,
            keep=keep,
            missing=missing,
            batch_rows=BATCH_ROWS if batch_rows is None else batch_rows,
            progress=progress,
            overwrite=overwrite,
        )

    def check(
        self, source: Any, *, limits: Limits | None = None, threads: int = 1, progress: bool = False
    ) -> FeatureCheck:
        """Whether rows look like those that the features were fitted on: nulls, unseen values, range, distribution.

        Parameters
        ----------
        source : table or source
            One row a request or sample, as the model meets them; see :func:`fastmtr.features.batches.open_source`.
        limits : Limits, optional
            From where on a column is not as it was.
        threads : int
        progress : bool
            Show how far it is.

        Returns
        -------
        FeatureCheck
            Its ``verdict``, ``columns`` and ``table()``; :func:`fastmtr.evaluation.html.render_check` draws it.

        Raises
        ------
        SchemaError
            The pipeline keeps no statistics (a bundle of an earlier release), or a column holds values of the wrong
            kind.
        """
        from fastmtr.features.fitting import check_source

        return check_source(self, source, limits=limits, threads=threads, progress=progress)

    def transform_blocks(
        self, features: Iterable[Feature], table: pa.Table, *, missing: Literal["error", "null"] = "error"
    ) -> dict[str, NDArray[Any]]:
        """The blocks of some features by name, for :meth:`assemble`."""
        blocks = {}
        for feature in features:
            if self.has_column(feature, table.column_names):
                blocks[feature.name] = self._encode(feature, table)
            elif missing == "error":
                raise SchemaError(f"the table has no column for feature {feature.name!r}; it has {table.column_names}")
        return blocks

    def _encode(self, feature: Feature, table: pa.Table) -> NDArray[Any]:
        """The ids (int32) or numbers (float32) of one feature, shape (n, width)."""
        encoder = self._encoder(feature)
        if isinstance(encoder, OPERATORS):
            return encoder.encode([r.of_column(table.column(r.column)) for r in readers(feature, self.schema)])
        column = self.column(feature, table)
        if isinstance(encoder, Scale):
            return encoder.encode(values.number_column(column, name=feature.column))
        if feature.kind == "categorical":
            assert isinstance(encoder, Categories)
            return encoder.encode_hashes(column)
        assert isinstance(encoder, Categories | Attributes)
        return _encode_many(feature, encoder, column)

    def assemble(self, domain: Domain, blocks: Mapping[str, NDArray[Any]], *, n_rows: int) -> Packed:
        """Put blocks of :meth:`transform_blocks` side by side; a feature without a block counts as null."""
        inputs = [each for each in self.inputs if each.domain == domain]
        packed = unset_rows(inputs, n_rows)
        for each in inputs:
            block = blocks.get(each.name, self.null(self.schema.feature(each.name)))
            getattr(packed, each.kind)[:, each.offset : each.offset + each.width] = block
        return packed

    def has_column(self, feature: Feature, names: Container[str]) -> bool:
        """Whether a table with these columns has the feature's, or what it is derived from."""
        if is_operator(feature):
            return all(column in names for column in self.columns_read(feature))
        return feature.column in names or (feature.derive is not None and self.schema.timestamp in names)

    def columns_read(self, feature: Feature) -> tuple[str, ...]:
        """The columns of a table that hold a feature: its own, and those of an operator."""
        if is_operator(feature):
            return tuple(reader.column for reader in readers(feature, self.schema))
        return (feature.column,)

    def raw_columns(self, domain: Domain) -> tuple[str, ...]:
        """The columns that :meth:`transform` reads for the features that the log does not make."""
        found: dict[str, None] = {}
        for feature in self.features(domain):
            if not self.schema.is_from_log(feature):
                found |= dict.fromkeys(self.schema.columns_of(feature))
                found |= {str(self.schema.timestamp): None} if self.schema.reads_clock(feature) else {}
        return tuple(found)

    def column(self, feature: Feature, table: pa.Table) -> pa.ChunkedArray:
        """The raw values of a feature of one column, derived ones included; see :meth:`has_column`."""
        if feature.column in table.column_names:
            return table.column(feature.column)
        import pyarrow as pa

        clock = str(self.schema.timestamp)
        ticks = values.ticks_column(table.column(clock), name=clock, unit=self.schema.timestamp_unit)
        absent = ticks.is_null().to_numpy(zero_copy_only=False)
        derived = self._derive(feature, ticks.fill_null(0).to_numpy(zero_copy_only=False))
        return pa.chunked_array([pa.array(derived, pa.int64(), mask=absent)])

    # ------------------------------------------------------------------ one row

    def transform_row(self, domain: Domain, row: Mapping[str, Any], *, base: Packed | None = None) -> Packed:
        """Pack one row, by the engine: the ids and bits of :meth:`transform` of a table of that row. Needs no pyarrow.

        Parameters
        ----------
        domain : {"request", "item", "candidate"}
        row : mapping
            Raw values by column. The key and timestamp columns of the schema may be there too.
        base : Packed, optional
            One packed row that gives the features that `row` does not name (a known user, whose context is new).
            Without it they count as null.

        Raises
        ------
        SchemaError
            A name is no feature of this domain (a likely spelling is suggested), or a value is of the wrong kind.
        """
        try:
            return Packed(*self.native.encode(domain, row if type(row) is dict else dict(row), base))
        except KeyError as error:
            self._refuse_stranger(domain, error.args[0])

    @property
    def native(self) -> _native.Features:
        """The engine's program of these features."""
        if self._native is None:
            state, arrays = self.state()
            self._native = _native.Features(msgspec.json.encode(state | {"statistics": {}}), arrays)
        return self._native

    def _refuse_stranger(self, domain: Domain, name: Any) -> NoReturn:
        names = list(self.raw_columns(domain)) + [f.column for f in self.features(domain) if f.from_log]
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"they are {names}"
        raise SchemaError(f"{name!r} is no feature of the {domain}; {hint}")

    # ------------------------------------------------------------------ state

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Everything learned: what JSON can hold, and arrays for safetensors. Equal data give equal state."""
        heads: dict[str, Any] = {}
        arrays: dict[str, NDArray[Any]] = {}
        for name, encoder in self._encoders.items():
            heads[name], parts = encoder.state()
            arrays |= {f"{name}/{part}": array for part, array in parts.items()}
        return {
            "version": STATE_VERSION,
            "hash": hashing.HASH_NAME,
            **self._program(),
            "features": heads,
            "statistics": msgspec.to_builtins(self.statistics),
        }, arrays

    def _program(self) -> dict[str, Any]:
        """What each feature does, for the engine, which does not read the schema: see docs/features.md."""
        clock = clock_of(self.schema)
        program = []
        for each in self.inputs if self._encoders else ():
            feature = self.schema.feature(each.name)
            shared = feature.kind == "sequence" and not feature.lookup
            entry = {
                "name": feature.name,
                "op": operation(feature),
                "state": feature.of if shared else feature.name,
                "domain": each.domain,
                "kind": each.kind,
                "offset": each.offset,
                "width": each.width,
                "columns": list(self.schema.columns_of(feature) or self._own_column(feature)),
            }
            if feature.kind in ("multi", "sequence", "text"):
                entry |= {"keep": feature.keep, "as_set": feature.kind == "multi"}
            if feature.kind == "multi":
                entry["separator"] = feature.separator
            if feature.kind == "text":
                entry["ngrams"] = feature.ngrams
            if feature.derive is not None:
                entry["derive"] = feature.derive.removesuffix("_cycle")
            program.append(entry)
        return {
            "clock": {
                "column": self.schema.timestamp,
                "ticks_per_second": clock.ticks_per_second,
                "offset_seconds": clock.offset,
            },
            "keys": {"user": self.schema.user, "item": self.schema.item},
            "program": program,
        }

    def _own_column(self, feature: Feature) -> tuple[str, ...]:
        """Of a feature of the clock: the column that may be given in its place."""
        return () if is_operator(feature) else (feature.column,)

    @classmethod
    def from_state(
        cls, schema: Schema, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> FeaturePipeline:
        """Read what :meth:`state` wrote.

        Raises
        ------
        SchemaError
            The state is of another version or hash, does not cover the schema's features, or was altered.
        """
        heads = state.get("features", {})
        if not isinstance(heads, Mapping):
            raise SchemaError(f"the pipeline's state is damaged: its features are {type(heads).__name__}, not by name")
        found = (state.get("version"), state.get("hash"))
        if found == _BEFORE and any(isinstance(h, Mapping) and h.get("hash_rows") for h in heads.values()):
            raise SchemaError(
                f"the pipeline's state is of an earlier release, whose hash ({found[1]}) gave other rows than "
                f"{hashing.HASH_NAME}; train the model again, with features that are fitted again"
            )
        if found not in ((STATE_VERSION, hashing.HASH_NAME), _BEFORE):
            raise SchemaError(
                f"the pipeline's state is {found}, this fastmtr reads {(STATE_VERSION, hashing.HASH_NAME)}"
            )
        pipeline = cls(schema)
        pipeline.statistics = read_statistics(state.get("statistics", {}))
        for feature in schema.features:
            if feature.kind == "sequence" and not feature.lookup:
                continue
            head = heads.get(feature.name)
            if not isinstance(head, Mapping):
                raise SchemaError(f"the pipeline's state has nothing for feature {feature.name!r}")
            prefix = f"{feature.name}/"
            parts = {key[len(prefix) :]: array for key, array in arrays.items() if key.startswith(prefix)}
            found_operator = operator_from_state(feature, schema, head, parts)
            kind = Scale if feature.kind == "numeric" else Categories
            pipeline._encoders[feature.name] = found_operator or kind.from_state(feature, head, parts)
        if found != _BEFORE and any(state.get(key) != part for key, part in pipeline._program().items()):
            raise SchemaError("the pipeline's state is damaged: its program is not that of the schema's features")
        return pipeline

    # ------------------------------------------------------------------ small parts

    def encoder(self, name: str) -> Encoder:
        """What was learned of a feature."""
        return self._encoder(self.schema.feature(name))

    def _encoder(self, feature: Feature) -> Encoder:
        shared = feature.kind == "sequence" and not feature.lookup
        try:
            return self._encoders[str(feature.of) if shared else feature.name]
        except KeyError:
            raise SchemaError("the feature pipeline is not fitted yet; call fit first") from None

    def _rows(self, feature: Feature) -> int:
        encoder = self._encoder(feature)
        assert isinstance(encoder, Buckets | Categories | Attributes | Cross)
        return encoder.rows

    def _width(self, feature: Feature) -> int:
        if feature.kind in ("multi", "sequence", "text"):
            return feature.length
        encoder = self._encoder(feature)
        if isinstance(encoder, Categories):
            return encoder.hashes
        assert isinstance(encoder, (*OPERATORS, Scale))
        return encoder.width

    def null(self, feature: Feature) -> Any:
        """What a feature without a column becomes, shape (width,) or a number."""
        encoder = self._encoder(feature)
        return encoder.null() if isinstance(encoder, (*OPERATORS, Scale)) else np.int32(MISSING)

    def _derive(self, feature: Feature, ticks: NDArray[np.int64]) -> NDArray[np.int64]:
        assert feature.derive in get_args(Part)
        return clock_part(ticks, feature.derive, clock_of(self.schema))  # type: ignore[arg-type, no-any-return]


def unset_rows(inputs: Iterable[Input], n_rows: int, *, xp: Any = np) -> Packed:
    """Room for so many rows of a domain, of arrays of a namespace like NumPy's."""
    widths = {"ids": 0, "dense": 0}
    for each in inputs:
        widths[each.kind] += each.width
    return Packed(xp.empty((n_rows, widths["ids"]), np.int32), xp.empty((n_rows, widths["dense"]), np.float32))


def _encode_many(
    feature: Feature, encoder: Categories | Attributes, column: pa.Array | pa.ChunkedArray
) -> NDArray[np.int32]:
    parts, parents, take = split_lists(feature, column, encoder.type)
    n_rows = len(column) if take is None else int(take.max(initial=-1)) + 1
    keys = encoder.keys if isinstance(encoder, Attributes) else encoder
    _, parts = values.category_column(parts, name=keys.name, expected=keys.type)  # NaN is null
    if parts.null_count:  # nulls are left out, whatever the rule of the feature whose vocabulary it is
        parents = parents[parts.is_valid().to_numpy(zero_copy_only=False)]
        parts = parts.drop_null()
    block = encode_lists(
        encoder.encode(parts),
        parents,
        n_rows,
        length=feature.length,
        as_set=feature.kind == "multi",
        keep_last=feature.keep == "last",
    )
    if take is None:
        return block
    with_null = np.vstack([block, np.full((1, feature.length), MISSING, np.int32)])
    result: NDArray[np.int32] = with_null[take]
    return result
