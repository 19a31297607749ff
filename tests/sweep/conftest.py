"""One small world for all tests of this folder."""

import pytest

from tests.sweep.grids import opened


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """(folder with its bases, world, eight jobs): digits 3 and 8, ranks 1 and 2, seeds 0 and 1."""
    folder = tmp_path_factory.mktemp("small")
    return folder, *opened(folder)
