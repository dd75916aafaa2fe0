"""Every change people make to a transformer × before or after `accelerate` × every method."""

import pytest
import torch
from conformance import METHODS
from put_on_later import CHANGES, check
from tiny_families import FAMILIES

# One cache at each place that one can work at, and one attention method; each change once.
FEW = ("taylorseer", "confidence_gated_taylor", "adaptive_taylor", "svg2")
FAST = {(change, "wan" if change == "TaylorSeer of diffusers" else "flux") for change in CHANGES}


def cases():
    for change in CHANGES:
        for name in FAMILIES:
            for method in METHODS:
                fast = (change, name) in FAST and method in FEW
                yield pytest.param(change, name, method, marks=() if fast else pytest.mark.slow)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("change", "name", "method"), cases())
def test_it_works_or_is_said(change, name, method, when):
    torch._dynamo.reset()
    try:
        check(FAMILIES[name], change, when, method)
    finally:
        torch._dynamo.reset()


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_comes_to_something_in_some_family(change):
    _, name = next(pair for pair in FAST if pair[0] == change)
    assert "not offer" not in check(FAMILIES[name], change, "before", "svg2")
