"""What the samples learn beside their own loss: which words, and which places, belong together."""

from pathlib import Path

import pytest
import torch
from transformers import T5EncoderModel, UMT5EncoderModel

MODELS = Path(__file__).resolve().parents[2] / "samples" / "models"


@pytest.fixture
def data(script):
    return script("data")


@pytest.fixture
def layouts(script):
    return script("layout")


@pytest.fixture
def text(script):
    return script("text")


def test_tokens_see_the_objects_where_they_are(data, layouts):
    scenes = data.sample_scenes(64, torch.Generator().manual_seed(0), moving=True, two_share=0.5)
    frames = torch.tensor([0, 31])
    seen = layouts.objects_at(scenes, layouts.latent_times(frames)).view(64, 2, 8, 8)
    for n in range(64):
        for f, time in enumerate((0.0, 61.5)):
            for k in range(int(scenes.count[n])):
                x, y = scenes.start[n, k] + scenes.velocity[n, k] * time
                centre = seen[n, f, int(y) // 8, int(x) // 8]
                assert centre in ((k + 1), 2)  # the second lies on top of the first
            if scenes.count[n] == 1:
                assert set(seen[n, f].unique().tolist()) == {0, 1}


def test_layout_loss_knows_the_right_answer_and_leaves_untold_captions_out(data, layouts):
    scenes = data.sample_scenes(8, torch.Generator().manual_seed(1), two_share=1.0)
    times = torch.zeros(1)
    seen = layouts.objects_at(scenes, times)
    sizes = [len(names) + 1 for names in (data.SHAPES, data.COLOURS, data.DIRECTIONS)]
    layout = layouts.Layout(sum(sizes))
    start = 0
    for head, size in zip(layout.heads, sizes, strict=True):
        torch.nn.init.zeros_(head.bias)
        with torch.no_grad():
            head.weight.copy_(torch.eye(sum(sizes))[start : start + size] * 50)
        start += size
    answers = []
    for values, size in zip((scenes.shape, scenes.colour, scenes.direction), sizes, strict=True):
        classes = torch.nn.functional.pad(values + 1, (1, 0)).gather(1, seen)
        answers.append(torch.nn.functional.one_hot(classes, size).float())
    right = torch.cat(answers, -1)
    told = torch.ones(8, dtype=torch.bool)
    assert layout(right, scenes, times, told) < 1e-6
    wrong = right.clone()
    wrong[3] = right[3].roll(1, -1)
    assert layout(wrong, scenes, times, told) > 1.0
    told[3] = False
    assert layout(wrong, scenes, times, told) < 1e-6
    assert layout(wrong, scenes, times, told & False) == 0


def test_hidden_states_are_collected_and_the_hook_is_gone(layouts):
    module = torch.nn.Module()
    module.norm_out = torch.nn.LayerNorm(4)
    x = torch.randn(2, 3, 4)
    with layouts.hidden_states(module) as kept:
        module.norm_out(x)
    module.norm_out(x)
    assert len(kept) == 1 and kept[0] is x


def test_binding_loss_falls_from_captions_alone(text):
    torch.manual_seed(0)
    tokenizer = text.t5_tokenizer()
    encoder, binding = text.build_t5(len(tokenizer)), text.Binding(tokenizer)
    first, last = (
        text.teach_binding(encoder, binding, moving=False, steps=steps, batch=32)
        for steps in (1, 60)
    )
    assert last < 0.6 * first
    ids, _ = text.tokenize(tokenizer, ["", "a circle"])  # no colour word, nothing to tell
    assert binding(encoder(ids).last_hidden_state, ids) == 0


@pytest.mark.parametrize(
    ("model", "part", "kind"),
    [("flux", "text_encoder_2", T5EncoderModel), ("wan", "text_encoder", UMT5EncoderModel)],
)
def test_shipped_encoders_tell_whose_shape_it_is(text, model, part, kind):
    encoder = kind.from_pretrained(MODELS / f"shapes-{model}" / part)
    texts = ["a red circle and a blue square", "a red square and a blue circle"]
    ids, _ = text.tokenize(text.t5_tokenizer(), texts)
    with torch.no_grad():
        first, second = encoder(ids).last_hidden_state[:, 1]  # "red"
    assert (first - second).norm() > 0.3 * first.norm()
