"""Everything in this folder needs a GPU; without one it skips and says so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

DEVICE = "cuda"
_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder (the hook sees those of the whole session)."""
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if DEVICE == "cuda" and not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA or ROCm device"))


@pytest.fixture
def device() -> torch.device:
    return torch.device(DEVICE)


@pytest.fixture
def placed(device: torch.device) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Build a tiny pipeline on the device, its call arguments with it."""

    def build(make: Callable[[], Any], dtype: torch.dtype = torch.float32) -> Any:
        pipe, call = make()
        tensors = {k: v.to(device, dtype) for k, v in call.items() if isinstance(v, torch.Tensor)}
        return pipe.to(device, dtype), {**call, **tensors}

    return build
