"""fastmtr.items: a ranker whose catalogue changes answers as one that was made of its items at once."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
from small_ranker import N_ITEMS, N_USERS, make_bundle  # noqa: E402

from fastmtr import _native  # noqa: E402
from fastmtr.bundle import Catalogue  # noqa: E402
from fastmtr.errors import ConfigError, SchemaError  # noqa: E402
from fastmtr.features import FeaturePipeline  # noqa: E402
from fastmtr.graph import Packed  # noqa: E402
from fastmtr.ranker import Ranker  # noqa: E402
from fastmtr.reference import evaluate  # noqa: E402
from fastmtr.retrieval import RetrievalConfig  # noqa: E402


class Expected:
    """What an upsert and a delete are documented to do, and the scores of the reference for it."""

    def __init__(self, ranker: Ranker) -> None:
        self.bundle = ranker.bundle
        stored = ranker.bundle.catalogue.packed
        self.items = {key: (stored.take([i]), ranker.label(key)) for i, key in enumerate(ranker.items.tolist())}
        seen = ranker.bundle.seen
        self.seen = [set(ranker.items[seen.of(user)].tolist()) for user in range(N_USERS)]
        self.pipeline = FeaturePipeline.from_state(ranker.schema, *ranker.bundle.pipeline_state)

    def upsert(self, rows, labels=None):
        for i, row in enumerate(rows):
            known = self.items.get(row["item"])
            label = labels[i] if labels is not None else known[1] if known else str(row["item"])
            self.items[row["item"]] = (self.pipeline.transform_row("item", row), label)

    def delete(self, keys):
        for key in keys:
            del self.items[key]

    def evaluate(self, user):
        packed = [item for item, _ in self.items.values()]
        item = Packed(*(np.concatenate(part) for part in zip(*packed, strict=True)))
        nothing = Packed(np.empty((len(packed), 0), np.int32), np.empty((len(packed), 0), np.float32))
        request = self.bundle.users.packed.take([user])
        return evaluate(self.bundle.graph, {"request": request, "item": item, "candidate": nothing})

    def check(self, ranker):
        keys = list(self.items)
        assert ranker.items.tolist() == keys
        assert ranker.n_items == len(keys)
        assert [ranker.label(key) for key in keys] == [label for _, label in self.items.values()]
        for user in (0, 7):
            found = self.evaluate(user)
            want = np.stack([np.broadcast_to(found[t].reshape(-1), len(keys)) for t in ("click", "buy")], axis=1)
            whole = ranker.score(100 + user, None)
            np.testing.assert_allclose(whole.values, want, atol=1e-5)
            assert whole.items.tolist() == keys
            by_key = ranker.score(100 + user, ranker.items[::-1])
            assert by_key.values.tobytes() == whole.values[::-1].tobytes()
            similar = found["item_vector"] @ found["user_vector"].reshape(-1)
            nearest = [keys[i] for i in np.argsort(-similar, kind="stable") if keys[i] not in self.seen[user]][:9]
            listed = ranker.recommend(100 + user, k=9, retrieve=9, exclude="seen")
            assert set(listed.items.tolist()) == set(nearest)
            assert listed.labels == [self.items[key][1] for key in listed.items.tolist()]


def rows_of(keys, rng):
    return [{"item": key, "price": float(rng.normal())} for key in keys]


@pytest.mark.parametrize("index", ["exact", "flat", "ivf", "hnsw"])
@pytest.mark.parametrize("text_keys", [False, True])
def test_upsert_and_delete(tmp_path, text_keys, index):
    if index != "exact":
        pytest.importorskip("faiss")
    path = make_bundle(tmp_path / "b", text_keys=text_keys)
    ranker = Ranker.load(path, retrieval=RetrievalConfig(index=index, probes=100, ef_search=100))
    rng = np.random.default_rng(4)
    expected = Expected(ranker)
    expected.check(ranker)  # the index is there before the first change
    new = [f"new{i}" for i in range(6)] if text_keys else list(range(2000, 2006))
    old = ranker.items[[3, 0, 39]].tolist()

    rows = rows_of([new[0], old[1], new[1], old[0]], rng)
    ranker.upsert(rows)
    expected.upsert(rows)
    expected.check(ranker)

    gone = [old[1], new[0], *ranker.items[[20, 21]].tolist()]
    assert ranker.delete(gone) == 4
    expected.delete(gone)
    expected.check(ranker)
    assert np.isnan(ranker.score(101, [old[1]], unknown_items="skip").fused).all()
    with pytest.raises(SchemaError, match=r"1 item\(s\) are not in the bundle's catalogue"):
        ranker.score(101, [old[1]])

    rows = rows_of([old[1], *new[2:5], old[2]], rng)  # one comes back: its users have still seen it
    table = pa.table({name: [row[name] for row in rows] for name in ("item", "price")})
    labels = ["back", "n2", "n3", "n4", "o2"]
    ranker.upsert(table, labels=labels)
    expected.upsert(rows, labels)
    expected.check(ranker)

    packed = expected.pipeline.transform("item", table)
    keys = [*new[2:5], new[5], old[2]]
    ranker.upsert(Catalogue(np.array(keys), packed, [f"packed {key}" for key in keys]))
    expected.items |= {key: (packed.take([i]), f"packed {key}") for i, key in enumerate(keys)}
    expected.check(ranker)
    assert ranker.delete([new[0], new[5], new[5]], unknown_items="skip") == 1
    expected.delete([new[5]])
    expected.check(ranker)

    assert ranker.delete(ranker.items) == len(expected.items)
    assert ranker.n_items == 0
    assert len(ranker.recommend(101, k=5)) == 0
    ranker.upsert(rows)
    expected.items = {}
    expected.upsert(rows)
    expected.check(ranker)


@pytest.mark.parametrize("item_precision", ["fp16", "int8"])
def test_stored_values_in_few_bits(tmp_path, item_precision):
    """The changed items' values are stored as those of a whole catalogue are."""
    path = make_bundle(tmp_path / "b", item_precision=item_precision)
    ranker, at_once = Ranker.load(path), _native.Model(path)
    changed = rows_of(ranker.items[4:25].tolist(), np.random.default_rng(7))
    ranker.upsert(changed)
    stored, pipeline = ranker.bundle.catalogue, Expected(ranker).pipeline
    ids, dense = stored.packed.ids.copy(), stored.packed.dense.copy()
    for row, raw in enumerate(changed, start=4):
        ids[row], dense[row] = (matrix[0] for matrix in pipeline.transform_row("item", raw))
    at_once.set_catalogue(stored.keys, ids, dense)
    users = ranker.bundle.users.packed.take([3])
    expected, _ = _native.Session(at_once).score(users.ids, users.dense, None, None)
    assert ranker.score(103, None).values.tobytes() == expected.tobytes()


def test_refused_changes_change_nothing(tmp_path):
    ranker = Ranker.load(make_bundle(tmp_path / "b"))
    expected = Expected(ranker)
    key = int(ranker.items[0])
    wrong = [
        ([{"item": key, "price": 1.0}, {"item": key, "price": 2.0}], f"item {key} stands twice"),
        ([{"item": key}], r"items\[0\] has no 'price'"),
        ([{"price": 1.0}], r"items\[0\] has no 'item'"),
        ([key], r"items\[0\] is a int, expected a mapping"),
        ([{"item": "a", "price": 1.0}], "should hold whole numbers, found the text 'a'"),
        ([{"item": key, "price": "dear"}], "price"),
        ([{"item": key, "price": 1.0, "prize": 2.0}], "'prize' is no feature of the item; did you mean 'price'"),
        (pa.table({"item": [key]}), "has no column for feature 'price'"),
        (pa.table({"price": [1.0]}), "no column 'item' for the items' keys"),
        (pa.table({"item": pa.array([None], pa.int64()), "price": [1.0]}), "item 0 of those given has null"),
    ]
    for items, message in wrong:
        with pytest.raises(SchemaError, match=message):
            ranker.upsert(items)
    with pytest.raises(SchemaError, match="there are 2 labels for 1 items"):
        ranker.upsert([{"item": key, "price": 1.0}], labels=["a", "b"])
    with pytest.raises(SchemaError, match=r"1 item\(s\) are not in the bundle's catalogue: 31337"):
        ranker.delete([key, 31337])
    with pytest.raises(ConfigError, match="unknown_items must be"):
        ranker.delete([key], unknown_items="pass")
    ranker.upsert([])
    assert ranker.delete([]) == 0
    expected.check(ranker)


def test_many_changes_make_a_new_index(tmp_path):
    ranker = Ranker.load(make_bundle(tmp_path / "b"))
    expected = Expected(ranker)
    expected.check(ranker)
    before = ranker.retriever
    rng = np.random.default_rng(5)
    rows = rows_of(range(5000, 6100), rng)
    ranker.upsert(pa.table({name: [row[name] for row in rows] for name in ("item", "price")}))
    expected.upsert(rows)
    expected.check(ranker)
    assert ranker.retriever.n_items == N_ITEMS + 1100
    assert not ranker.retriever.is_worn
    assert before.n_items == N_ITEMS


def test_while_others_recommend(tmp_path):
    """Every answer is that of one version, never some of each."""
    path = make_bundle(tmp_path / "b")
    ranker, other = Ranker.load(path), Ranker.load(path)
    rng = np.random.default_rng(6)
    keys = ranker.items.tolist()
    states = [rows_of(keys, rng), rows_of(keys, rng)]
    extra = rows_of(range(7000, 7010), rng)

    def answers(of):
        lists = [of.recommend(104, k=6, retrieve=10, exclude="seen"), of.recommend(104, k=6, retrieve=None)]
        whole = of.score(104, None)
        return [(each.items.tobytes(), each.values.tobytes()) for each in (*lists, whole)]

    expected = []
    for rows in states:
        other.upsert(rows)
        expected.append(answers(other))
        other.upsert(extra)
        expected.append(answers(other))
        other.delete([row["item"] for row in extra])
    ranker.upsert(states[0])

    def change():
        for i in range(40):
            ranker.upsert(states[i % 2])
            ranker.upsert(extra)
            ranker.delete([row["item"] for row in extra])

    def work():
        while not changing.done():
            for i, answer in enumerate(answers(ranker)):
                assert answer in [each[i] for each in expected]

    with ThreadPoolExecutor(4) as pool:
        changing = pool.submit(change)
        scoring = [pool.submit(work) for _ in range(3)]
    for each in (changing, *scoring):
        each.result()
