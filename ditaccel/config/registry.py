"""The registry of methods: a config class that registers itself selects its method.

```python
@method("my_cache")
@dataclass(frozen=True, kw_only=True)
class MyCacheConfig: ...
```
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

from .option_types import checked

KINDS = ("cache", "attention")
_METHODS: dict[str, type] = {}
T = TypeVar("T", bound=type)


def method(
    name: str, kind: str = "cache", base: Mapping[str, Any] | None = None
) -> Callable[[T], T]:
    """Register a frozen dataclass as the config of the method `name`.

    Args:
        name: of the method.
        kind: one of `KINDS`.
        base: options that may be None, which stands for the family's own value
            (`FamilyAdapter.base`), and what they are where the family has none.

    Its options are checked against their annotations before its own `__post_init__` runs.
    """

    def register(cls: T) -> T:
        cls.method = name  # type: ignore[attr-defined]
        cls.kind = kind  # type: ignore[attr-defined]
        cls.base = dict(base or {})  # type: ignore[attr-defined]
        _METHODS[name] = checked(name)(cls)
        return cls

    return register


@cache
def methods() -> dict[str, type]:
    """Return the config classes of all methods by name."""
    from .. import attention, caching

    for room in (caching, attention):
        for module in pkgutil.iter_modules(room.__path__):
            importlib.import_module(f"{room.__name__}.{module.name}")
    return dict(sorted(_METHODS.items()))
