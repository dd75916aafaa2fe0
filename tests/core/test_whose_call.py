"""Whose call is it? Any mixture of owners of one transformer gives what each gives alone."""

import pytest
from whose_call import Case


@pytest.fixture(scope="module")
def known():
    """References, shared by the cases of this file."""
    return {}


@pytest.mark.parametrize("part", range(10))
def test_interleaved_owners_equal_fresh_pipelines(part, known):
    for seed in range(15):
        Case(15 * part + seed, known, combination=part).run()


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_interleaved_owners_equal_fresh_pipelines_2000(part, known):
    for seed in range(100):
        Case(1000 + 100 * part + seed, known).run()
