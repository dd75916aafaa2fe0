"""A budget counts every byte that is held, whatever the method, the target and the family."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ditaccel.pipelines import adapters
from inspection import computed
from tiny import FAMILIES, generate, tiny_wan

import ditaccel
from ditaccel.sessions.session import session_of

LAST = "granularity=last_block"
SPECS = [
    "adaptive_taylor:tolerance=1e9,warmup=2,max_interval=3",
    "adaptive_taylor:tolerance=1e9,warmup=3,order=2,guidance=difference",
    "adaptive_taylor:tolerance=1e9,warmup=2,target=hidden,guidance=follow",
    "adaptive_taylor:tolerance=1e9,warmup=2,target=hidden,guidance=difference",
    "taylorseer:interval=3",
    "taylorseer:interval=3,order=0",
    f"taylorseer:interval=2,{LAST},correction=auto",
    f"taylorseer:interval=2,{LAST},target=residual,guidance=difference",
    f"taylorseer:interval=2,{LAST},target=output,order=2,basis=exponential,correction=auto",
    "confidence_gated_taylor:threshold=1e9,block_order=3,warmup=3",
    "first_block_residual:threshold=1e9",
    "reuse:interval=2",
    "step_mask:steps=[0,1,4],correction=auto,guidance=difference",
]
SOME = ["dit", "flux", "wan", "sd3", "ltx2", "wan_vace", "cogvideox", "qwen_image", "hidream"]


def _tensors(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """All tensors that an object of ours holds."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item, seen)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from _tensors(item, seen)
    elif type(value).__module__.startswith("ditaccel.caching"):
        # (`samples`: the latents of a call in progress, which are the pipeline's own)
        yield from _tensors({k: v for k, v in vars(value).items() if k != "samples"}, seen)


def really_held(pipe: Any) -> int:
    """Bytes of all memory that the caches' states hold, each once."""
    parts = {n: m for n, m in pipe.components.items() if isinstance(m, torch.nn.Module)}
    storages = {}
    for cache in session_of(parts).caches.values():
        held = [cache._states, cache.guidance]
        for tensor in _tensors(held, set()):
            storage = tensor.untyped_storage()
            # (a placeholder of an idle module is one number, however large it looks)
            storages[storage.data_ptr()] = min(storage.nbytes(), tensor.nbytes)
    return sum(storages.values())


def most_held(pipe: Any, call: dict[str, Any]) -> int:
    """The most that is held between two calls of the transformer."""
    seen = [0]

    def look(*_: Any) -> None:
        seen.append(really_held(pipe))

    handles = [
        part.register_forward_pre_hook(look)
        for name, part in pipe.components.items()
        if name.startswith("transformer") and isinstance(part, torch.nn.Module)
    ]
    try:
        generate(pipe, call)
    finally:
        for handle in handles:
            handle.remove()
    return max(seen)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(
    "name", [n if n in SOME[:4] else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES]
)
def test_a_budget_that_is_taken_holds_what_is_held(name, spec):
    pipe, call = FAMILIES[name]()
    with ditaccel.accelerated(pipe, spec):
        try:
            held = most_held(pipe, call)
        except ditaccel.ConfigError as error:
            assert "differ in length here" in str(error)
            pytest.skip("its branches' texts differ in length, so no difference is forecast")
        report = ditaccel.report(pipe)
    assert held and report.cache_bytes >= 0.999 * held - 64  # idle modules' placeholders
    if not hasattr(ditaccel.config.parse_spec(spec).cache, "memory_budget"):
        return
    least = report.cache_bytes
    with ditaccel.accelerated(pipe, f"{spec},memory_budget={held - 65}"):
        with pytest.raises(ditaccel.ConfigError, match="over the budget of"):
            generate(pipe, call)
        assert really_held(pipe) <= held
    gc.collect()
    with ditaccel.accelerated(pipe, f"{spec},memory_budget={2 * least}"):
        generate(pipe, call)  # nor is anything refused that would do
        assert ditaccel.report(pipe).forecasts


def test_the_report_adds_up():
    pipe, call = FAMILIES["wan"]()
    with ditaccel.accelerated(pipe, SPECS[1]):
        generate(pipe, call)
        report = ditaccel.report(pipe)
    assert sum(report.memory.values()) == report.cache_bytes
    line = next(x for x in str(report).splitlines() if x.startswith("Cache: "))
    assert "(3 outputs in each branch)" in line and "for gap correction" in line


@pytest.mark.parametrize("name", ["wan", "flux", "dit"])
@pytest.mark.parametrize(
    "spec",
    [
        "adaptive_taylor:tolerance=1e9,max_interval=2,warmup=3",
        "adaptive_taylor:tolerance=1e9,max_interval=3,warmup=3,target=hidden",
        f"taylorseer:interval=2,warmup=2,{LAST},correction=auto",
        "confidence_gated_taylor:threshold=0,block_order=1,warmup=3",
    ],
)
def test_doctors_estimate_is_what_the_run_reports(name, spec):
    pipe, call = FAMILIES[name]()
    call = {**call, "num_inference_steps": 12}
    with ditaccel.accelerated(pipe, spec):
        generate(pipe, call)
        held = ditaccel.report(pipe).cache_bytes
    seen = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda m, a, kw: seen.append((kw.get("hidden_states", a[0] if a else None)).shape),
        with_kwargs=True,
    )
    generate(pipe, call)
    handle.remove()
    tokens = adapters()[name].tokens(pipe.transformer.config, seen[0])
    images = seen[0][0] // (2 if adapters()[name].guidance == "batched" else 1)
    (method,) = ditaccel.doctor(pipe, spec, tokens=tokens * images, steps=12).methods
    assert method.memory is not None
    assert 0.999 * held <= method.memory <= (1.7 if name == "dit" else 1.001) * held


def test_doctor_warns_of_a_cache_that_will_not_fit(monkeypatch):
    from ditaccel.diagnosis import checks as diagnosis

    pipe, _ = FAMILIES["wan"]()
    monkeypatch.setattr(diagnosis, "memory_here", lambda device: 10_000_000)
    found = ditaccel.doctor(pipe, "taylorseer", tokens=100_000)
    assert found.methods[0].limit == 10_000_000
    assert "WILL NOT FIT into the 10 MB of memory here" in " ".join(str(found).split())
    assert "WILL NOT FIT" not in str(ditaccel.doctor(pipe, "taylorseer", tokens=100))


def test_cache_bytes_are_the_documented_number_of_hidden_states():
    pipe, call = tiny_wan()
    hidden = 2 * 4 * 4 // 4 * 24 * 4  # tokens x channels x bytes: 2 latent frames of 4x4, patch 2
    config = ditaccel.ConfidenceGatedTaylorConfig(threshold=0, order=2, block_order=3)
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call)
        report = ditaccel.report(pipe)
        assert report.tensors_per_branch == 2 + 3 + 2
        assert report.cache_bytes == 2 * report.tensors_per_branch * hidden
    with ditaccel.accelerated(pipe, cache=ditaccel.TaylorSeerConfig(order=1, interval=1)):
        generate(pipe, call)
        report = ditaccel.report(pipe)
        assert report.tensors_per_branch == 4 * 3 * 2
        assert report.cache_bytes == 2 * report.tensors_per_branch * hidden


def test_budget_refuses_or_downgrades_before_memory_is_taken():
    pipe, call = tiny_wan()
    refuse = ditaccel.TaylorSeerConfig(memory_budget=10_000)
    with (
        ditaccel.accelerated(pipe, cache=refuse),
        pytest.raises(
            ditaccel.ConfigError,
            match=r"at least 10.8 kB .* budget of 10 kB; granularity='last_b",
        ),
    ):
        generate(pipe, call)
    down = ditaccel.TaylorSeerConfig(memory_budget=10_000, on_budget="downgrade", interval=2)
    with ditaccel.accelerated(pipe, cache=down):
        with pytest.warns(UserWarning, match="going on with granularity='last_block', order=1"):
            generate(pipe, call)
        assert 0 < ditaccel.report(pipe).cache_bytes <= 10_000
        assert computed(pipe, "cond") == [0, 2, 4, 6]
    hopeless = ditaccel.TaylorSeerConfig(memory_budget=10, on_budget="downgrade")
    with (
        ditaccel.accelerated(pipe, cache=hopeless),
        pytest.raises(ditaccel.ConfigError, match="raise memory_budget"),
    ):
        generate(pipe, call)


def test_downgraded_order_still_forecasts():
    pipe, call = tiny_wan()
    config = ditaccel.AdaptiveTaylorConfig(tolerance=1e9, memory_budget=4700, on_budget="downgrade")
    with ditaccel.accelerated(pipe, cache=config):
        with pytest.warns(UserWarning, match="order=0"):
            generate(pipe, call, num_inference_steps=12)
        assert ditaccel.report(pipe).forecasts > 0


def test_budget_counts_what_the_basis_keeps():
    pipe, call = tiny_wan()
    config = ditaccel.StepMaskConfig(steps=tuple(range(8)), basis="exponential", target="hidden")
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call)
        report = ditaccel.report(pipe)
        assert report.tensors_per_branch == 3 and report.cache_bytes == 2 * 3 * 768
