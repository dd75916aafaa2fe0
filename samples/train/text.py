"""Tokenizers and tiny text encoders that load from local files like the big ones."""

from __future__ import annotations

from pathlib import Path

import torch
from data import COLOURS, DIRECTIONS, SHAPES
from torch import Tensor
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


def t5_tokenizer() -> T5Tokenizer:
    """One token a word; letters are there so that other words become tokens too."""
    letters = "abcdefghijklmnopqrstuvwxyz,."
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    vocab += [("▁" + word, -1.0) for word in WORDS if word != "a"] + [("▁a", -1.0)]
    vocab += [(letter, -8.0) for letter in letters]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)


def clip_tokenizer() -> CLIPTokenizer:
    """Byte-pair tokenizer whose merges build the words above from their letters."""
    letters = [chr(c) for c in range(33, 127)]
    symbols = ["<|startoftext|>", "<|endoftext|>", *letters, *(c + "</w>" for c in letters)]
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        # Merging from the right end keeps merges of different words from spoiling each other.
        while len(pieces) > 1:
            merges[(pieces[-2], pieces[-1])] = None
            pieces[-2:] = [pieces[-2] + pieces[-1]]
    symbols += dict.fromkeys(a + b for a, b in merges)
    vocab = {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}
    return CLIPTokenizer(vocab=vocab, merges=list(merges), model_max_length=TOKENS)


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


def build_clip(tokens: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=tokens,
            hidden_size=WIDTH,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            projection_dim=WIDTH,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


def tokenize(tokenizer: object, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask (N, TOKENS), padded and cut as the pipelines do."""
    out = tokenizer(  # type: ignore[operator]
        texts,
        padding="max_length",
        max_length=TOKENS,
        truncation=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    return out.input_ids, out.attention_mask


def wan_prompt_embeds(encoder: UMT5EncoderModel, ids: Tensor, mask: Tensor) -> Tensor:
    """(N, TOKENS, WIDTH) with zeros after the end, which is what WanPipeline hands on."""
    return encoder(ids, mask).last_hidden_state * mask[..., None]


def save_tokenizer(tokenizer: object, folder: Path) -> None:
    tokenizer.save_pretrained(str(folder))  # type: ignore[attr-defined]


def check() -> None:
    """Every prompt word is one token in both tokenizers."""
    text = " ".join(WORDS)
    assert len(t5_tokenizer()(text).input_ids) == len(WORDS) + 1
    clip = clip_tokenizer()
    assert len(clip(text, truncation=False).input_ids) == len(WORDS) + 2
    assert torch.is_tensor(tokenize(clip, [text])[0])
