"""Configs of the methods: frozen dataclasses with a strict round trip through text and files.

The class of a config selects its method, in code (`TaylorSeerConfig(interval=4)`), in a file, and
as an inline spec (`taylorseer:interval=4 & lite_attention:threshold=-5`).

```python
from ditaccel import config

found = config.resolve("balanced", "wan")    # a preset, an inline spec, or the path of a file
config.dump(found, "mine.yaml")              # the same as found.save("mine.yaml")
config.spec_of(config.load("mine.yaml"))     # 'adaptive_taylor:tolerance=0.01,…'
```
"""

from .acceleration import (
    FORMAT,
    AccelerationConfig,
    dump,
    from_dict,
    load,
    method_from_dict,
    to_dict,
    what_decides,
)
from .checks import choice, require
from .inline import method_spec, parse_options
from .registry import (
    KINDS,
    AttentionConfig,
    CacheConfig,
    CallConfig,
    Example,
    MethodConfig,
    method,
    methods,
)
from .specs import parse_spec, preset, resolve, resolved_part, spec_of
from .tuned import Tuned

__all__ = [
    "FORMAT",
    "KINDS",
    "AccelerationConfig",
    "AttentionConfig",
    "CacheConfig",
    "CallConfig",
    "Example",
    "MethodConfig",
    "Tuned",
    "choice",
    "dump",
    "from_dict",
    "load",
    "method",
    "method_from_dict",
    "method_spec",
    "methods",
    "parse_options",
    "parse_spec",
    "preset",
    "require",
    "resolve",
    "resolved_part",
    "spec_of",
    "to_dict",
    "what_decides",
]
