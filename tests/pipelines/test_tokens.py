"""Where the adapters say image, video and text tokens are, and where the transformers have them."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from ditaccel.pipelines import adapters
from ditaccel.pipelines.grids import from_ids, from_image_shapes
from planners import RecordingPlanner, use
from tiny import ATTENTION_FAMILIES, FAMILIES, VARIANTS, family_of, generate

from ditaccel.attention.engine.runtime import find_attention
from ditaccel.core.calls import as_tensor


class Stop(Exception):
    """Enough was seen."""


def first_call(pipe, call, **changes):
    """Arguments, by name, with which the pipeline calls its transformer."""
    seen = {}
    names = list(inspect.signature(pipe.transformer.forward).parameters)

    def catch(module, args, kwargs):
        seen.update(zip(names, args, strict=False), **kwargs)
        raise Stop

    handle = pipe.transformer.register_forward_pre_hook(catch, with_kwargs=True)
    with pytest.raises(Stop):
        generate(pipe, call, **changes)
    handle.remove()
    return seen


def own_tokens(pipe, adapter, kwargs):
    """Tokens of the latents in a call, without text that comes in them."""
    config = pipe.transformer.config
    tokens = adapter.tokens(config, tuple(as_tensor(kwargs[adapter.sample]).shape))
    extra = 0 if adapter.extra_tokens is None else adapter.extra_tokens(config, kwargs)
    return tokens + min(extra, 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_arguments_are_the_ones_that_carry_latents_and_timestep(name):
    pipe, call = FAMILIES[name]()
    adapter = adapters()[family_of(name)]
    kwargs = first_call(pipe, call)
    assert torch.is_tensor(kwargs[adapter.timestep])
    branches = 2 if adapter.guidance == "batched" else 1
    assert len(as_tensor(kwargs[adapter.sample])) == FAMILIES[name].images * branches


@pytest.mark.parametrize("name", ATTENTION_FAMILIES)
def test_token_count_and_text_side_are_the_real_ones(name):
    """Other latents move exactly the rows of the first layer's queries that are not text."""
    pipe, call = FAMILIES[name]()
    adapter = adapters()[family_of(name)]
    kwargs = first_call(pipe, call)
    latents = as_tensor(kwargs[adapter.sample])
    listed = isinstance(kwargs[adapter.sample], list)
    planner = RecordingPlanner()
    use(pipe, planner)
    with torch.no_grad():
        for sample in (latents, latents + torch.randn(latents.shape)):
            given = list(sample) if listed else sample
            pipe.transformer(**{**kwargs, adapter.sample: given})
    per_call = len(planner.seen) // 2
    (context, before), (_, after) = planner.seen[0], planner.seen[per_call]
    moved = (before != after).any(-1).any(1).all(0)
    assert torch.equal(moved, (before != after).any(-1).any(1).any(0))
    expected = torch.ones(context.length, dtype=torch.bool)
    if context.text is not None:
        expected[slice(*context.text)] = False
    if adapter.extra_tokens is not None:
        start = context.text[1] if adapter.text == "front" else 0
        extra = adapter.extra_tokens(pipe.transformer.config, kwargs)
        expected[start : start + extra] = False
    assert torch.equal(moved, expected)
    assert (context.text is not None) == (adapter.text != "none")
    assert int(expected.sum()) == own_tokens(pipe, adapter, kwargs) >= 100


@pytest.mark.parametrize("name", ATTENTION_FAMILIES)
def test_token_count_follows_the_size(name):
    pipe, call = FAMILIES[name]()
    adapter = adapters()[family_of(name)]
    kwargs = first_call(pipe, call, **FAMILIES[name].resized)
    assert own_tokens(pipe, adapter, kwargs) == FAMILIES[name].resized_tokens


# Sound has neither rows nor columns.
SOUND = {"ace_step", "longcat_audio_dit", "minimax_music3", "stable_audio", "stable_audio3"}
# Sizes are rounded to others of about their area.
ROUNDED = {"hidream"}
# An image that is edited, in one grid with the one that is made.
IMAGES_AS_FRAMES = {"joyimage"}


@pytest.mark.parametrize("name", ATTENTION_FAMILIES)
def test_the_grid_of_the_tokens_is_the_one_of_the_picture(name):
    pipe, call = FAMILIES[name]()
    size = {**call, **FAMILIES[name].resized}
    planner = RecordingPlanner()
    use(pipe, planner)
    generate(pipe, call, num_inference_steps=2, **FAMILIES[name].resized)
    for context, _ in planner.seen:
        fits = context.grid_tokens is not None
        assert fits == (name not in SOUND)
        if fits and "height" in size and name not in ROUNDED:
            assert context.grid[1] * size["width"] == context.grid[2] * size["height"]
            assert (context.grid[0] > 1) == ("num_frames" in size or name in IMAGES_AS_FRAMES)


def test_ids_that_are_no_plain_grid_give_none():
    rows, columns = torch.meshgrid(torch.arange(2), torch.arange(3), indexing="ij")
    ids = torch.stack([torch.zeros(6).long(), rows.flatten(), columns.flatten()], 1)
    assert from_ids(None, (1, 6, 4), {"img_ids": ids}) == (1, 2, 3)
    condition = ids.clone()
    condition[:, 0] = 1
    # a given image behind it, of another size too
    for given in (condition, condition[:4]):
        assert from_ids(None, (1, 12, 4), {"img_ids": torch.cat([ids, given])}) == (1, 2, 3)
    for other in (ids.flip(0), ids[:5], ids[:1], torch.cat([ids[:5], condition])):
        assert from_ids(None, (1, len(other), 4), {"img_ids": other}) is None
    assert from_ids(None, (1, 6, 4), {}) is None


def test_given_images_of_qwen_image_are_behind_the_grid():
    one, two = [(1, 4, 6)], [(1, 4, 6), (1, 2, 2)]
    assert from_image_shapes(None, (2, 24, 64), {"img_shapes": [one, one]}) == (1, 4, 6)
    assert from_image_shapes(None, (1, 28, 64), {"img_shapes": [two]}) == (1, 4, 6)
    layers = SimpleNamespace(use_layer3d_rope=True)
    assert from_image_shapes(layers, (1, 28, 64), {"img_shapes": [two]}) is None
    for shapes in ([one, [(1, 6, 4)]], [], None):
        assert from_image_shapes(None, (1, 24, 64), {"img_shapes": shapes}) is None


@pytest.mark.parametrize("name", ATTENTION_FAMILIES)
def test_attention_modules_are_listed_in_the_order_in_which_they_run(name):
    pipe, call = FAMILIES[name]()
    modules = find_attention(pipe.transformer, adapters()[family_of(name)].attention)
    order = []
    for index, each in enumerate(modules):
        each.module.register_forward_hook(lambda *_, index=index: order.append(index))
    generate(pipe, call, num_inference_steps=2)
    assert order[: len(modules)] == list(range(len(modules)))
    if name == "sd3":
        assert [m.name.split(".", 1)[1] for m in modules[:3]] == ["0.attn", "0.attn2", "1.attn"]


# Where the tokens of the picture or clip are, and those of what is given; the rest is text.
GIVEN = {
    "flux_kontext": ((6, 127), (127, 163)),
    "qwen_image_edit": ((8, 129), (129, 193)),
    "minimax_h3_first_frame": (424, 4 + 414),
}


@pytest.mark.parametrize("name", GIVEN)
def test_tokens_of_given_images_are_known(name):
    pipe, call = VARIANTS[name]()
    planner = RecordingPlanner()
    use(pipe, planner)
    generate(pipe, call, num_inference_steps=2)
    context = planner.seen[0][0]
    assert context.grid_tokens is not None and context.conditions is not None
    if name.startswith("minimax"):  # text, the frame, sound, video
        start, count = GIVEN[name]
        assert context.grid == (37, 2, 2) and context.grid_tokens == (start, start + 148)
        assert context.conditions == (6, 6 + count)
    else:
        assert (context.grid_tokens, context.conditions) == GIVEN[name]
        assert context.grid == (1, 11, 11)


def test_what_fills_up_a_sequence_is_known():
    pipe, call = FAMILIES["z_image"]()
    planner = RecordingPlanner()
    use(pipe, planner)
    generate(pipe, call, num_inference_steps=2)
    context = planner.seen[0][0]
    assert context.grid_tokens == (0, 121) and context.padding == (121, 128)
    assert context.conditions is None, "given images are something else"
