"""Every change people make to a transformer × before or after `accelerate` × methods.

On one family each change meets a cache inside the transformer, one outside of it, and attention
methods; on all families (slow) each change meets a cache and an attention method, in turn, so that
every method is tried with every change.
"""

import pytest
import torch
from conformance import METHODS
from put_on_later import CHANGES, DENSE_FAILS, check, dense_under, is_attention
from tiny import FAMILIES

FAST = ("taylorseer", "adaptive_taylor", "svg2")
ATTENTION = tuple(name for name in METHODS if is_attention(name))
CACHES = tuple(name for name in METHODS if not is_attention(name))
ERRORS = (LookupError, RuntimeError, ValueError, TypeError, AttributeError)


def cases():
    for i, change in enumerate(CHANGES):
        yield from ((change, "flux", method) for method in FAST)
        for j, name in enumerate(FAMILIES):
            for methods in (CACHES, ATTENTION):
                method = methods[(i + j) % len(methods)]
                if name != "flux" or method not in FAST:
                    yield pytest.param(change, name, method, marks=pytest.mark.slow)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("change", "name", "method"), cases())
def test_it_works_or_is_said(change, name, method, when):
    torch._dynamo.reset()
    try:
        fails = DENSE_FAILS.get(change, {}).get(name)
        if fails is not None:
            with pytest.raises(ERRORS, match=fails):
                dense_under(FAMILIES[name], change)
            return
        outcome = check(FAMILIES[name], change, when, method)
        assert name != "flux" or outcome in ("works", "said", "refused"), outcome
    finally:
        torch._dynamo.reset()
