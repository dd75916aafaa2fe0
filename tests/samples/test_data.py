"""The drawn world: seeded, inside the picture, and described by its captions."""

import pytest
import torch
from ditaccel.eval.shapes.features import parse_prompt

from .conftest import SAMPLES

WORLDS = [{}, {"moving": True}, {"snap": True}, {"moving": True, "snap": True}]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("world", WORLDS)
def test_a_seed_fixes_scenes_pictures_and_captions(script, world):
    data = script("data")
    runs = []
    for seed in (5, 5, 6):
        generator = seeded(seed)
        scenes = data.sample_scenes(32, generator, **world)
        runs.append((data.render(scenes, 3), data.captions(scenes, generator)))
    assert torch.equal(runs[0][0], runs[1][0]) and runs[0][1] == runs[1][1]
    assert not torch.equal(runs[0][0], runs[2][0]) and runs[0][1] != runs[2][1]
    assert runs[0][0].shape == (32, 3, 3, data.SIZE, data.SIZE)
    assert runs[0][0].min() >= 0 and runs[0][0].max() <= 1


@pytest.mark.parametrize("world", WORLDS)
def test_objects_stay_inside_the_picture_for_the_whole_clip(script, world):
    data = script("data")
    scenes = data.sample_scenes(2000, seeded(), **world)
    # the grid of the samples moves an object by up to half a cell, which the margin nearly covers
    slack = 1.0 if world.get("snap") else 0.0
    for time in (0, data.FRAMES // 2, data.FRAMES - 1):
        centre = scenes.start + scenes.velocity * time
        radius = scenes.radius[..., None]
        assert (centre - radius).min() >= -slack
        assert (centre + radius).max() <= data.SIZE - 1 + slack


def test_two_objects_differ_in_colour_and_rarely_touch(script):
    data = script("data")
    scenes = data.sample_scenes(2000, seeded(), moving=True, two_share=1.0, snap=True)
    assert (scenes.colour[:, 0] != scenes.colour[:, 1]).all()
    apart = (scenes.start[:, 0] - scenes.start[:, 1]).abs().amax(-1) - scenes.radius.sum(1)
    assert (apart > 0).float().mean() > 0.9


def test_objects_move_where_their_direction_says(script):
    data = script("data")
    scenes = data.sample_scenes(500, seeded(), moving=True)
    ways = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    for number, name in enumerate(data.DIRECTIONS):
        moves = scenes.velocity[scenes.direction == number]
        assert len(moves) and (moves.sign() == torch.tensor(ways[name]).float()).all()


@pytest.mark.parametrize("moving", [False, True])
def test_captions_say_what_is_drawn(script, moving):
    data, task = script("data"), script("judge_task")
    generator = seeded()
    scenes = data.sample_scenes(300, generator, moving=moving)
    for text, objects in zip(
        data.captions(scenes, generator), task.objects_of(scenes), strict=True
    ):
        assert parse_prompt(text) == objects


def test_the_colour_named_is_the_colour_drawn(script):
    data = script("data")
    scenes = data.sample_scenes(200, seeded(), two_share=0.0)
    pictures = data.render(scenes)[:, 0]
    column, row = scenes.start[:, 0].round().long().unbind(-1)
    at_centre = pictures[torch.arange(200), :, row, column]
    nearest = (at_centre[:, None] - data._RGB).abs().sum(-1).argmin(-1)
    assert torch.equal(nearest, scenes.colour[:, 0])


@pytest.mark.parametrize("moving", [False, True])
def test_held_out_prompts_are_never_trained_on(script, moving):
    data, pools = script("data"), script("pools")
    generator = seeded()
    scenes = data.sample_scenes(4000, generator, moving=moving, snap=True)
    texts = pools.Pool.texts(scenes, generator, drop=0.1)
    assert not any(text and data.held_out(text) for text in texts)
    raw = data.captions(scenes, generator)
    share = sum(map(data.held_out, raw)) / len(raw)
    assert 0.05 < share < 0.25  # about one in eight
    empty = sum(text == "" for text in texts) / len(texts)
    assert 0.1 < empty < 0.35


@pytest.mark.parametrize(("name", "moving"), [("shapes-flux", False), ("shapes-wan", True)])
def test_shipped_prompts_are_held_out(script, name, moving):
    data = script("data")
    lines = (SAMPLES / "prompts" / f"{name}.txt").read_text().splitlines()
    prompts = [line for line in lines if line and not line.startswith("#")]
    assert len(prompts) > 10 and all(map(data.held_out, prompts))
    objects = [o for prompt in prompts for o in parse_prompt(prompt)]
    assert all((o.direction is not None) == moving for o in objects)


def test_held_out_prompts_are_different_and_seeded(script):
    data = script("data")
    prompts = data.held_out_prompts(40, 3, moving=True)
    assert len(set(prompts)) == 40 and all(map(data.held_out, prompts))
    assert prompts == data.held_out_prompts(40, 3, moving=True)
    assert {len(parse_prompt(p)) for p in prompts} == {1, 2}


def test_every_prompt_word_is_one_token(script):
    script("text").check()
