"""Products of candidates on a device: by the matrix units and without, with what is computed together with them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import PlanMaker
from numpy.typing import NDArray

import fastmtr
from cases import MODELS, model_graph
from devices import DEVICES, HOST, ORDERS, thread_order
from fastmtr._native import Model, Session
from scenes import Scene

ON_DEVICES = pytest.mark.parametrize("device", DEVICES)

PRECISIONS = {"fp32": 2e-6, "tf32": 2e-3, "fp16": 2e-3, "bf16": 2e-2}  # and how far scores of small models may be


@ON_DEVICES
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", MODELS)
def test_precisions(kind: Any, precision: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene.of(model_graph(kind), n=75)
    with scene.bundle() as path:
        expected, _ = scene.score(Session(Model(path)))
        model = Model(path, device=device, precision=precision)
        assert json.loads(model.describe())["precision"] == precision
        scores, fused = scene.score(Session(model))
        np.testing.assert_allclose(scores, expected, atol=PRECISIONS[precision])
        for tile in (1, 20, 64):
            some = slice(5, 60)
            found, _ = scene.score(Session(model, tile=tile), some)
            assert found.tobytes() == scores[some].tobytes(), "bits depend on the tile"
        for order in ORDERS if device == HOST else ():
            with thread_order(monkeypatch, order):
                assert scene.score(Session(model))[1].tobytes() == fused.tobytes()


class Layers:
    """Steps of candidates over an input of each domain, by hand."""

    def __init__(self, width: int) -> None:
        self.maker, self.rng = PlanMaker(), np.random.default_rng(0)
        self.inputs = [self.maker.input(d, d, "dense", width) for d in ("request", "item", "candidate")]
        self.width = width

    def weights(self, *shape: int) -> NDArray[Any]:
        return self.rng.normal(size=shape) / np.sqrt(shape[-1])

    def part(self, of: int, n: int) -> list[int]:
        """A product of that input, in its domain."""
        domain = ("request", "item", "candidate")[of]
        weights = {"w": self.weights(n, self.width), "b": self.weights(n)}
        return self.maker.step(
            f"part {of} {n}", "affine", domain, [self.inputs[of]], n, stored=domain == "item", weights=weights
        )

    def affine(self, name: str, inputs: list[list[int]], n: int, *, groups: int = 1, k: int = 0, **attrs: Any) -> Any:
        weights = {"b": self.weights(groups * n)}
        if k:
            weights["w"] = self.weights(groups, n, k)
        return self.maker.step(
            name, "affine", "candidate", inputs, groups * n, weights=weights, groups=groups, has_x=k > 0, **attrs
        )

    def write(self, path: Path, outputs: list[list[int]], *, dtype: str = "f32", n_items: int = 40) -> str:
        for i, (buffer, offset, width) in enumerate(outputs):
            for j in range(0, width, 7):
                self.maker.output(f"{i}.{j}", [buffer, offset + j, 1])
        for buffer in self.maker.buffers:
            if buffer["domain"] == "item" and buffer["name"] != "b1":
                buffer["dtype"] = dtype
        catalogue = {
            "keys": np.arange(n_items),
            "ids": np.zeros((n_items, 0), np.int32),
            "dense": self.rng.normal(size=(n_items, self.width)).astype(np.float32),
        }
        made = self.maker.plan()
        self.maker.plan = lambda: made | {"plan_version": 2}  # type: ignore[method-assign]
        return str(self.maker.write(path, catalogue))

    def call(self, n: int) -> dict[str, Any]:
        dense = self.rng.normal(size=(3 + n, self.width)).astype(np.float32)
        return {
            "request_ids": None,
            "request_dense": dense[:3],
            "offsets": np.array([0, n - 20, n - 20, n], np.uint64),
            "items": self.rng.integers(0, 40, n),
            "candidate_dense": dense[3:],
        }


def experts_of_one_layer(m: Layers) -> list[list[int]]:
    """Whose outputs lie side by side in one product; one mixture takes some of them, another all."""
    first = m.affine("first", [m.inputs[2], m.part(0, 96), m.part(1, 96)], 96, k=m.width, activation="gelu")
    gate = m.maker.step("gate", "softmax", "candidate", [[*first[:1], 90, 6]], 6, size=3)[0]
    experts = m.affine("experts", [first], 4 * 32, k=96, activation="tanh")[0]
    all_gate = m.maker.step("all", "softmax", "candidate", [[*first[:1], 80, 4]], 4, size=4)
    some = m.maker.step("some", "mixture", "candidate", [[gate, 3, 3], *([experts, 32 * e, 32] for e in (0, 2, 3))], 32)
    every = m.maker.step("every", "mixture", "candidate", [all_gate, *([experts, 32 * e, 32] for e in range(4))], 32)
    return [some, every]


def waiting_experts(m: Layers) -> list[list[int]]:
    """The second gate is made of the first mixture: the two cannot be computed together."""
    experts = m.affine("experts", [m.inputs[2]], 3 * 16, k=m.width)[0]
    columns = [[experts, 16 * e, 16] for e in range(3)]
    first_gate = m.maker.step("first gate", "softmax", "candidate", [[m.inputs[2][0], 0, 3]], 3, size=3)
    first = m.maker.step("first", "mixture", "candidate", [first_gate, *columns], 16)
    second_gate = m.maker.step("second gate", "softmax", "candidate", [[first[0], 0, 3]], 3, size=3)
    return [m.maker.step("second", "mixture", "candidate", [second_gate, *columns], 16)]


def uneven_widths(m: Layers) -> list[list[int]]:
    """Nothing is a multiple of 16; groups of x made by a product; a sum without a product in between."""
    parts = [m.part(0, 111), m.part(1, 111)]
    first = m.affine("first", parts, 111, activation="relu")
    second = m.affine("second", [first], 19, groups=3, k=37, activation="silu")
    third = m.affine("third", [second, m.part(1, 50)], 50, k=57, activation="elu", alpha=0.5)
    fourth = m.affine("fourth", [third], 3, groups=2, k=25)
    return [second, fourth]


def chained_groups(m: Layers) -> list[list[int]]:
    """Groups made by products of half as many groups, which go into mixtures."""
    first = m.affine("first", [m.part(0, 64), m.part(1, 64)], 64, activation="relu")
    wide = m.affine("wide", [first], 64, groups=2, k=32, activation="relu")
    experts = m.affine("experts", [wide], 16, groups=4, k=32, activation="relu")[0]
    gate = m.maker.step("gate", "softmax", "candidate", [[m.inputs[2][0], 0, 4]], 4, size=4)
    mixed = m.maker.step("mixed", "mixture", "candidate", [gate, *([experts, 16 * e, 16] for e in range(4))], 16)
    return [mixed, first]


def groups_read_by_one_product(m: Layers) -> list[list[int]]:
    """All groups of a product are x of the next, which has one group."""
    first = m.maker.step("first", "binary", "candidate", [m.part(0, 96), m.part(2, 96)], 96, fn="add")
    second = m.affine("second", [first], 24, groups=3, k=32, activation="silu")
    return [m.affine("third", [second], 32, k=72)]


def more_than_shared_memory(m: Layers) -> list[list[int]]:
    """Buffers that go to the scratch memory; with so little room, x has one place."""
    wide = m.affine("wide", [m.inputs[2]], 3500, k=m.width, activation="relu")
    also = m.maker.step("also", "binary", "candidate", [wide, wide], 3500, fn="mul")
    narrow = m.affine("narrow", [also], 33, k=3500)
    first = m.affine("first", [m.part(0, 1024), m.part(1, 1024)], 1024, activation="relu")
    second = m.affine("second", [first], 40, groups=4, k=256)
    return [narrow, second, [also[0], 0, 20]]


def little_room(m: Layers) -> list[list[int]]:
    """In fp32 shared memory holds one group's x, not two."""
    kept = m.affine("kept", [m.inputs[2]], 500, k=m.width)
    first = m.affine("first", [m.part(0, 1024), m.part(1, 1024)], 1024, activation="relu")
    return [m.affine("second", [first], 16, groups=4, k=256), [kept[0], 0, 30]]


SHAPES = (
    experts_of_one_layer,
    waiting_experts,
    uneven_widths,
    chained_groups,
    groups_read_by_one_product,
    more_than_shared_memory,
    little_room,
)


@ON_DEVICES
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", ["f32", "f16", "i8"])
@pytest.mark.parametrize("build", SHAPES)
def test_products_of_any_shape(build: Any, dtype: str, precision: str, device: str, tmp_path: Path) -> None:
    m = Layers(41)
    path = m.write(tmp_path / "m", build(m), dtype=dtype)
    call = m.call(50)
    expected, _ = Session(Model(path)).score(**call)
    model = Model(path, device=device, precision=precision)
    for tile in (0, 16, 3):
        found, _ = Session(model, tile=tile).score(**call)
        size = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, atol=PRECISIONS[precision] * max(size, 1))


@ON_DEVICES
def test_what_is_computed_together_is_told(device: str, tmp_path: Path) -> None:
    def described(build: Any, precision: str = "bf16") -> dict[str, Any]:
        m = Layers(41)
        path = m.write(tmp_path / f"{build.__name__} {precision}", build(m))
        about: dict[str, Any] = json.loads(Model(path, device=device, precision=precision).explain())["device"]
        about["steps"] = {each["name"]: each for each in about["candidates"]["steps"]}
        return about

    chained = described(chained_groups)["steps"]
    assert chained["experts"] == {"name": "experts", "precision": "bf16", "x_made_by": "wide", "mixtures": ["mixed"]}
    assert not {"wide", "mixed"} & chained.keys()
    assert described(waiting_experts)["steps"]["experts"]["mixtures"] == []
    assert described(experts_of_one_layer)["steps"]["experts"]["mixtures"] == ["some", "every"]
    assert described(uneven_widths)["steps"]["fourth"]["precision"] == "fp32"
    assert described(more_than_shared_memory)["candidates"]["in_scratch"]
    assert described(little_room, "fp32")["candidates"]["places_for_x"] == 1
    assert described(little_room)["candidates"]["places_for_x"] == 2


@ON_DEVICES
def test_half_precision_refuses_weights_beyond_it(device: str, tmp_path: Path) -> None:
    m = Layers(41)
    large = m.affine("large", [m.inputs[2]], 16, k=41)
    m.maker.weights["large.w"][0, 3] *= 1e6
    path = m.write(tmp_path / "m", [large])
    with pytest.raises(fastmtr.BundleError, match=r"'large' has a weight of .*half precision"):
        Model(path, device=device, precision="fp16")
    Model(path, device=device, precision="bf16")


@ON_DEVICES
def test_half_precision_finds_the_same_best_50(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the benchmarks' reference MMoE, with few items."""
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "bench")
    workload = pytest.importorskip("workload", reason="a source distribution has no bench/")
    from fastmtr.bundle import Catalogue, write_bundle

    made = workload.make_workload(n_items=600, embedding_rows=10_000)
    _, graph = made.build("mmoe")
    tasks = [task.name for task in made.schema.tasks]
    path = write_bundle(
        tmp_path / "mmoe",
        schema=made.schema,
        graph=graph,
        catalogue=Catalogue(made.keys, made.items),
        fusion={"kind": "product", "tasks": tasks, "weights": [1.0] * len(tasks), "offsets": [0.0] * len(tasks)},
    )
    cpu, half, exact = (
        Session(Model(path, device=d, precision=p)) for d, p in (("cpu", "fp32"), (device, "fp16"), (device, "fp32"))
    )
    shared = 0
    requests = made.requests(512, count=2)
    for request in requests:
        call = {
            "request_ids": request.request.ids,
            "request_dense": request.request.dense,
            "offsets": np.array([0, 512], np.uint64),
            "items": made.keys[request.rows],
        }
        expected, found, same = (set(s.rank(**call, k=50)[0][0].tolist()) for s in (cpu, half, exact))
        assert expected == same
        shared += len(expected & found)
    assert shared >= 0.99 * 50 * len(requests)
