"""The training scripts import each other by bare names, as when they are run."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

SAMPLES = Path(__file__).resolve().parents[2] / "samples"


@pytest.fixture(scope="session")
def script() -> Iterator[Callable[[str], ModuleType]]:
    """Import a script of `samples/train` by name."""
    folder = SAMPLES / "train"
    scripts = [*folder.glob("*.py"), *folder.glob("scenes/*.py")]
    parts = [path.relative_to(folder).with_suffix("").parts for path in scripts]
    names = {"scenes", *(".".join(part) for part in parts)}
    taken = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(folder))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(taken)
