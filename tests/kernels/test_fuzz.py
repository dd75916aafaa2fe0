"""Random calls of every operator in plain torch, compared with its definition in float64."""

import pkgutil

import pytest
from ditaccel.kernels.fuzz import operators

from ditaccel import kernels


def test_every_folder_of_kernels_is_an_operator_with_random_calls() -> None:
    folders = {module.name for module in pkgutil.iter_modules(kernels.__path__) if module.ispkg}
    assert set(operators()) == folders
    for name, module in operators().items():
        assert module.check(0, "torch") == [], name
        quick, slow = module.INTERPRETED
        assert 0 < quick < slow


@pytest.mark.parametrize("first", range(0, 160, 40))
@pytest.mark.parametrize("operator", operators())
def test_random_calls_agree_with_the_definition(operator: str, first: int) -> None:
    check = operators()[operator].check
    wrong = {seed: check(seed, "torch") for seed in range(first, first + 40)}
    assert {seed: text for seed, text in wrong.items() if text} == {}
