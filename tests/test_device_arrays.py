"""Arrays in the device's memory: candidates there, by key or by row, and results that stay there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import HandmadeModel
from numpy.typing import NDArray

import fastmtr
from devices import DEVICES, HOST
from fastmtr._native import DeviceArray, Model, Session

ON_DEVICES = pytest.mark.parametrize("device", DEVICES)


def on_device(array: NDArray[Any], device: str) -> Any:
    """NumPy's arrays are those of the emulated device; a GPU's are CuPy's, or torch's."""
    if device == HOST:
        return array.copy()
    try:
        import cupy
    except ModuleNotFoundError:
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("neither CuPy nor a torch with CUDA is installed")
        return torch.as_tensor(array, device="cuda")
    return cupy.asarray(array)


def to_host(model: Model, array: DeviceArray, device: str) -> NDArray[Any]:
    found = model.to_host(array)
    if device == HOST:
        np.testing.assert_array_equal(np.from_dlpack(array), found)
        assert not hasattr(array, "__cuda_array_interface__")
    else:
        assert array.__cuda_array_interface__["shape"] == found.shape
        assert array.__dlpack_device__() == (2, 0)
    assert (array.shape, array.dtype) == (found.shape, found.dtype)
    return found


def call_of(handmade: HandmadeModel, counts: list[int]) -> dict[str, Any]:
    """Without the items, which each test gives as arrays of its own."""
    return {name: value for name, value in handmade.call(counts).items() if name != "items"}


@ON_DEVICES
@pytest.mark.parametrize("by_row", [False, True])
def test_candidates_that_lie_there(handmade: HandmadeModel, bundle: Path, device: str, by_row: bool) -> None:
    models = cpu, model = Model(bundle), Model(bundle, device=device)
    rng = np.random.default_rng(0)
    for round_ in range(3):
        call = call_of(handmade, [30, 0, 7, 100])
        keys = model.keys()
        rows = rng.integers(0, len(keys), 137)
        rows[::9], rows[5] = -1, len(keys)  # not there
        there = (rows >= 0) & (rows < len(keys))
        items = np.where(there, keys[np.where(there, rows, 0)], -123456)
        call["fusion_weights"] = np.array([0.5, 2.0], np.float32) if round_ == 1 else None
        given = rows if by_row else items
        for k in (1, 12, 50):
            positions, *rest = Session(cpu).rank(**call, items=items, k=k, skip_unknown=True)
            of_all = call["offsets"][:-1, None].astype(np.int64) + positions
            expected = [positions, np.where(positions >= 0, given[np.minimum(of_all, 136)], -1), *rest]
            session = Session(model)
            options = {"items": on_device(given, device), "k": k, "rows": by_row}
            found = session.rank_device_items(**call, **options)
            arrays = session.rank_device_items(**call, **options, on_device=True)
            for a, b, c in zip(expected, found, arrays, strict=True):
                np.testing.assert_allclose(b, a, rtol=1e-6)
                np.testing.assert_array_equal(to_host(model, c, device), b)
        # The next version has its items in other slots.
        changed = np.concatenate([keys[10 * round_ : 10 * round_ + 20], 7_000_000 + 10 * round_ + np.arange(10)])
        ids, dense = rng.integers(0, 40, (30, 1)).astype(np.int32), rng.normal(size=(30, 2)).astype(np.float32)
        for each in models:
            each.upsert(changed, ids, dense)
            each.delete(keys[50 : 50 + 5 * round_].copy())


@ON_DEVICES
def test_no_candidates(handmade: HandmadeModel, bundle: Path, device: str) -> None:
    session = Session(Model(bundle, device=device))
    for counts in ([0, 0], []):
        items = on_device(np.empty(0, np.int64), device)
        found = session.rank_device_items(**call_of(handmade, counts), items=items, k=3)
        assert (found[0] == -1).all()
        assert found[-1].tolist() == [0] * len(counts)


@ON_DEVICES
def test_outputs_of_requests_that_stay_there(handmade: HandmadeModel, bundle: Path, device: str) -> None:
    model = Model(bundle, device=device)
    session = Session(model)
    for n in (0, 1, 9):
        ids, dense = handmade.requests(n)
        array = session.request_output_on_device("user_vector", ids, dense)
        np.testing.assert_array_equal(to_host(model, array, device), session.request_output("user_vector", ids, dense))


@ON_DEVICES
def test_arrays_outlive_the_session(handmade: HandmadeModel, bundle: Path, device: str) -> None:
    model = Model(bundle, device=device)
    ids, dense = handmade.requests(2)
    expected = Session(model).request_output("user_vector", ids, dense)
    array = Session(model).request_output_on_device("user_vector", ids, dense)
    capsule = array.__dlpack__()
    np.testing.assert_array_equal(model.to_host(array), expected)
    view = np.from_dlpack(array) if device == HOST else None
    del array, capsule, model
    if view is not None:
        np.testing.assert_array_equal(view, expected)


@ON_DEVICES
def test_arguments_that_do_not_fit(handmade: HandmadeModel, bundle: Path, device: str) -> None:
    session = Session(Model(bundle, device=device))
    call = call_of(handmade, [4])
    keys = handmade.catalogue["keys"]
    with pytest.raises(TypeError, match=r"items (has another dtype|is of type .*), expected int64"):
        session.rank_device_items(**call, items=on_device(keys[:4].astype(np.int32), device), k=2)
    with pytest.raises(TypeError, match="items is not contiguous"):
        session.rank_device_items(**call, items=on_device(keys[:8], device)[::2], k=2)
    with pytest.raises(TypeError, match="items has neither __dlpack__ nor __cuda_array_interface__"):
        session.rank_device_items(**call, items=[1, 2, 3, 4], k=2)
    with pytest.raises(ValueError, match="offsets ends with 4, but there are 5 items"):
        session.rank_device_items(**call, items=on_device(keys[:5], device), k=2)
    with pytest.raises(ValueError, match="k is 0"):
        session.rank_device_items(**call, items=on_device(keys[:4], device), k=0)
    with pytest.raises(fastmtr.StaleError):
        session.rank_device_items(**call, items=on_device(keys[:4], device), k=1, catalogue_version=99)
    other = Session(Model(bundle, device=device, without_catalogue=True))
    with pytest.raises(ValueError, match="no catalogue"):
        other.rank_device_items(**call, items=on_device(keys[:4], device), k=1)


def test_a_model_on_the_cpu_has_no_arrays_elsewhere(handmade: HandmadeModel, bundle: Path) -> None:
    session = Session(Model(bundle))
    with pytest.raises(fastmtr.BackendError, match="on the CPU"):
        session.rank_device_items(**call_of(handmade, [4]), items=handmade.catalogue["keys"][:4].copy(), k=2)
    with pytest.raises(fastmtr.BackendError, match="on the CPU"):
        session.request_output_on_device("user_vector", *handmade.requests(2))
