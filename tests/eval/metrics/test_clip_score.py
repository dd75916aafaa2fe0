"""CLIPScore from a local folder with a tiny CLIP, against a second writing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ditaccel.eval.metrics.clip_score import ClipScore

from ditaccel.errors import UsageError

MEAN, DEVIATION = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    place = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz"
    symbols = ["<|startoftext|>", "<|endoftext|>", *letters, *(c + "</w>" for c in letters)]
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    size |= {"num_attention_heads": 2}
    text = {**size, "vocab_size": len(symbols), "max_position_embeddings": 12}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {**size, "image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(place)
    vocab = {symbol: i for i, symbol in enumerate(symbols)}
    CLIPTokenizer(vocab=vocab, merges=[], model_max_length=12).save_pretrained(place)
    CLIPImageProcessor(
        size={"shortest_edge": 16},
        crop_size={"height": 16, "width": 16},
        image_mean=MEAN,
        image_std=DEVIATION,
    ).save_pretrained(place)
    return place


def written_again(folder: Path, frames: np.ndarray, prompt: str) -> float:
    """Of frames (F, 16, 16, 3), which no resizing touches, and of letters as tokens."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    words = [[2 + ord(c) - 97 for c in word] for word in prompt.split()]
    tokens = [0, *(t + 26 * (i == len(w) - 1) for w in words for i, t in enumerate(w))]
    tokens = [*tokens[:11], 1]
    pixels = (torch.from_numpy(frames / 255.0) - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
    with torch.inference_mode():
        found = model(torch.tensor([tokens]), pixels.permute(0, 3, 1, 2).float())
        cosines = found.logits_per_image[:, 0] / model.logit_scale.exp()
    return float(100 * cosines.clamp(min=0).mean())


@pytest.mark.parametrize("prompt", ["red cat", "a blue circle on a yellow square"])
def test_it_equals_a_second_writing(folder, prompt) -> None:
    metric = ClipScore(folder)
    frames = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3)).astype(np.uint8)
    scores = [metric.score(None, part, prompt) for part in (frames, frames[:1])]
    expected = [written_again(folder, part, prompt) for part in (frames, frames[:1])]
    assert scores == pytest.approx(expected, abs=1e-3)
    assert metric.score(None, np.zeros((1, 40, 24, 3), np.uint8), prompt) >= 0


def test_what_is_missing_is_named(folder, tmp_path) -> None:
    with pytest.raises(UsageError, match=r"holds no config\.json: .*from the Hub"):
        ClipScore(tmp_path / "nowhere")
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    with pytest.raises(UsageError, match="cannot be read") as caught:
        ClipScore(tmp_path)
    assert "\n" not in str(caught.value)
