"""Every family with every method, on tiny pipelines: what must hold, whatever the family."""

import conformance
import pytest
from conformance import METHODS, Subject
from ditaccel.pipelines import adapters
from tiny import FAMILIES, VARIANTS, families_tested, offered

from ditaccel import config

STEPS = 5
CACHE = "confidence_gated_taylor:threshold=1e9,warmup=2"


def both(name):
    """A caching and an attention method together, where both apply."""
    attention = METHODS["svg2"].skipping
    return f"{CACHE} & {attention}" if FAMILIES[name].attention else CACHE


def test_every_method_and_family_is_in_these_tests():
    assert {method.split()[0] for method in METHODS} == set(config.methods())
    assert families_tested() == set(filter(offered, adapters()))


def test_tiny_pipelines_of_a_family_are_in_the_file_of_its_name():
    tiny = {pipeline.family for pipeline in (*FAMILIES.values(), *VARIANTS.values())}
    assert tiny == set(filter(offered, adapters()))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_method_is_exact_skips_and_is_undone(name):
    """Every third method, in turn; `test_the_whole_cross_product` has all of them."""
    subject, first = Subject(FAMILIES[name], STEPS), list(FAMILIES).index(name) % 3
    for method in list(METHODS)[first::3]:
        conformance.check_method(subject, method)
    subject.assert_as_found("one of the methods")


@pytest.mark.parametrize("name", FAMILIES)
def test_broken_runs_other_pipelines_and_copies_are_no_concern(name):
    conformance.check_isolation(Subject(FAMILIES[name], STEPS), both(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_several_prompts_and_several_samples_of_one(name):
    exact = METHODS["confidence_gated_taylor"].exact
    result = conformance.check_batches(Subject(FAMILIES[name], STEPS), exact, both(name))
    if result != conformance.WORKS:
        pytest.skip(result)


@pytest.mark.parametrize("name", FAMILIES)
def test_fifty_rounds_leave_no_object(name):
    conformance.check_memory(Subject(FAMILIES[name], 2), both(name))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_whole_cross_product(name, method):
    subject = Subject(FAMILIES[name])
    if conformance.check_method(subject, method, thorough=True) != conformance.WORKS:
        return
    if conformance.keeps_all(subject, method):
        return
    conformance.check_isolation(subject, METHODS[method].skipping)
    subject = Subject(FAMILIES[name], STEPS)
    conformance.check_memory(subject, METHODS[method].skipping)
    if not METHODS[method].rounding:
        conformance.check_batches(subject, METHODS[method].exact, METHODS[method].skipping)
