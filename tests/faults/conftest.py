import pytest

from .stages import States


@pytest.fixture(scope="session")
def states(tmp_path_factory) -> States:
    return States(tmp_path_factory.mktemp("states"))
