"""Files of arrays that the engine reads in place."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fastmtr.tensor_file import LINE, save_tensors


def arrays():
    rng = np.random.default_rng(0)
    return {
        "few": rng.normal(size=3).astype(np.float32),
        "rows": rng.normal(size=(5, 16)).astype(np.float32),
        "halves": rng.normal(size=(7, 3)).astype(np.float16),
        "doubles": rng.normal(size=5),
        "bytes": rng.integers(0, 255, 9).astype(np.uint8),
        "signed": rng.integers(-99, 99, (4, 16)).astype(np.int8),
        "keys": rng.integers(0, 1 << 60, 11),
        "ids": rng.integers(0, 99, (2, 3)).astype(np.int32),
        "flags": np.array([True, False, True]),
        "none": np.zeros((0, 4), np.float32),
        "columns": np.asfortranarray(rng.normal(size=(4, 16))).astype(np.float32),
    }


def test_what_is_written_is_what_the_package_reads(tmp_path: Path) -> None:
    save_tensors(arrays(), tmp_path / "file")
    found = load_file(tmp_path / "file")
    assert found.keys() == arrays().keys()
    for name, array in arrays().items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("more", range(8))  # headers of any length
def test_arrays_of_whole_lines_begin_at_one_and_others_at_their_numbers(tmp_path: Path, more: int) -> None:
    given = {**arrays(), "a" * (1 + more): np.zeros(1, np.float32)}
    save_tensors(given, tmp_path / "file")
    raw = (tmp_path / "file").read_bytes()
    data = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:data])
    for name, array in given.items():
        begin = data + header[name]["data_offsets"][0]
        assert begin % array.itemsize == 0
        assert array.nbytes % LINE or begin % LINE == 0, name


def test_nothing_is_written_over(tmp_path: Path) -> None:
    save_tensors(arrays(), tmp_path / "file")
    with pytest.raises(FileExistsError):
        save_tensors({}, tmp_path / "file")
