"""One untrained model, exported once, for the tests of this folder."""

from pathlib import Path

import pytest

from encoder.mind_encoder import MindEncoder
from encoder.release import Release
from tests.small_release import make_small_release


@pytest.fixture(scope="session", params=[0, 3], ids=["plain", "marked"])
def odd_release(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Release:
    """Sizes that fill no vector register evenly, where orders of addition show."""
    folder: Path = tmp_path_factory.mktemp("releases") / "odd"
    return make_small_release(
        folder, items=60, width=10, interests=5, window_length=50, marks=request.param
    )


@pytest.fixture(scope="session")
def odd_encoder(odd_release: Release) -> MindEncoder:
    return MindEncoder(odd_release)
