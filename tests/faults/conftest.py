import pytest

from .stages import States
from .tally import ALL, Tally


@pytest.fixture(scope="session")
def states(tmp_path_factory) -> States:
    return States(tmp_path_factory.mktemp("states"))


@pytest.fixture(scope="session")
def tally():
    tally = Tally()
    yield tally
    if ALL:
        tally.keep()
