"""One cache for the session, so that the operators are compiled once and not into the user's."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def compiled_in_a_cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTEXT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
