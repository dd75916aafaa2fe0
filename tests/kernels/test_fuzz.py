"""Random calls of every operator in plain torch, compared with its definition in float64."""

import pytest
from ditaccel.kernels.fuzz import operators


@pytest.mark.parametrize("first", range(0, 160, 40))
@pytest.mark.parametrize("operator", operators())
def test_random_calls_agree_with_the_definition(operator: str, first: int) -> None:
    check = operators()[operator].check
    wrong = {seed: check(seed, "torch") for seed in range(first, first + 40)}
    assert {seed: text for seed, text in wrong.items() if text} == {}
