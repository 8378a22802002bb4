"""fastmtr.features.{batches,shards,streaming}: the same rows however they come, and output that survives a kill."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from itertools import pairwise

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from stopped_run import SCHEMA, N, pack_and_die, raw

from fastmtr.errors import SchemaError
from fastmtr.features import FeaturePipeline
from fastmtr.features.batches import open_source, read_batches
from fastmtr.features.shards import read_features
from fastmtr.features.streaming import transform_to


@pytest.fixture(scope="module")
def table():
    return raw()


@pytest.fixture(scope="module")
def pipeline(table):
    return FeaturePipeline(SCHEMA).fit(interactions=table)


def write_parquet(table, folder, *, cuts=(0, 300, 310, 1000), group=70):
    folder.mkdir()
    for i, (a, b) in enumerate(pairwise(cuts)):
        pq.write_table(table.slice(a, b - a), folder / f"{i}.parquet", row_group_size=group)
    return folder


def sources(table, folder):
    """The same rows in every way that is taken."""
    batches = table.to_batches(max_chunksize=77)
    return {
        "folder": folder,
        "dataset": ds.dataset(folder),
        "reader": pa.RecordBatchReader.from_batches(table.schema, batches),
        "iterator": iter(batches),
        "list": [table.slice(0, 1), table.slice(1, 0), table.slice(1)],
        "function": lambda: (t.to_pandas() for t in [table.slice(0, 600), table.slice(600)]),
        "table": table,
        "pandas": table.to_pandas(),
    }


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


# ---- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "rows"), [(0, 128), (128, 128), (650, 1000), (1000, 10), (0, 1)])
def test_batches_are_the_same_rows_however_they_come(table, tmp_path, start, rows):
    folder = write_parquet(table, tmp_path / "data")
    for name, source in sources(table, folder).items():
        opened = open_source(source)
        assert opened.n_rows in (N, None), name
        found = list(read_batches(opened, columns=["item", "city", "absent"], batch_rows=rows, start=start))
        assert [t.num_rows for t in found[:-1]] == [rows] * (len(found) - 1), name
        assert sum(t.num_rows for t in found) == N - start, name
        if found:
            joined = pa.concat_tables(found, promote_options="permissive")
            assert set(joined.column_names) == {"item", "city"}, name
            for column in joined.column_names:
                assert joined.column(column).to_pylist() == table.column(column).slice(start).to_pylist(), name


def test_only_what_can_be_read_again_is_read_again(table, tmp_path):
    folder = write_parquet(table, tmp_path / "data")
    once = {"reader", "iterator"}
    for name, source in sources(table, folder).items():
        opened = open_source(source)
        assert opened.again == (name not in once)
        list(read_batches(opened))
        if name in once:
            with pytest.raises(SchemaError, match="an iterator can be read once; give a path"):
                list(read_batches(opened))
        else:
            assert sum(t.num_rows for t in read_batches(opened)) == N


def test_datasets_keep_their_filter_and_their_partitions(table, tmp_path):
    folder = write_parquet(table, tmp_path / "data")
    chosen = table.filter(pa.compute.field("click") == 1)
    found = pa.concat_tables(read_batches(open_source(ds.dataset(folder).filter(pa.compute.field("click") == 1))))
    assert found.column("item").to_pylist() == chosen.column("item").to_pylist()
    parts = tmp_path / "parts"
    ds.write_dataset(table, parts, format="parquet", partitioning=["click"], partitioning_flavor="hive")
    source = open_source(ds.dataset(parts, partitioning="hive"))
    found = pa.concat_tables(read_batches(source, columns=["click", "item"]))
    assert found.num_rows == N
    counts = found.group_by("click").aggregate([("item", "sum")]).sort_by("click")
    assert counts.to_pydict() == table.group_by("click").aggregate([("item", "sum")]).sort_by("click").to_pydict()


def test_files_have_an_identity(table, tmp_path):
    one = open_source(write_parquet(table, tmp_path / "one"))
    same = open_source(write_parquet(table, tmp_path / "two"))
    other = open_source(write_parquet(raw(1), tmp_path / "three"))
    assert one.identity == same.identity != other.identity
    cut = open_source(write_parquet(table, tmp_path / "four", cuts=(0, 1000)))
    assert cut.identity != one.identity
    assert open_source(table).identity is None


def test_what_cannot_be_read_is_told(table, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_source(tmp_path / "absent.parquet")
    with pytest.raises(SchemaError, match=r"holds no \.parquet file"):
        open_source(tmp_path)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(SchemaError, match="cannot be read"):
        open_source(tmp_path / "bad.parquet")
    folder = write_parquet(table, tmp_path / "mixed")
    pq.write_table(table.select(["city"]), folder / "z.parquet")
    with pytest.raises(
        SchemaError, match=r"the file z\.parquet should have the columns \['user', .*\], found \['city'\]"
    ):
        open_source(folder)
    for tables, message in {
        "columns": ([table, table.select(["city"])], "a table of the stream should have the columns"),
        # Arrow would round these keys.
        "keys": (
            [{"a": [2**53 + 1]}, {"a": [0.5]}],
            "whole numbers in the column 'a' as those before it, found floats",
        ),
        "text": ([{"a": ["x"]}, {"a": pa.nulls(1)}, {"a": [1]}], "text in the column 'a' .* found whole numbers"),
        "lists": ([{"a": [["x"]]}, {"a": [[1]]}], "lists of text in the column 'a' .* found lists of whole numbers"),
        "times": ([{"a": [True]}, {"a": [1]}], "bool in the column 'a' .* found whole numbers"),
    }.values():
        for batch_rows in (1, 100):
            with pytest.raises(SchemaError, match=message):
                list(read_batches(open_source(tables), batch_rows=batch_rows))
    same = [{"a": pa.nulls(1), "b": pa.array([1], pa.int8())}, {"a": ["x"], "b": [2**60 + 1]}]
    for batch_rows in (1, 100):
        found = pa.concat_tables(read_batches(open_source(same), batch_rows=batch_rows), promote_options="permissive")
        assert found.to_pydict() == {"a": [None, "x"], "b": [1, 2**60 + 1]}
    with pytest.raises(SchemaError, match="cannot read a table"):
        open_source(3)


# ---- fitting ---------------------------------------------------------------------------------------------------------


def saved(pipeline):
    head, arrays = pipeline.state()
    return msgspec.json.encode(head, order="sorted"), {name: array.tobytes() for name, array in arrays.items()}


def test_every_source_teaches_the_same(table, pipeline, tmp_path):
    folder = write_parquet(table, tmp_path / "data")
    for name, source in sources(table, folder).items():
        assert saved(FeaturePipeline(SCHEMA).fit(interactions=source)) == saved(pipeline), name
    for seed in range(3):
        shuffled = table.take(np.random.default_rng(seed).permutation(N))
        pieces = [shuffled.slice(a, 1 + seed * 50) for a in range(0, N, 1 + seed * 50)]
        assert saved(FeaturePipeline(SCHEMA).fit(interactions=iter(pieces), threads=2)) == saved(pipeline)


@pytest.mark.parametrize("kind", ["int", "str"])
def test_entities_weigh_as_often_as_they_occur(table, pipeline, tmp_path, kind):
    """Users and items in tables of their own teach what the joined table teaches."""
    if kind == "str":
        for key in ("user", "item"):
            keys = pa.array([None if k == 3 else f"{key} {k}" for k in table.column(key).to_pylist()])
            table = table.set_column(table.column_names.index(key), key, keys)
    table = table.drop_columns(["city", "age", "tags", "price"])
    rng = np.random.default_rng(8)
    users = pa.table({"user": rng.permutation(60), "city": [f"city {i % 9}" for i in range(60)], "age": rng.random(60)})
    items = pa.table(
        {"item": np.arange(90), "tags": [f"t{i % 7},t{i % 5}" for i in range(90)], "price": rng.random(90)}
    )
    if kind == "str":
        users = users.set_column(0, "user", pa.array([f"user {k}" for k in users.column("user").to_pylist()]))
        items = items.set_column(0, "item", pa.array([f"item {k}" for k in items.column("item").to_pylist()]))
    joined = table.join(users, "user", join_type="left outer").join(items, "item", join_type="left outer")
    expected = FeaturePipeline(SCHEMA).fit(interactions=joined).state()[1]
    for cut in (lambda t: t, lambda t: iter(t.to_batches(max_chunksize=17)), lambda t: [t.slice(5), t.slice(0, 5)]):
        fitted = FeaturePipeline(SCHEMA).fit(users=cut(users), items=cut(items), interactions=cut(table))
        arrays = fitted.state()[1]
        assert {name: array.tobytes() for name, array in arrays.items()} == {
            name: array.tobytes() for name, array in expected.items()
        }
    never = fitted.statistics["city"]
    assert never.rows == sum(k is not None for k in table.column("user").to_pylist())


def test_fitting_refuses_what_it_refused_before(table):
    for message, source in {
        "as those before it": [table.slice(0, 9), table.set_column(3, "city", pa.array(np.arange(N)))],
        "should hold numbers": table.set_column(4, "age", table.column("city")),
        "has no column": table.drop_columns(["price"]),
    }.items():
        with pytest.raises(SchemaError, match=message):
            FeaturePipeline(SCHEMA).fit(interactions=source)


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_every_source_gives_the_same_files(table, pipeline, tmp_path):
    folder = write_parquet(table, tmp_path / "data")
    expected = {domain: pipeline.transform(domain, table) for domain in ("request", "item")}
    parts = None
    for name, source in sources(table, folder).items():
        out = tmp_path / name
        made = transform_to(pipeline, out, source=source, batch_rows=128, keep=["click", "weight"])
        found = contents(out)
        assert msgspec.json.decode(found.pop("index.json"))["complete"]
        parts = found if parts is None else parts
        assert found == parts, name
        assert (len(made), made.n_rows, made.job.domains) == (8, N, ("request", "item"))
    files = read_features(tmp_path / "table")
    assert [batch.start for batch in files] == list(range(0, N, 128))
    for domain, packed in expected.items():
        for what in ("ids", "dense"):
            joined = np.concatenate([getattr(batch.packed[domain], what) for batch in files])
            assert joined.tobytes() == getattr(packed, what).tobytes()
            assert joined.shape == getattr(packed, what).shape
    assert np.concatenate([batch.columns["click"] for batch in files]).tolist() == table.column("click").to_pylist()
    assert np.concatenate([batch.columns["weight"] for batch in files]).tolist() == table.column("weight").to_pylist()


def test_batches_are_mapped_and_private(table, pipeline, tmp_path):
    files = transform_to(pipeline, tmp_path / "out", source=table)
    before = contents(tmp_path / "out")
    packed = files.batch(0).packed["request"]
    assert packed.ids.flags.aligned
    assert packed.ids.flags.c_contiguous
    assert not packed.ids.flags.owndata
    packed.ids[:] = 0
    assert contents(tmp_path / "out") == before
    with pytest.raises(SchemaError, match="has batches 0 to 0, found 1"):
        files.batch(1)


def test_nothing_to_write(table, pipeline, tmp_path):
    files = transform_to(pipeline, tmp_path / "out", source=table.slice(0, 0))
    assert (len(files), files.n_rows, list(files)) == (0, 0, [])
    assert len(read_features(tmp_path / "out")) == 0


def test_done_is_done_and_others_are_refused(table, pipeline, tmp_path):
    folder, out = write_parquet(table, tmp_path / "data"), tmp_path / "out"
    transform_to(pipeline, out, source=folder, batch_rows=300)
    before = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    transform_to(pipeline, out, source=folder, batch_rows=300)
    assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == before
    other = FeaturePipeline(SCHEMA).fit(interactions=raw(2))
    with pytest.raises(SchemaError, match="differs in the fitted features;"):
        transform_to(other, out, source=folder, batch_rows=300)
    with pytest.raises(SchemaError, match=r"differs in batch_rows \(300 there, 200 now\)"):
        transform_to(pipeline, out, source=folder, batch_rows=200)
    with pytest.raises(SchemaError, match="differs in the input files"):
        transform_to(pipeline, out, source=write_parquet(raw(3), tmp_path / "data3"), batch_rows=300)
    transform_to(pipeline, out, source=folder, batch_rows=600, overwrite=True)
    assert len(read_features(out)) == len(list(out.glob("part-*"))) == 2
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").write_text("mine")
    with pytest.raises(SchemaError, match="is there and holds no features"):
        transform_to(pipeline, tmp_path / "else", source=folder)


def test_kept_columns_are_numbers(table, pipeline, tmp_path):
    for column, message in {
        "city": "'city' that is to be kept should hold numbers, found string",
        "absent": "'absent' that is to be kept is not there",
        "holes": "'holes' that is to be kept has nulls among whole numbers",
    }.items():
        source = table.append_column("holes", pa.array([None, *range(N - 1)], pa.int64()))
        with pytest.raises(SchemaError, match=message):
            transform_to(pipeline, tmp_path / column, source=source, keep=[column])


def test_columns_that_are_not_there(table, pipeline, tmp_path):
    source = table.drop_columns(["price"])
    with pytest.raises(SchemaError, match="no column for feature 'price'"):
        transform_to(pipeline, tmp_path / "out", source=source)
    files = transform_to(pipeline, tmp_path / "null", source=source, missing="null")
    expected = pipeline.transform("item", source, missing="null")
    assert files.batch(0).packed["item"].dense.tobytes() == expected.dense.tobytes()
    files = transform_to(pipeline, tmp_path / "request", source=source, domains=["request"])
    assert list(files.batch(0).packed) == ["request"]


def test_damaged_output_is_refused(table, pipeline, tmp_path):
    out = tmp_path / "out"
    transform_to(pipeline, out, source=table, batch_rows=400)
    part, index = out / "part-000001.safetensors", out / "index.json"
    content, head = part.read_bytes(), index.read_bytes()
    for damaged in (b"", content[:5], content[:40], content[:-1], b"\xff" * 60):
        part.write_bytes(damaged)
        with pytest.raises(SchemaError, match="damaged"):
            read_features(out).batch(1)
    part.write_bytes((out / "part-000002.safetensors").read_bytes())
    with pytest.raises(SchemaError, match="should hold 400 rows, found"):
        read_features(out).batch(1)
    part.unlink()
    with pytest.raises(SchemaError, match="is missing"):
        read_features(out).batch(1)
    for text, message in {
        b"{": "damaged or no description",
        head.replace(b'"rows": 1000', b'"rows": 3000'): "make no 3000 rows",
        head.replace(b'"format_version": 1', b'"format_version": 9'): "is of version 9",
        head.replace(b'"complete": true', b'"complete": false'): "is not complete: 1,000 rows were written",
    }.items():
        index.write_bytes(text)
        with pytest.raises(SchemaError, match=message):
            read_features(out)
    index.unlink()
    with pytest.raises(SchemaError, match="holds no features"):
        read_features(out)
    with pytest.raises(FileNotFoundError):
        read_features(tmp_path / "absent")


# ---- stopped runs ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is a thing of POSIX")
@pytest.mark.parametrize("where", ["half a part", "before the index", "half an index", "any time"])
def test_a_killed_run_goes_on(table, pipeline, tmp_path, where):
    source, out = write_parquet(table, tmp_path / "data"), tmp_path / "out"
    process = multiprocessing.get_context("spawn").Process(target=pack_and_die, args=(where, source, out))
    process.start()
    if where == "any time":
        deadline = time.monotonic() + 60
        while not (out / "part-000001.safetensors").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL

    with pytest.raises(SchemaError, match="is not complete"):
        read_features(out)
    done = msgspec.json.decode((out / "index.json").read_bytes())["parts"]
    assert done >= 1
    if where != "any time":
        assert done == 3
        assert (out / "part-000003.safetensors").exists() == (where != "half a part")
    whole = transform_to(pipeline, tmp_path / "whole", source=source, batch_rows=100, keep=["click"])
    for part in range(done):  # every part that counts is whole
        name = f"part-{part:06d}.safetensors"
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    kept = {part: (out / f"part-{part:06d}.safetensors").stat().st_mtime_ns for part in range(done)}

    # Neither another pipeline nor other rows go on.
    with pytest.raises(SchemaError, match="differs in the fitted features"):
        transform_to(
            FeaturePipeline(SCHEMA).fit(interactions=raw(2)), out, source=source, batch_rows=100, keep=["click"]
        )
    again = transform_to(pipeline, out, source=source, batch_rows=100, keep=["click"])
    assert contents(out) == contents(tmp_path / "whole")
    assert {part: (out / f"part-{part:06d}.safetensors").stat().st_mtime_ns for part in range(done)} == kept
    assert again.n_rows == whole.n_rows == N


def test_a_stopped_stream_goes_on_only_with_the_same_rows(table, pipeline, tmp_path):
    def stops(table):
        yield table.slice(0, 250)
        yield table.slice(250, 100)
        raise RuntimeError("the connection is lost")

    out = tmp_path / "out"
    with pytest.raises(RuntimeError):
        transform_to(pipeline, out, source=stops(table), batch_rows=100)
    with pytest.raises(SchemaError, match="is not what these rows give now: the input is another one"):
        transform_to(pipeline, out, source=iter([raw(5)]), batch_rows=100)
    with pytest.raises(SchemaError, match="holds 300 rows already, and the input has fewer"):
        transform_to(pipeline, out, source=iter([table.slice(0, 200)]), batch_rows=100)
    transform_to(pipeline, out, source=iter([table]), batch_rows=100)
    transform_to(pipeline, tmp_path / "whole", source=iter([table]), batch_rows=100)
    assert contents(out) == contents(tmp_path / "whole")


def test_progress_is_shown(table, pipeline, tmp_path, capsys):
    pytest.importorskip("rich")
    transform_to(pipeline, tmp_path / "out", source=table, progress=True, batch_rows=100)
    transform_to(pipeline, tmp_path / "two", source=iter([table]), progress=True, batch_rows=100)
    assert capsys.readouterr().out == ""
