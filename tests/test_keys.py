"""fastmtr.keys: keys that come and go, looked up before or not, give the rows of keys that were there at once."""

import numpy as np
import pytest

from fastmtr.errors import ConfigError, SchemaError
from fastmtr.keys import Keys, check_unknown_items


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("looked_up", [False, True])
def test_keys_that_come_and_go(text, looked_up):
    rng = np.random.default_rng(0)
    numbers = rng.permutation(1000)[:60] - 300
    every = [f"k{n}" for n in numbers] if text else numbers

    def made_of(which):
        return Keys(numbers[which], [every[i] for i in which] if text else None)

    which = list(range(20))
    keys = made_of(which)
    for step in range(12):
        if looked_up:
            keys.rows(every[:3])
        if step % 3 == 2:
            gone = rng.permutation(len(which))[:6]
            keys, moved = keys.without(gone)
            left = [i for row, i in enumerate(which) if row not in gone]
            assert moved.tolist() == [-1 if row in gone else left.index(i) for row, i in enumerate(which)]
            which = left
        else:
            new = [i for i in rng.permutation(60)[:5].tolist() if i not in which]
            keys = keys.extended(numbers[new], [every[i] for i in new] if text else None)
            which += new
        at_once = made_of(which)
        assert keys.all.tolist() == at_once.all.tolist()
        assert keys.rows(every).tolist() == at_once.rows(every).tolist()
        assert keys.rows_of_keys(numbers).tolist() == at_once.rows_of_keys(numbers).tolist()
        known = keys.as_keys([every[i] for i in which])
        assert keys.to_engine(known, skip=False).tolist() == numbers[which].tolist()


def test_unknown_text_is_minus_one_for_the_engine():
    keys = Keys(np.array([7, 9]), ["a", "b"])
    assert keys.to_engine(keys.as_keys(["b", "x", "a"]), skip=True).tolist() == [9, -1, 7]
    with pytest.raises(SchemaError, match=r"1 item\(s\) are not in the bundle's catalogue: 'x'"):
        keys.to_engine(keys.as_keys(["b", "x"]), skip=False)
    with pytest.raises(ConfigError, match="unknown_items must be 'error' or 'skip', found 'pass'"):
        check_unknown_items("pass")
