"""Peers: each really caches, keeps nothing, and leaves the dense pipeline bit-equal."""

import contextlib

import numpy as np
import pytest
import torch
from ditaccel.eval.comparison.sampler import Sampler
from ditaccel.eval.measure.counting import blocks_of, counted
from ditaccel.eval.peers.base import PEERS, Situation, peer_options, prepare, with_peer
from ditaccel.eval.peers.isolation import isolated

from ditaccel.errors import ConfigError, UnsupportedError

STEPS = 12
# (peer, options, the computed share on every family; None where the gate decides)
CASES = [
    ("first_block_cache", {"threshold": "1e9"}, None),
    ("taylorseer", {"interval": "4"}, 5 / STEPS),
    ("taylorseer", {"interval": "4", "mode": "modules"}, 5 / STEPS),
    ("magcache", {"threshold": "1e9", "max_skip": "2"}, None),
    ("pab", {"spatial": "3"}, None),
    ("seacache", {"threshold": "1e9"}, None),
    ("cache_dit", {"fn": "1", "threshold": "0.9", "warmup": "3"}, None),
    ("cache_dit", {"fn": "1", "threshold": "0.9", "warmup": "3", "order": "1"}, None),
]


def needs(name: str) -> None:
    if name == "cache_dit":
        pytest.importorskip("cache_dit", reason="pip install ditaccel[peers]")


def attributes(cls: type) -> dict[str, object]:
    # Python's own `copy` caches __slotnames__ on every class it copies an instance of.
    return {k: v for k, v in vars(cls).items() if k != "__slotnames__"}


@pytest.fixture(params=["dit", "wan", "flux"])
def bench(request, pipelines):
    pipe, call = pipelines[request.param]
    sampler = Sampler(pipe, call, STEPS)
    with counted(pipe) as tally:
        dense = sampler.generate(pipe, "b", 0).frames
    situation = Situation(
        STEPS, len(tally.calls) // STEPS, lambda twin: sampler.generate(twin, "b", 99)
    )
    return request.param, sampler, dense, tally.work, situation


@pytest.mark.parametrize(("name", "given", "share"), CASES, ids=lambda v: str(v)[:40])
def test_peer_caches_and_leaves_no_trace(bench, name, given, share) -> None:
    needs(name)
    family, sampler, dense, work, situation = bench
    options = peer_options(name, tuple(given.items()))
    classes = [type(sampler.pipe), type(sampler.pipe.transformer)]
    before = [attributes(cls) for cls in classes]
    modules = {n: set(vars(m)) for n, m in sampler.pipe.transformer.named_modules()}
    outputs, shares = [], []
    if name == "seacache" and family != "wan":
        with pytest.raises(UnsupportedError, match="caches nothing"):
            with_peer(name, sampler.pipe, options, situation, None).__enter__()
        return
    prepared = prepare(name, sampler.pipe, options, situation)
    for _ in range(2):
        with with_peer(name, sampler.pipe, options, situation, prepared) as twin:
            with counted(twin) as tally:
                outputs.append(sampler.generate(twin, "b", 0).frames)
            shares.append(tally.work / work)
    assert np.array_equal(*outputs), "state of the first generation reached the second"
    assert 0.05 < shares[0] == shares[1] < 1
    if share is not None:
        assert shares[0] == pytest.approx(share)
    assert not np.array_equal(outputs[0], dense) or family == "wan"
    assert [attributes(cls) for cls in classes] == before
    assert {n: set(vars(m)) for n, m in sampler.pipe.transformer.named_modules()} == modules
    assert np.array_equal(sampler.generate(sampler.pipe, "b", 0).frames, dense)


def test_isolation_changes_nothing_for_a_peer(pipelines, fresh) -> None:
    """The peer's own documented use, on a pipeline of its own, gives the same pictures."""
    from diffusers import FirstBlockCacheConfig

    pipe, call = pipelines["wan"]
    options = peer_options("first_block_cache", (("threshold", "0.4"),))
    with with_peer("first_block_cache", pipe, options, Situation(STEPS, 2, print), None) as twin:
        ours = Sampler(pipe, call, STEPS).generate(twin, "b", 0).frames
    plain, _ = fresh["wan"]()
    dense = Sampler(plain, call, STEPS).generate(plain, "b", 0).frames
    plain.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.4))
    theirs = Sampler(plain, call, STEPS).generate(plain, "b", 0).frames
    assert np.array_equal(ours, theirs) and not np.array_equal(ours, dense)


def test_isolation_changes_nothing_for_cache_dit(pipelines, fresh) -> None:
    needs("cache_dit")
    import cache_dit

    pipe, call = pipelines["flux"]
    given = (("fn", "1"), ("threshold", "0.9"), ("warmup", "3"), ("order", "1"))
    options = peer_options("cache_dit", given)
    with with_peer("cache_dit", pipe, options, Situation(STEPS, 2, print), None) as twin:
        ours = Sampler(pipe, call, STEPS).generate(twin, "b", 0).frames
    plain, _ = fresh["flux"]()
    cache_dit.enable_cache(
        plain,
        cache_config=cache_dit.DBCacheConfig(
            Fn_compute_blocks=1,
            residual_diff_threshold=0.9,
            max_warmup_steps=3,
            num_inference_steps=STEPS,
            enable_separate_cfg=True,
        ),
        calibrator_config=cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1),
    )
    theirs = Sampler(plain, call, STEPS).generate(plain, "b", 0).frames
    cache_dit.disable_cache(plain)
    dense = Sampler(plain, call, STEPS).generate(plain, "b", 0).frames
    assert np.array_equal(ours, theirs) and not np.array_equal(ours, dense)


def test_default_taylorseer_hooks_nothing_and_says_so(pipelines) -> None:
    for family in ("wan", "dit"):
        options = peer_options("taylorseer", (("mode", "default"),))
        with (
            pytest.raises(UnsupportedError, match="hooks no module"),
            with_peer("taylorseer", pipelines[family][0], options, Situation(4, 1, print), None),
        ):
            pass


def test_no_named_branch_is_refused(pipelines) -> None:
    options = peer_options("first_block_cache", ())
    with (
        pytest.raises(UnsupportedError, match="without naming"),
        with_peer("first_block_cache", pipelines["dit"][0], options, Situation(4, 2, print), None),
    ):
        pass


def test_a_peer_that_raises_is_a_named_reason(pipelines) -> None:
    pipe, call = pipelines["dit"]
    sampler = Sampler(pipe, call, 4)
    dense = sampler.generate(pipe, "b", 0).frames
    options = peer_options("first_block_cache", ())
    with (
        pytest.raises(UnsupportedError, match=r"does not run .* ZeroDivisionError"),
        with_peer("first_block_cache", pipe, options, Situation(4, 1, print), None),
    ):
        _ = 1 / 0
    assert np.array_equal(sampler.generate(pipe, "b", 0).frames, dense)


def test_cache_dit_without_a_block_to_cache(pipelines) -> None:
    needs("cache_dit")
    options = peer_options("cache_dit", ())
    with (
        pytest.raises(UnsupportedError, match="lower fn"),
        with_peer("cache_dit", pipelines["dit"][0], options, Situation(4, 1, print), None),
    ):
        pass


def test_isolated_shares_weights_and_nothing_else(pipelines) -> None:
    for pipe, _ in pipelines.values():
        twin = isolated(pipe)
        assert twin.transformer is not pipe.transformer
        assert twin.scheduler is not pipe.scheduler
        assert type(twin) is not type(pipe) and type(twin).__name__ == type(pipe).__name__
        own = dict(pipe.transformer.named_parameters())
        assert all(own[n] is p for n, p in twin.transformer.named_parameters())
        assert not set(map(id, blocks_of(twin.transformer))) & set(
            map(id, blocks_of(pipe.transformer))
        )


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("nobody", (), "no peer 'nobody'"),
        ("magcache", (("speed", "1"),), "no option 'speed'"),
        ("magcache", (("max_skip", "1.5"),), "type int"),
        ("magcache", (("threshold", "high"),), "type float"),
        ("magcache", (("threshold", "true"),), "type float"),
        ("taylorseer", (("mode", "3"),), "type str"),
    ],
)
def test_bad_peer_options(name, given, words) -> None:
    with pytest.raises(ConfigError, match=words):
        peer_options(name, given)


def test_bad_mode(pipelines) -> None:
    options = peer_options("taylorseer", (("mode", "fancy"),))
    with (
        pytest.raises(ConfigError, match="lite, modules or default"),
        with_peer("taylorseer", pipelines["dit"][0], options, Situation(4, 1, print), None),
    ):
        pass


def test_every_peer_has_a_note_and_defaults() -> None:
    assert {"first_block_cache", "taylorseer", "magcache", "pab", "seacache", "cache_dit"} <= set(
        PEERS
    )
    for name in PEERS:
        assert PEERS[name].note and peer_options(name, ()) == PEERS[name].options


def test_counting_survives_an_exception(pipelines) -> None:
    pipe, call = pipelines["dit"]
    with contextlib.suppress(RuntimeError), counted(pipe):
        raise RuntimeError
    assert not any(m._forward_pre_hooks for m in pipe.transformer.modules())
    with counted(pipe) as tally:
        Sampler(pipe, call, 3).generate(pipe, "b", 0)
    assert len(tally.calls) == 3
    assert {branch for _, branch, _ in tally.timeline()} == {0}
    assert tally.denoise_seconds is not None and tally.denoise_seconds > 0


def test_a_transformer_that_cannot_be_copied_is_said_in_plain_words(fresh) -> None:
    """Offloading hooks hold modules of Python, which no copy takes."""
    pipe, _ = fresh["flux"]()
    pipe.transformer.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
    )
    with pytest.raises(UnsupportedError, match="measure peers on the plain pipeline"):
        isolated(pipe)
