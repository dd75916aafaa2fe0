"""The judge of the scenes: what prompts ask for, what cells show, what counts as the same."""

import numpy as np
import pytest
import torch
from ditaccel.eval.judge import Judge
from ditaccel.eval.metrics.base import METRICS
from ditaccel.eval.metrics.extractors import load_extractor
from ditaccel.eval.options import Options
from ditaccel.eval.shapes.scene_judge import SceneJudge, found_in, same_labels, wanted
from ditaccel.eval.shapes.scene_net import SceneNet

from ditaccel.errors import UsageError
from ditaccel.io.models import Sheet

THINGS, MATERIALS, COLOURS = ("ball", "box"), ("brick", "furry", "stone"), ("red", "blue")
BALL, BOX, WALL, FLOOR = range(4)
SKY = len(MATERIALS)
NONE = len(COLOURS)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return SceneNet(THINGS, MATERIALS, COLOURS).eval()


def picture(thing=BALL, material=1, colour=0, cells=4, left=2, wall=0):
    """Labels: a brick wall over a stone floor, and one thing of `cells` x `cells`."""
    labels = torch.empty(3, 16, 16, dtype=torch.long)
    labels[0, :8], labels[0, 8:] = WALL, FLOOR
    labels[1, :8], labels[1, 8:] = wall, 2
    labels[2] = NONE
    place = (slice(6, 6 + cells), slice(left, left + cells))
    for field, value in enumerate((thing, material, colour)):
        labels[field][place] = value
    return labels


def test_prompts_are_read_as_they_are_written(net) -> None:
    asked = wanted(
        net, "a red furry ball and a box on a stone floor before a brick wall in cold light"
    )
    assert asked.things == ((BALL, 1, 0), (BOX, None, None))
    assert asked.grounds == ((FLOOR, 2), (WALL, 0))
    asked = wanted(net, "a blue box under a cloudy sky")
    assert asked.things == ((BOX, None, 1),)
    assert asked.grounds == ((WALL, SKY),)
    assert wanted(net, "a cat on a mat") is None


def test_shares_count_what_is_asked_for(net) -> None:
    asked = wanted(net, "a red furry ball and a box on a stone floor before a furry wall")
    found = found_in(picture(), asked)
    assert found == {"thing": 0.5, "material": 1.0, "colour": 1.0, "background": 0.5}
    assert found_in(picture(material=0, colour=1), asked)["material"] == 0.0
    assert found_in(picture(cells=1), asked)["thing"] == 0.0
    assert found_in(picture(), wanted(net, "a ball")) == {"thing": 1.0}


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (picture(), True),
        (picture(left=3), True),  # a cell aside
        (picture(left=9), False),  # elsewhere
        (picture(thing=BOX), False),
        (picture(material=2), False),
        (picture(colour=1), False),
        (picture(wall=2), False),
        (picture(cells=1), False),
    ],
)
def test_the_same_things_in_the_same_places(other, same) -> None:
    assert same_labels(picture(), other, len(THINGS)) is same
    assert same_labels(other, picture(), len(THINGS)) is same


def test_small_things_may_come_and_go() -> None:
    assert same_labels(picture(cells=2), picture(cells=1, colour=1), len(THINGS))


def test_a_folder_brings_features_scores_and_what_is_kept(net, tmp_path) -> None:
    net.save_pretrained(tmp_path / "scenes")
    extractor = load_extractor(str(tmp_path / "scenes"))
    assert (extractor.name, extractor.dim) == ("scenes", 96)
    frames = np.random.default_rng(0).integers(0, 256, (4, 128, 128, 3)).astype(np.uint8)
    assert extractor([frames, frames[:1]]).shape == (2, 96)
    judge = extractor.judge
    assert isinstance(judge, SceneJudge)
    assert judge.same(frames, frames)
    assert set(judge(frames, "a red ball on a brick floor", None)) == {
        "thing",
        "colour",
        "background",
    }
    assert judge(frames, "a cat", None) == {}
    (tmp_path / "scenes" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UsageError, match="not a usable SceneNet"):
        load_extractor(str(tmp_path / "scenes"))


def test_weights_survive_being_written(net, tmp_path) -> None:
    net.save_pretrained(tmp_path)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(parameter.half().float())
    again = SceneNet.from_pretrained(tmp_path)
    assert again.things == THINGS
    for one, other in zip(net.see(images), again.see(images), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="floats"):
        net.see(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_a_sample_is_kept_if_the_judge_sees_the_same(net, tmp_path) -> None:
    kept = next(f for f in METRICS["psnr"].numbers() if f.name == "kept")
    rows = [
        {"psnr": 30.0},
        {"psnr": 20.0},
        {"psnr": 20.0, "same": True},
        {"psnr": 9, "same": False},
    ]
    assert METRICS["psnr"].figure(kept, rows) == 0.5
    net.save_pretrained(tmp_path)
    full = Judge(Options(quiet=True, features=str(tmp_path)), Sheet(), None)
    assert [m.key for m in full.metrics][-1] == "same"
    from ditaccel.eval.comparison.sampler import Sample

    frames = np.full((1, 128, 128, 3), 100, np.uint8)
    assert full.judge(Sample("p", "a red ball", 0), frames, frames)["same"] is True
