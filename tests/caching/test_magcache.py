"""MagCache: decisions by ratios worked out by hand, calibration compared with float64."""

from itertools import pairwise

import pytest
import torch
from ditaccel.eval.peers.isolation import isolated
from inspection import Watched, computed
from tiny import generate, tiny_flux, tiny_wan, tiny_wan22

import ditaccel
from ditaccel import ConfigError, MagCacheConfig
from ditaccel.caching.magcache import MagnitudeGate
from ditaccel.core.denoising.tracker import DenoisingStep

ALONE = {"true_cfg_scale": 1.0}


def test_decisions_are_those_of_numbers_worked_out_by_hand():
    """Retention .2 of 10 steps: from step 2 on, with every ratio .9.

    |1 - .9| = .1, |1 - .81| = .19, |1 - .729| = .271: the sums are .1, .29 and .561. Up to .3, two
    steps are skipped and the third one is computed, from which the sum begins again.
    """
    pipe, call = tiny_flux()
    config = MagCacheConfig(threshold=0.3, retention=0.2, ratios=[[0.9] * 10])
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, {**call, **ALONE}, num_inference_steps=10)
        assert computed(pipe) == [0, 1, 4, 7]
    with ditaccel.accelerated(pipe, cache=MagCacheConfig(threshold=9.0, ratios=[[0.9] * 10])):
        generate(pipe, {**call, **ALONE}, num_inference_steps=10)
        assert computed(pipe) == [0, 1, 5, 9]  # at most 3 in a row
    mixed = [[1, 1, 1.1, 0.95, 1.0, 1.2, 0.9, 1.0, 1.3, 1.0]]
    # 2: .1 -> .1; 3: 1.045 -> .145; 4: 1.045 -> .19; 5: 1.254 -> .444, computed; 6: .1;
    # 7: .9 -> .2; 8: 1.17 -> .37, computed; 9: 1 -> 0
    with ditaccel.accelerated(pipe, cache=MagCacheConfig(threshold=0.2001, ratios=mixed)):
        generate(pipe, {**call, **ALONE}, num_inference_steps=10)
        assert computed(pipe) == [0, 1, 5, 8]


def test_the_residual_is_held():
    pipe, call = tiny_flux()
    plain = Watched()
    plain.inputs("first", pipe.transformer.transformer_blocks[0], "hidden_states")
    plain.inputs("end", pipe.transformer.norm_out, "x")
    config = MagCacheConfig(threshold=0.3, ratios=[[0.9] * 10])
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, {**call, **ALONE}, num_inference_steps=10)
    # (a block that is skipped is not seen by its hooks)
    first, end = dict(zip((0, 1, 4, 7), plain.seen["first"], strict=True)), plain.seen["end"]
    embedded = Watched()
    embedded.outputs("in", pipe.transformer.x_embedder)
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, {**call, **ALONE}, num_inference_steps=10)
    for step, last in ((2, 1), (3, 1), (5, 4), (9, 7)):
        residual = end[last].double() - first[last].double()
        held = embedded.seen["in"][step].double() + residual
        torch.testing.assert_close(end[step].double(), held, rtol=0, atol=1e-5)


def diffusers_own(pipe, call, ratios, threshold, steps):
    """The result and the computed steps of each branch under diffusers' MagCache."""
    from diffusers import MagCacheConfig as Theirs

    pipe = isolated(pipe)
    options = {"max_skip_steps": 3, "retention_ratio": 0.2, "num_inference_steps": steps}
    pipe.transformer.enable_cache(Theirs(threshold=threshold, mag_ratios=ratios, **options))
    seen = []
    pipe.transformer.blocks[1].ffn.register_forward_hook(lambda *_: seen.append(len(ran)))
    ran = []
    pipe.transformer.register_forward_hook(lambda *_: ran.append(None))
    result = generate(pipe, call, num_inference_steps=steps)
    return result, [sorted({i // 2 for i in seen if i % 2 == branch}) for branch in (0, 1)]


@pytest.mark.parametrize(("threshold", "steps"), [(0.06, 20), (0.15, 20), (0.15, 13), (0.5, 20)])
def test_with_equal_ratios_it_is_diffusers_own(threshold, steps):
    """Bit for bit, in both guidance branches: what differs in tables is the list that was measured.

    Ratios between .93 and 1.08, so that gaps end by the threshold and by the longest run alike.
    """
    noise = torch.rand(20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ratios = [1.0, *(0.93 + 0.15 * noise[1:]).tolist()]
    pipe, call = tiny_wan()
    theirs, steps_of_theirs = diffusers_own(pipe, call, ratios, threshold, steps)
    with ditaccel.accelerated(pipe, cache=MagCacheConfig(threshold=threshold, ratios=[ratios])):
        ours = generate(pipe, call, num_inference_steps=steps)
        assert [computed(pipe, branch) for branch in ("cond", "uncond")] == steps_of_theirs
    assert torch.equal(ours, theirs)
    gaps = {after - before for before, after in pairwise(steps_of_theirs[0])}
    assert max(gaps) <= 4 and len(gaps) > 1


def test_retention_is_rounded_and_restarts_with_a_second_transformer():
    def first(retention, **place):
        step = DenoisingStep(0, 0, "cond", 0.0, **place)
        return MagnitudeGate(0.1, retention, ((1.0,),), ()).first(step)

    assert [first(0.2, total=n) for n in (4, 12, 13, 28, 50)] == [1, 2, 3, 6, 10]
    assert first(0.25, total=20, end=8) == 2
    assert first(0.25, total=20, first=8, end=20) == 11
    pipe, call = tiny_wan22()
    config = MagCacheConfig(threshold=9.0, retention=0.4, max_consecutive=None, ratios=[[1.0]])
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call, num_inference_steps=30)
        calls = [c for c in ditaccel.report(pipe).calls if c.branch == "cond"]
    for name in ("transformer", "transformer_2"):
        own = [c.action for c in calls if c.transformer == name]
        begins = int(0.4 * len(own) + 0.5)
        assert begins > 1
        assert own == ["compute"] * begins + ["forecast"] * (len(own) - begins)


def test_another_number_of_steps_takes_the_nearest_ratio():
    gate = MagnitudeGate(0.1, 0.2, ((1.0, 1.1, 1.2, 1.3, 1.4),), ())
    steps = [DenoisingStep(0, i, "cond", 0.0, total=9) for i in range(9)]
    # i * 4 / 8 = 0, .5, 1, 1.5, …: halves go to the even place, as in diffusers
    expected = [1.0, 1.0, 1.1, 1.2, 1.2, 1.2, 1.3, 1.4, 1.4]
    assert [gate.ratio(step) for step in steps] == expected
    steps = [DenoisingStep(0, i, "cond", 0.0, total=3) for i in range(3)]
    assert [gate.ratio(step) for step in steps] == [1.0, 1.2, 1.4]


def test_each_branch_has_ratios_of_its_own():
    pipe, call = tiny_wan()
    ratios = [[1.0] * 10, [0.5] * 10]
    config = MagCacheConfig(threshold=0.1, ratios=ratios, branches=["cond", "uncond"])
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call, num_inference_steps=10)
        assert computed(pipe, "cond") == [0, 1, 5, 9]
        assert computed(pipe, "uncond") == list(range(10))


def test_without_ratios_it_is_refused_with_how_to_measure_them():
    pipe, _ = tiny_wan()
    with pytest.raises(ConfigError, match=r"no ratios, .* ditaccel\.fit\(pipe, MagCacheConfig"):
        ditaccel.accelerate(pipe, cache=MagCacheConfig())
    with pytest.raises(ConfigError, match="ratio that is not positive"):
        MagCacheConfig(ratios=[[1.0, 0.0]])
    with pytest.raises(ConfigError, match="names 1 guidance branches, and ratios has 2"):
        MagCacheConfig(ratios=[[1.0], [1.0]], branches=["cond"])


def test_a_threshold_of_0_skips_nothing_though_a_ratio_is_1():
    pipe, call = tiny_wan()
    dense = generate(pipe, call)
    with ditaccel.accelerated(pipe, cache=MagCacheConfig(threshold=0, ratios=[[1.0]])):
        assert torch.equal(generate(pipe, call), dense)
        assert not ditaccel.report(pipe).forecasts


def test_ratios_are_measured_on_dense_runs():
    """The mean over tokens and branches of `|r_t| / |r_(t-1)|`, from what blocks get and give."""
    pipe, call = tiny_wan()
    call = {**call, "num_inference_steps": 5}
    plain = Watched()
    plain.inputs("in", pipe.transformer.blocks[0], "hidden_states")
    plain.outputs("out", pipe.transformer.blocks[-1])
    dense = generate(pipe, call, seed=1000)
    pairs = zip(plain.seen["in"], plain.seen["out"], strict=True)
    lengths = [(out.double() - before.double()).norm(dim=-1) for before, out in pairs]
    plain.remove()
    config = ditaccel.fit(pipe, MagCacheConfig(threshold=0.2), [call])
    (ratios,) = config.ratios
    assert config.threshold == 0.2 and not config.branches
    own = [lengths[0::2], lengths[1::2]]
    steps = zip(*([float((b / a).mean()) for a, b in pairwise(each)] for each in own), strict=True)
    assert ratios == pytest.approx([1.0] + [sum(pair) / 2 for pair in steps], abs=2e-5)
    assert torch.equal(generate(pipe, call, seed=1000), dense)  # nothing is left
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call)
