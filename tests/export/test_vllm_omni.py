"""The attention plug-in of vLLM-Omni, against the contract that its dispatcher documents.

The dispatcher calls `fn(query, key, value, params, is_causal=…, softmax_scale=…)` with tensors
`(B, L, H, D)`, takes a tensor of that shape, and reads `fn.capabilities`. vLLM-Omni is not run.
"""

import inspect
import tomllib
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from checkout import ROOT

import ditaccel
from ditaccel import ConfigError, UnsupportedError
from ditaccel.export.vllm_omni import attention

ADAPTER = ROOT / "samples" / "adapters" / "shapes-wan-sla" / "adapter.safetensors"
SMALL = "min_tokens=0,dense_steps=0,q_tile=16,k_tile=16,break_even=1"
GRID = {
    "latent_shape": torch.tensor([[4, 16, 16], [4, 16, 16]]),
    "patch_size": torch.tensor([[1, 2, 2], [1, 2, 2]]),
}


def tensors(length: int = 256, heads: int = 2, kv_heads: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, length, h, 16, generator=generator) for h in (heads, kv_heads, kv_heads)]


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float = 0.25) -> torch.Tensor:
    q, k, v = (each.double().transpose(1, 2) for each in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True)
    return out.transpose(1, 2).float()


def test_entry_point_and_signature() -> None:
    facts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = facts["entry-points"]["vllm_omni.sparse_attn"]["ditaccel"].partition(":")
    found = getattr(import_module(module), name)
    assert found is attention
    names = list(inspect.signature(found).parameters)
    assert names == ["query", "key", "value", "params", "is_causal", "softmax_scale"]
    assert found.capabilities == {
        "supports_attention_mask": False,
        "supports_full_attn_spans": False,
    }


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_all_tiles_give_dense_attention(kv_heads: int) -> None:
    q, k, v = tensors(kv_heads=kv_heads)
    params = {"method": f"sparge:top_p=1,similarity=1,{SMALL}", "denoise_step_idx": 3}
    out = attention(q, k, v, params, is_causal=False, softmax_scale=0.25)
    assert out.shape == q.shape
    torch.testing.assert_close(out, dense(q, k, v), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["sparge:top_k=0.3,similarity=-1", "xattention:threshold=0.5"])
def test_fewer_tiles(method: str) -> None:
    q, k, v = tensors()
    out = attention(q, k, v, {"method": f"{method},{SMALL}", "denoise_step_idx": 3}, False, 0.25)
    assert torch.isfinite(out).all() and not torch.allclose(out, dense(q, k, v), atol=1e-2)


def test_the_grid_comes_from_the_geometry_that_it_publishes() -> None:
    """A window of two frames: another value in the last frame must not matter in the first."""
    q, k, v = tensors()
    window = "window=[2,8,8],stride=[2,8,8],box=[1,8,8],min_tokens=0,dense_steps=0,break_even=1"
    params = {"method": f"neighborhood:{window}", "denoise_step_idx": 3, **GRID}
    out = attention(q, k, v, params, False, 0.25)
    v[:, 192:] += 1
    changed = (attention(q, k, v, params, False, 0.25) != out).flatten(2).any(2)[0]
    assert not changed[:128].any() and changed[192:].all()


def test_first_steps_and_short_sequences_are_dense() -> None:
    q, k, v = tensors()
    rest = "min_tokens=0,q_tile=16,k_tile=16,break_even=1"
    method = f"sparge:top_k=0.1,similarity=-1,dense_steps=0.2,{rest}"
    total = torch.tensor([10, 10])
    behind = {"denoise_step_idx": torch.tensor([7, 1]), "total_denoise_steps": total}
    past = {"denoise_step_idx": torch.tensor([7, 2]), "total_denoise_steps": total}
    first = attention(q, k, v, {"method": method, **behind}, False, 0.25)
    torch.testing.assert_close(first, dense(q, k, v), rtol=1e-5, atol=1e-5)
    later = attention(q, k, v, {"method": method, **past}, False, 0.25)
    assert not torch.allclose(later, first, atol=1e-2)
    short = attention(q, k, v, {"method": "sparge:top_k=0.1", **past}, False, 0.25)
    torch.testing.assert_close(short, dense(q, k, v), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("params", "kind", "line"),
    [
        ({}, ConfigError, "name an attention method"),
        ({"method": "taylorseer"}, ConfigError, "attention method"),
        ({"method": "nonsense"}, ConfigError, "nonsense"),
        ({"method": "lite_attention"}, UnsupportedError, "remembers"),
        ({"method": "svg2"}, UnsupportedError, "remembers"),
        ({"method": "sla"}, UnsupportedError, "remembers"),
        ({"method": f"sla:weights={ADAPTER}"}, UnsupportedError, "needs the transformer"),
        ({"method": "sparge:dense_layers=2"}, ConfigError, "layers"),
    ],
)
def test_what_cannot_work_is_refused(params, kind, line) -> None:
    with pytest.raises(kind, match=line):
        attention(*tensors(), params)


def test_causal_attention_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="causal"):
        attention(*tensors(), {"method": "sparge"}, is_causal=True)


def test_an_unknown_step_is_told_once(recwarn) -> None:
    from ditaccel.export import vllm_omni

    vllm_omni._warn_of_unknown_step.cache_clear()
    for _ in range(2):
        attention(*tensors(), {"method": f"sparge:top_k=0.5,{SMALL}"})
    assert sum("does not tell at which denoising step" in str(w.message) for w in recwarn) == 1
    assert ditaccel.methods()
