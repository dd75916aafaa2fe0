"""The judge as it is shipped, on pictures whose content is known."""

from dataclasses import replace

import pytest
import torch
from ditaccel.eval.shapes.features import COLOURS, SHAPES, FeatureNet, prompt_accuracy

from .conftest import SAMPLES

N = 256


@pytest.fixture(scope="module")
def net():
    return FeatureNet.from_pretrained(SAMPLES / "models" / "shapes-features")


@pytest.fixture(scope="module")
def scenes(script):
    return script("data").sample_scenes(N, torch.Generator().manual_seed(17), two_share=0.4)


@pytest.fixture(scope="module")
def pictures(script, scenes):
    return script("data").render(scenes)[:, 0]


@pytest.fixture(scope="module")
def objects(script, scenes):
    return script("judge_task").objects_of(scenes)


def test_perfect_pictures_are_judged_right(net, pictures, objects):
    found = prompt_accuracy(net, pictures, objects)
    assert found["colour"] >= 0.98 and found["shape"] >= 0.95
    assert "direction" not in found
    seen = net.judge(pictures)
    assert sum(len(s) == len(o) for s, o in zip(seen, objects, strict=True)) >= 0.95 * N


def test_wrong_prompts_are_judged_wrong(net, pictures, objects):
    absent = [
        [replace(o, colour=next(c for c in COLOURS if c not in {p.colour for p in row}))]
        for row in objects
        for o in row[:1]
    ]
    found = prompt_accuracy(net, pictures, absent)
    assert found["colour"] <= 0.02 and found["shape"] <= 0.02
    other = [
        [replace(o, shape=SHAPES[(SHAPES.index(o.shape) + 1) % len(SHAPES)]) for o in row]
        for row in objects
    ]
    found = prompt_accuracy(net, pictures, other)
    assert found["colour"] >= 0.98 and found["shape"] <= 0.05


def test_reading_a_picture_as_a_still_clip_changes_nothing(net, pictures):
    clips = pictures[:8, None].expand(-1, 5, -1, -1, -1)
    torch.testing.assert_close(net.features(clips), net.features(pictures[:8]))


def test_opposite_directions_are_told_apart(net, script):
    """Only what holds for any speed: the judge never takes a motion for its opposite."""
    data = script("data")
    scenes = data.sample_scenes(
        128, torch.Generator().manual_seed(3), moving=True, two_share=0.0, snap=True
    )
    clips = data.render(scenes, torch.tensor([0, data.FRAMES // 2, data.FRAMES - 1]))
    expected = script("judge_task").objects_of(scenes)
    backwards = {"left": "right", "right": "left", "up": "down", "down": "up"}
    opposite = [[replace(o, direction=backwards[o.direction]) for o in row] for row in expected]
    right = prompt_accuracy(net, clips, expected)["direction"]
    wrong = prompt_accuracy(net, clips, opposite)["direction"]
    assert wrong <= 0.05 and right > 0.5
    reversed_in_time = prompt_accuracy(net, clips.flip(1), opposite)["direction"]
    assert reversed_in_time == pytest.approx(right, abs=0.15)
