"""Blocks that get text and image as one sequence: the image alone is forecast."""

import pytest
import torch
from ditaccel.kernels import TileMap, Tiling
from ditaccel.pipelines import adapters
from inspection import traces
from planners import RecordingPlanner
from tiny import FAMILIES, family_of, generate

import ditaccel
from ditaccel.attention.engine import masks
from ditaccel.attention.engine.masks import KeyMask
from ditaccel.attention.engine.planner import Plan
from ditaccel.caching.engine.blocks import find_blocks
from ditaccel.sessions.session import session_of
from ditaccel.tuning.observe import observed

FUSED = [n for n in FAMILIES if any(c.joint_text for c in adapters()[family_of(n)].blocks)]


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("guidance", ["independent", "follow", "difference"])
def test_text_of_another_length_in_another_branch_is_no_matter(name, guidance):
    pipe, call = FAMILIES[name]()
    dense = generate(pipe, call)
    spec = f"taylorseer:interval=2,granularity=last_block,guidance={guidance}"
    with ditaccel.accelerated(pipe, spec):
        result = generate(pipe, call)
        assert torch.isfinite(result).all() and not torch.equal(result, dense)
        assert ditaccel.report(pipe).forecasts > 0
    assert torch.equal(generate(pipe, call), dense)


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize(
    "spec", ["taylorseer:interval=2,granularity=last_block", "first_block_residual:threshold=1e9"]
)
def test_only_image_tokens_are_remembered(name, spec):
    pipe, call = FAMILIES[name]()
    adapter = adapters()[family_of(name)]
    shapes = set()
    with ditaccel.accelerated(pipe, spec):
        cache = session_of({"transformer": pipe.transformer}).caches["transformer"]
        finish = cache.finish

        def watched(call, output):
            if len(call.state.last):
                shapes.add(call.state.last.newest.shape[1])
            return finish(call, output)

        cache.finish = watched
        samples = []
        pipe.transformer.register_forward_pre_hook(
            lambda _, args, kwargs: samples.append({**kwargs, "0": args[:1]}), with_kwargs=True
        )
        generate(pipe, call)
    first = samples[0]
    sample = first[adapter.sample] if adapter.sample in first else first["0"][0]
    assert shapes == {adapter.tokens(pipe.transformer.config, tuple(sample.shape))}


@pytest.mark.parametrize("name", FUSED)
def test_a_passing_block_takes_the_image_beside_its_own_text(name):
    pipe, _ = FAMILIES[name]()
    contracts = adapters()[family_of(name)].blocks
    block = find_blocks(pipe.transformer, contracts)[-1]
    joint = torch.arange(10.0).reshape(1, 5, 2)
    image, expected = -torch.ones(1, 3, 2), joint.clone()
    text = slice(0, 2) if block.contract.joint_text == "front" else slice(3, 5)
    expected[:] = -1.0
    expected[:, text] = joint[:, text]
    kwargs = {block.contract.hidden: joint}
    assert torch.equal(block.passing(image, (), kwargs), expected)
    assert block.passing(joint, (), kwargs) is joint
    assert torch.equal(block.hidden_out(expected, 3), image)


def test_what_a_module_gives_twice_in_a_block_is_kept_apart():
    """CogView4's MLP runs for the image, then for the text, of another length."""
    pipe, call = FAMILIES["cogview4"]()
    with ditaccel.accelerated(pipe, "taylorseer:interval=2,order=0,granularity=module"):
        generate(pipe, call)
        report = ditaccel.report(pipe)
        assert {c.blocks_run for c in report.calls if c.action == "forecast"} == {0}
        assert report.tensors_per_branch == 4 * 3  # per block: attention, and the MLP twice


def test_masks_of_numbers_leave_attention_dense_and_say_so(monkeypatch):
    """As Chroma's own text encoder makes them: SDPA adds them to the scores."""
    looks = []

    class CountedMask(KeyMask):
        def __init__(self, mask, image=None):
            looks.append(mask)
            super().__init__(mask, image)

    monkeypatch.setattr(masks, "KeyMask", CountedMask)
    pipe, call = FAMILIES["chroma"]()
    numbers = {n: call[n].float() for n in call if n.endswith("attention_mask")}
    dense = generate(pipe, call, **numbers)
    assert not torch.equal(dense, generate(pipe, call))
    config = ditaccel.LiteAttentionConfig(min_tokens=0)
    with (
        ditaccel.accelerated(pipe, attention=config),
        pytest.warns(
            UserWarning, match="adds ones and zeros .* give .* booleans.*; attention stays dense"
        ) as caught,
    ):
        assert torch.equal(generate(pipe, call, **numbers), dense)
        log = ditaccel.report(pipe).attention[0]
    assert len([w for w in caught if "adds ones" in str(w.message)]) == 1
    # once for each layer and branch, not at each step: it makes the CPU wait for the GPU
    assert len(looks) == len(log.layers) * len({r.branch for r in log.records})


def _two_prompts(name):
    """Two prompts of other lengths in one batch, so that the shorter sequence is padded."""
    pipe, call = FAMILIES[name]()
    call["num_inference_steps"] = 5
    source = torch.Generator().manual_seed(3)
    if name == "z_image":  # padded to 32 and 64 tokens
        for key, lengths in (("prompt_embeds", (6, 40)), ("negative_prompt_embeds", (4, 33))):
            call[key] = [torch.randn(length, 16, generator=source) for length in lengths]
    else:
        for key, lengths in (("prompt", (5, 8)), ("negative_prompt", (3, 4))):
            call[f"{key}_embeds"] = torch.randn(2, 8, 16, generator=source)
            mask = torch.arange(8) < torch.tensor(lengths)[:, None]
            call[f"{key}_attention_mask"] = mask.long()
    return pipe, call


@pytest.mark.parametrize("name", ["lumina2", "z_image"])
def test_texts_of_other_lengths_in_one_batch(name):
    pipe, call = _two_prompts(name)
    dense = generate(pipe, call)
    assert len(dense) == 2

    def all_tiles(q, k, context, state):
        assert context.key_mask is not None and context.text is not None
        tilings = [Tiling.fixed(context.length, 16) for _ in range(2)]
        return Plan(TileMap.dense(*tilings), "all", blind=True)

    planner = RecordingPlanner(all_tiles)
    with observed(pipe, planner):
        result = generate(pipe, call)
    error = (result - dense).square().mean().sqrt() / dense.square().mean().sqrt()
    assert planner.seen and float(error) < 1e-5
    sparse = (
        "lite_attention:threshold=-0.5,min_tokens=0,q_tile=16,k_tile=16,break_even=1,dense_steps=0"
    )
    for spec in (
        "taylorseer:interval=2,granularity=last_block",
        f"adaptive_taylor:tolerance=1e9,warmup=2 & {sparse}",
    ):
        with ditaccel.accelerated(pipe, spec):
            result = generate(pipe, call)
            assert torch.isfinite(result).all() and torch.equal(generate(pipe, call), result)
    with ditaccel.accelerated(pipe, "adaptive_taylor:tolerance=0"):
        assert torch.equal(generate(pipe, call), dense)


def test_differences_of_sequences_of_other_lengths_are_refused():
    """Lumina 2 has text and image in one sequence from its first block on."""
    pipe, call = FAMILIES["lumina2"]()
    dense = generate(pipe, call)
    options = "interval=2,granularity=last_block,guidance=difference"
    with (
        ditaccel.accelerated(pipe, f"taylorseer:{options}"),
        pytest.raises(ditaccel.ConfigError, match=r"differ in length here .*; use target='output'"),
    ):
        generate(pipe, call)
    with ditaccel.accelerated(pipe, f"taylorseer:{options},target=output"):
        assert torch.isfinite(generate(pipe, call)).all()
        assert ditaccel.report(pipe).forecasts > 0
    assert torch.equal(generate(pipe, call), dense)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("sana", "its self-attention is linear"),
        ("omnigen", "its text tokens see only"),
    ],
)
def test_families_without_maps_of_tiles_say_why(name, why):
    pipe, call = FAMILIES[name]()
    dense, clean = generate(pipe, call), traces(pipe)
    for attention in (ditaccel.LiteAttentionConfig(), ditaccel.SVG2Config()):
        with pytest.raises(ditaccel.UnsupportedError, match=f"do not apply to .*{why}"):
            ditaccel.accelerate(pipe, "balanced", attention=attention)
    assert traces(pipe) == clean and torch.equal(generate(pipe, call), dense)
