"""The computed share of a report against what hooks on the layers counted, whatever skipped."""

import inspect

import pytest
import torch
from compositions import transformers
from conformance import METHODS, short
from put_on_later import CHANGES
from tiny import FAMILIES, generate

import ditaccel
from ditaccel.caching.engine.blocks import find_blocks
from ditaccel.config import parse_spec


def is_cache(key):
    """Whether a key of `METHODS` is a caching method."""
    return parse_spec(METHODS[key].skipping).cache is not None


ATTENTION = ("lite_attention", "svg2", "sla")
SPECS = {
    **{name: specs.skipping for name, specs in METHODS.items() if is_cache(name)},
    "output": "taylorseer:interval=2,granularity=last_block,target=output",
    "follow": "taylorseer:interval=3,granularity=last_block,guidance=follow",
    "difference": "confidence_gated_taylor:threshold=1e9,warmup=2,guidance=difference",
}
PARTS = [METHODS[name].skipping for name in ("pab", "module_schedule ranges")]
WHOLE = [METHODS[name].skipping for name in ("taylorseer", "fora", "module_schedule", "harmonica")]
BY_MODULE = [*PARTS, *WHOLE]
# Where some of the modules are computed, these are weighed by their parameters: biases and
# projections of text, of which there are fewer tokens, count more than their work.
PARTLY = 0.1


class Counted:
    """Multiplications of the linear layers over tokens, counted as they run.

    What is computed once a sample (modulation) is no work beside that, and runs in forecast steps
    too where single modules are forecast. Calls that only fill a cache of keys and values are no
    steps, and are left out.
    """

    def __init__(self, pipe):
        self.work = 0.0
        self.parameters = 0
        self.queries = 0
        self.is_step = True
        for transformer in transformers(pipe):
            adapter = ditaccel.pipelines.adapter_for(type(transformer).__name__)
            if adapter.prepares is not None:
                self._leave_out(transformer, adapter.prepares)
            for block in find_blocks(transformer, adapter.blocks):
                self._watch(block.module)

    def _leave_out(self, transformer, prepares):
        names = list(inspect.signature(type(transformer).forward).parameters)[1:]

        def before(module, args, kwargs):
            self.is_step = not prepares({**dict(zip(names, args, strict=False)), **kwargs})

        transformer.register_forward_pre_hook(before, with_kwargs=True)

    def _watch(self, block):
        block.register_forward_hook(self._count_block)
        for name, module in block.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(self._count)
            if name.endswith("to_q") and ("attn1" in name or "attn." in name):
                module.register_forward_hook(self._count_query)

    def _count_block(self, module, args, output):
        if self.is_step:
            self.parameters += sum(p.numel() for p in module.parameters())

    def _count(self, module, args, output):
        # packed tokens have no axis of samples, of which there are few
        if self.is_step and output.shape[-2] > (1 if output.ndim > 2 else 4):
            self.work += output.numel() * module.in_features

    def _count_query(self, module, args, output):
        self.queries += 1


def shares(name, spec, steps=7):
    """The report's share, and those of the work and of the parameters of blocks that ran."""
    pipe, call = FAMILIES[name]()
    call = short(call, steps)
    counted = Counted(pipe)
    generate(pipe, call)
    dense = counted.work, counted.parameters
    counted.work = counted.parameters = 0
    with ditaccel.accelerated(pipe, spec):
        generate(pipe, call)
        report = ditaccel.report(pipe)
    assert report.forecasts > 0
    return report.computed_share, counted.work / dense[0], counted.parameters / dense[1]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("name", ["dit", "wan"])
def test_of_caches(name, spec):
    reported, work, _ = shares(name, spec)
    assert reported == pytest.approx(work, abs=PARTLY if spec in PARTS else 1e-9)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_of_blocks_that_differ(spec):
    """Flux' double and single blocks are weighed by their parameters."""
    reported, work, parameters = shares("flux", spec)
    expected = work if spec in BY_MODULE else parameters
    assert reported == pytest.approx(expected, abs=PARTLY if spec in PARTS else 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("name", FAMILIES)
def test_of_all_families(name, spec):
    try:
        reported, work, parameters = shares(name, spec)
    except ditaccel.DitaccelError as error:
        pytest.skip(str(error))
    if spec in BY_MODULE:
        # layers between the modules that are forecast run on (Hunyuan-DiT's skips, VACE's hints)
        assert reported == pytest.approx(work, abs=0.05 + PARTLY * (spec in PARTS))
    else:
        assert reported == pytest.approx(parameters, abs=1e-9)


@pytest.mark.parametrize("change", [None, "FirstBlockCache", "PAB", "cache-dit"])
@pytest.mark.parametrize("method", ATTENTION)
def test_attention_calls_with_another_cache_or_without(method, change):
    """Calls in the report are those that ran; what the other cache skipped is not among them."""
    pipe, call = FAMILIES["wan"]()
    call = short(call, 7)
    counted = Counted(pipe)
    if change is not None:
        CHANGES[change].apply(pipe)
        with pytest.warns(UserWarning, match="has another cache on"):
            ditaccel.accelerate(pipe, METHODS[method].skipping)
    else:
        ditaccel.accelerate(pipe, METHODS[method].skipping)
    generate(pipe, call)
    rows = ditaccel.report(pipe).attention[0].rows()
    all_calls = 7 * 2 * 4  # steps, branches, layers
    assert len(rows) == counted.queries
    assert len(rows) == all_calls if change is None else 0 < len(rows) < all_calls


@pytest.mark.parametrize("other", ["step_mask:steps=[0,2,4]", "taylorseer:interval=3"])
def test_attention_calls_beside_a_cache_of_ours(other):
    pipe, call = FAMILIES["wan"]()
    counted = Counted(pipe)
    with ditaccel.accelerated(pipe, f"{other} & {METHODS['svg2'].skipping}"):
        generate(pipe, short(call, 7))
        report = ditaccel.report(pipe)
    rows = report.attention[0].rows()
    assert len(rows) == counted.queries
    assert len(rows) / (7 * 2 * 4) == pytest.approx(report.computed_share)
