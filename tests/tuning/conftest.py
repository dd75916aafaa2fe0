"""A model folder to tune."""

from pathlib import Path

import pytest
from saved_model import save_dit


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny DiT (see `saved_model`)."""
    return save_dit(tmp_path_factory.mktemp("model") / "tiny-dit")
