"""Settings that all tests share.

Programs that tests start get ``-P``: they import the installed package, not the source tree in the working directory.
"""

from pathlib import Path

import pytest
from handmade import HandmadeModel, handmade_model
from hypothesis import settings

# Tests never time anything: a busy machine must not fail one.
settings.register_profile("fastmtr", deadline=None)
settings.load_profile("fastmtr")


@pytest.fixture(scope="module")
def handmade() -> HandmadeModel:
    return handmade_model()


@pytest.fixture(scope="module")
def bundle(handmade: HandmadeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of ``handmade``."""
    return handmade.maker.write(tmp_path_factory.mktemp("handmade") / "m", handmade.catalogue)
