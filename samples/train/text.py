"""Tokenizers and tiny text encoders that load from local files like the big ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from data import COLOURS, DIRECTIONS, SHAPES, captions, sample_scenes
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

WORDS = (
    *("a", "and", "on", "background", "moving", "small", "large", "dark", "light"),
    *COLOURS,
    *SHAPES,
    *DIRECTIONS,
)
TOKENS = 24
WIDTH = 64


def t5_tokenizer(words: Sequence[str] = WORDS) -> T5Tokenizer:
    """One token a word; letters are there so that other words become tokens too."""
    letters = "abcdefghijklmnopqrstuvwxyz,."
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    vocab += [("▁" + word, -1.0) for word in words if word != "a"] + [("▁a", -1.0)]
    vocab += [(letter, -8.0) for letter in letters]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)


def clip_tokenizer(words: Sequence[str] = WORDS, tokens: int = TOKENS) -> CLIPTokenizer:
    """Byte-pair tokenizer whose merges build the words above from their letters."""
    letters = [chr(c) for c in range(33, 127)]
    symbols = ["<|startoftext|>", "<|endoftext|>", *letters, *(c + "</w>" for c in letters)]
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        # Merging from the right end keeps merges of different words from spoiling each other.
        while len(pieces) > 1:
            merges[(pieces[-2], pieces[-1])] = None
            pieces[-2:] = [pieces[-2] + pieces[-1]]
    symbols += dict.fromkeys(a + b for a, b in merges)
    vocab = {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}
    return CLIPTokenizer(vocab=vocab, merges=list(merges), model_max_length=tokens)


def build_t5(tokens: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=tokens,
            d_model=WIDTH,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=32,
        )
    )


def build_umt5(tokens: int) -> UMT5EncoderModel:
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=tokens,
            d_model=WIDTH,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=32,
        )
    )


def build_clip(tokens: int, length: int = TOKENS) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=tokens,
            hidden_size=WIDTH,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=length,
            projection_dim=WIDTH,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


def tokenize(tokenizer: object, texts: list[str], length: int = TOKENS) -> tuple[Tensor, Tensor]:
    """Ids and mask (N, length), padded and cut as the pipelines do."""
    out = tokenizer(  # type: ignore[operator]
        texts,
        padding="max_length",
        max_length=length,
        truncation=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    return out.input_ids, out.attention_mask


def wan_prompt_embeds(encoder: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """(N, TOKENS, WIDTH) with zeros after the end, which is what WanPipeline hands on."""
    return encoder(ids, mask).last_hidden_state * mask[..., None]


class Binding(nn.Module):
    """An auxiliary task for a text encoder: every colour word must tell its object's other words.

    Captions of two objects are learnt as bags of words else: the denoiser's loss hardly says which
    shape belongs to which colour, and models of this size swap them in half of their pictures. The
    heads are thrown away after training.

    Args:
        tokenizer: one token a word.
    """

    OFFSETS = (-1, 1, 3)  # size, shape, direction, seen from the colour word

    def __init__(self, tokenizer: object) -> None:
        super().__init__()
        size = len(tokenizer)  # type: ignore[arg-type]
        self.heads = nn.ModuleList(nn.Linear(WIDTH, size) for _ in self.OFFSETS)
        colours = [tokenizer(word).input_ids[0] for word in COLOURS]  # type: ignore[operator]
        self.register_buffer("colours", torch.tensor(colours), persistent=False)

    def forward(self, states: Tensor, ids: Tensor) -> Tensor:
        """Cross-entropy, mean over colour words.

        Args:
            states: (N, TOKENS, WIDTH) output of the encoder.
            ids: (N, TOKENS) tokens that it read.
        """
        row, column = torch.isin(ids, self.colours).nonzero(as_tuple=True)
        if not len(row):
            return states.sum() * 0
        words = states[row, column]
        losses = [
            F.cross_entropy(head(words).float(), ids[row, column + offset])
            for head, offset in zip(self.heads, self.OFFSETS, strict=True)
        ]
        return torch.stack(losses).mean()


def teach_binding(
    encoder: nn.Module, binding: Binding, *, moving: bool, steps: int = 400, batch: int = 128
) -> float:
    """Teach an encoder the auxiliary task from captions alone, which takes seconds.

    The denoiser's loss, with the task's own beside it, did not get there in a thousand steps.

    Args:
        encoder: T5 or UMT5 as built above.
        binding: its heads.
        moving: captions of clips.
        steps: of AdamW.
        batch: captions a step.

    Returns:
        The last loss.
    """
    parameters = [*encoder.parameters(), *binding.parameters()]
    device = parameters[0].device
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)
    tokenizer, generator = t5_tokenizer(), torch.Generator().manual_seed(0)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50) * (1 - 0.9 * step / steps)
        scenes = sample_scenes(batch, generator, moving=moving, two_share=0.8, snap=True)
        ids, mask = (x.to(device) for x in tokenize(tokenizer, captions(scenes, generator)))
        loss = binding(wan_prompt_embeds(encoder, ids, mask), ids)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return loss.item()


def save_tokenizer(tokenizer: object, folder: Path) -> None:
    tokenizer.save_pretrained(str(folder))  # type: ignore[attr-defined]


def check() -> None:
    """Every prompt word is one token in both tokenizers."""
    text = " ".join(WORDS)
    assert len(t5_tokenizer()(text).input_ids) == len(WORDS) + 1
    clip = clip_tokenizer()
    assert len(clip(text, truncation=False).input_ids) == len(WORDS) + 2
    assert torch.is_tensor(tokenize(clip, [text])[0])
