"""What people put on a transformer before `accelerate` or after it, and what must come of it.

A change works together with a method, or the method is refused (at `accelerate` or, put on later,
at the next call), or a line says what is not so. Never is nothing said.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from compositions import transformers
from conformance import METHODS, relative_rmse, short, skipped
from tiny import TinyFamily, generate

import ditaccel
from ditaccel.config import parse_spec

WHOLE = "is compiled as a whole"
SECOND = "has another cache on"
CPU = torch.device("cpu")
Change = Callable[[Any], Any]


@dataclass(frozen=True)
class Expected:
    """What a change leads to.

    Attributes:
        apply: changes a pipeline.
        refused: the line of the refusal with caching methods, "" where both go together.
        refused_attention: the same with attention methods.
        said: a line that comes with attention methods where both go together.
        outside: whether methods that need nothing inside the transformer go together with it.
        rounding: relative error that the change itself makes room for.
    """

    apply: Change
    refused: str = ""
    refused_attention: str = ""
    said: str = ""
    outside: bool = False
    rounding: float = 0.0

    def refusal(self, spec: str) -> str:
        """The line of the refusal with a method, "" where both go together."""
        config = parse_spec(spec)
        if config.cache is None:
            return self.refused_attention
        return "" if self.outside and config.cache.policy().outside else self.refused


class NotApplicableError(Exception):
    """Diffusers does not offer this change for the family."""


@contextlib.contextmanager
def _refused_with(kinds: tuple[type[Exception], ...], *words: str) -> Iterator[None]:
    """Take the refusals that a library words so for "does not offer it", and no other error."""
    try:
        yield
    except kinds as error:
        if not any(each in str(error) for each in words):
            raise
        raise NotApplicableError from error


def _enable(make: Callable[[Any], Any]) -> Change:
    def apply(pipe: Any) -> None:
        for part in transformers(pipe):
            if not hasattr(part, "enable_cache"):
                raise NotApplicableError
            with _refused_with((ValueError,), "not registered"):
                part.enable_cache(make(pipe))
            if not _hooked(part):
                raise NotApplicableError

    return apply


def _hooked(part: Any) -> bool:
    own = ("ditaccel_context",)
    found = (getattr(m.__dict__.get("_diffusers_hook"), "hooks", {}) for m in part.modules())
    return any(set(hooks).difference(own) for hooks in found)


def _first_block(pipe: Any) -> Any:
    from diffusers import FirstBlockCacheConfig

    return FirstBlockCacheConfig(threshold=0.3)


def _taylor(pipe: Any) -> Any:
    from diffusers import TaylorSeerCacheConfig

    return TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1)


def _pab(pipe: Any) -> Any:
    from diffusers import PyramidAttentionBroadcastConfig

    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1000),
        current_timestep_callback=lambda: 500,
    )


def _faster(pipe: Any) -> Any:
    from diffusers import FasterCacheConfig

    return FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 700),
        current_timestep_callback=lambda: float(pipe.current_timestep),
        attention_weight_callback=lambda _: 0.5,
        tensor_format="BCHW",
        is_guidance_distilled=True,
    )


def _hooks_alone(pipe: Any) -> None:
    """By the function, which leaves no config on the transformer."""
    from diffusers import FirstBlockCacheConfig
    from diffusers.hooks import apply_first_block_cache
    from diffusers.hooks.hooks import CacheContext, HookRegistry, _set_cache_context

    for part in transformers(pipe):
        with _refused_with((ValueError,), "not registered"):
            apply_first_block_cache(part, FirstBlockCacheConfig(threshold=0.3))
        HookRegistry.check_if_exists_or_initialize(part).invalidate_child_registries_cache()
        _set_cache_context(part, CacheContext(name="all"))


def _own_class(pipe: Any) -> None:
    """cache-dit patches the pipeline's class; this pipeline gets one of its own."""
    kind = type(pipe)
    pipe.__class__ = type(kind.__name__, (kind,), {})


def _cache_dit(pipe: Any) -> None:
    import cache_dit

    refusals = "not officially supported", "not in allowed classes", "Please pass DiffusionPipeline"
    _own_class(pipe)
    with _refused_with((ValueError, AssertionError), *refusals):
        cache_dit.enable_cache(
            pipe,
            cache_config=cache_dit.DBCacheConfig(
                max_warmup_steps=1, Fn_compute_blocks=1, residual_diff_threshold=0.5
            ),
        )


def _wrapped(pipe: Any) -> None:
    for name, part in list(pipe.components.items()):
        if name.startswith("transformer") and part is not None:
            setattr(pipe, name, torch.compile(part, backend="eager"))


def _compiled(pipe: Any) -> None:
    for part in transformers(pipe):
        part.compile(backend="eager")


def _lora(pipe: Any) -> None:
    from peft import LoraConfig

    torch.manual_seed(3)
    for part in transformers(pipe):
        if not hasattr(part, "add_adapter"):
            raise NotApplicableError
        part.add_adapter(
            LoraConfig(r=2, init_lora_weights=False, target_modules=r".*(to_q|to_k|to_query)")
        )


def _fused(pipe: Any) -> None:
    for part in transformers(pipe):
        if not hasattr(part, "fuse_qkv_projections"):
            raise NotApplicableError
        part.fuse_qkv_projections()


def _group_offload(pipe: Any) -> None:
    for part in transformers(pipe):
        if not part._supports_group_offloading:
            raise NotApplicableError
        part.enable_group_offload(
            onload_device=CPU,
            offload_device=CPU,
            offload_type="block_level",
            num_blocks_per_group=1,
        )


def _model_offload(pipe: Any) -> None:
    from accelerate import cpu_offload_with_hook

    for part in transformers(pipe):
        cpu_offload_with_hook(part, CPU)


def _sequential_offload(pipe: Any) -> None:
    from accelerate import cpu_offload

    for part in transformers(pipe):
        cpu_offload(part, CPU)


def _assigned(pipe: Any) -> None:
    for part in transformers(pipe):
        weights = {k: v.detach().clone() for k, v in part.state_dict().items()}
        part.load_state_dict(weights, assign=True)


def _other_scheduler(pipe: Any) -> None:
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)


CHANGES: dict[str, Expected] = {
    "FirstBlockCache": Expected(_enable(_first_block), SECOND, said=SECOND),
    "TaylorSeer of diffusers": Expected(_enable(_taylor), SECOND, said=SECOND),
    "PAB": Expected(_enable(_pab), SECOND, said=SECOND),
    "FasterCache": Expected(_enable(_faster), SECOND, said=SECOND),
    "hooks of a cache alone": Expected(_hooks_alone, SECOND, said=SECOND),
    "cache-dit": Expected(_cache_dit, SECOND, said=SECOND),
    "torch.compile(transformer)": Expected(_wrapped, WHOLE, WHOLE, outside=True, rounding=1e-5),
    "transformer.compile()": Expected(_compiled, WHOLE, WHOLE, outside=True, rounding=1e-5),
    "LoRA": Expected(_lora),
    "fused QKV": Expected(_fused, rounding=1e-5),
    "group offload": Expected(_group_offload),
    "model offload": Expected(_model_offload),
    "sequential offload": Expected(_sequential_offload),
    "load_state_dict(assign=True)": Expected(_assigned),
    "another scheduler": Expected(_other_scheduler),
}


_SIZES = "must match the size of tensor"
_CONTEXT = "No cache context is set"
_META = "meta tensor; no data"
_DEVICE = "is not on the expected device"
_NO_TIME = "has no attribute 'current_timestep'"
_NO_QUERY = "has no attribute 'to_q'"
_MINUS = "unsupported operand type"
# A sentence when diffusers looks a class's arguments up for the first time in a process, and a
# KeyError of the name alone from then on.
_HIDDEN = "'hidden_states'"
# Change -> family -> what the pipeline raises under the change alone, with the pinned versions of
# diffusers, cache-dit and torch. A pair that works by now is found by its test: take it out.
DENSE_FAILS: dict[str, dict[str, str]] = {
    "FirstBlockCache": {
        **dict.fromkeys(("flux2", "framepack", "latte"), _CONTEXT),
        **dict.fromkeys(("cosmos3", "kandinsky5"), _HIDDEN),
        "klein": _MINUS,
        "motif_video": _SIZES,
    },
    "TaylorSeer of diffusers": {
        **dict.fromkeys(("chroma", "flux2", "framepack", "minimax_h3"), _CONTEXT),
        "nucleusmoe_image": _CONTEXT,
        "qwen_image21": _SIZES,
    },
    "PAB": {
        **dict.fromkeys(("chroma", "cogview4", "framepack", "kandinsky5", "klein"), _SIZES),
        **dict.fromkeys(("cosmos3", "kandinsky6", "ltx2", "sana_wm_refiner"), _SIZES),
    },
    "FasterCache": {
        **dict.fromkeys(("chroma", "cogview4", "framepack", "klein"), _SIZES),
        **dict.fromkeys(("ace_step", "kandinsky5", "minimax_h3", "sana_wm_refiner"), _NO_TIME),
        "skyreels_v2_forcing": "only one element tensors",
        "wan22": "'NoneType' object is not subscriptable",
    },
    "hooks of a cache alone": {
        **dict.fromkeys(("latte", "motif_video"), _SIZES),
        **dict.fromkeys(("flux2", "klein", "sd3"), _MINUS),
        "framepack": _CONTEXT,
        **dict.fromkeys(("hidream", "joyimage", "joyimage_plus"), "pop from empty list"),
        **dict.fromkeys(("cosmos3", "kandinsky5", "z_image"), _HIDDEN),
    },
    "cache-dit": {
        **dict.fromkeys(("cosmos3", "ltx2"), "unexpected keyword argument"),
        "klein": _SIZES,
    },
    "torch.compile(transformer)": {
        "flux3": "does not support len()",
        "minimax_h3": "missing 5 required positional arguments",
    },
    "fused QKV": {
        **dict.fromkeys(("kandinsky5", "kandinsky6", "kandinsky6_sr", "prx"), _NO_QUERY),
        **dict.fromkeys(("ltx2", "sana_wm_refiner"), "Sizes of tensors must match"),
        "motif_video": "has no attribute 'us",
        "sd3": "'NoneType' object has no attribute 'ndim'",
    },
    "sequential offload": {
        **dict.fromkeys(("anyflow", "anyflow_far"), "cannot be called on meta tensors"),
        **dict.fromkeys(("consisid", "hunyuan_dit", "wan_vace"), _DEVICE),
        **dict.fromkeys(("joyimage", "sana_wm", "wan_animate2"), _META),
        **dict.fromkeys(("easyanimate", "helios", "hunyuan_video15", "klein"), _META),
        **dict.fromkeys(("motif_video", "omnigen", "skyreels_v2_forcing", "wan_5b"), _META),
    },
}


def check(family: TinyFamily, change: str, when: str, method: str) -> str:
    """Put a change on before or after a method, and see that what is expected comes of it.

    Returns:
        What came of it: "refused", "said", "works", or why there is nothing to check.
    """
    expected, spec = CHANGES[change], METHODS[method].skipping
    attention = is_attention(method)
    if attention and not family.attention:
        return "no attention method applies"
    try:
        dense = dense_under(family, change)
    except NotApplicableError:
        return "diffusers does not offer it"
    refused = expected.refusal(spec)
    pipe, call = family()
    call = short(call)
    try:
        result, lines = _together(pipe, call, expected.apply, when, spec)
    except ditaccel.UnsupportedError as error:
        if _refused_alone(family, spec) == str(error):
            return "the method does not apply"
        assert refused, f"refused without need: {error}"
        assert refused in str(error)
        if not (when == "after" and refused == WHOLE):
            _undo(pipe, call, dense, expected)  # (else it was not compiled, or only in part)
        return "refused"
    assert not refused, f"{change} and {method}: nothing was refused"
    if attention and expected.said:
        assert any(expected.said in line for line in lines), lines
        assert any(expected.said in line for line in ditaccel.report(pipe).warnings)
        _undo(pipe, call, dense, expected)
        return "said"
    assert skipped(pipe), lines
    again, _ = family()
    expected.apply(again)
    ditaccel.accelerate(again, spec)
    error = relative_rmse(result, generate(again, call))
    assert error <= expected.rounding, "another result than put on before"
    _undo(pipe, call, dense, expected)
    return "works"


def _refused_alone(family: TinyFamily, spec: str) -> str:
    """The line with which a method is refused without any change, "" where it is not."""
    pipe, call = family()
    try:
        ditaccel.accelerate(pipe, spec)
        generate(pipe, short(call))
    except ditaccel.UnsupportedError as error:
        return str(error)
    return ""


def dense_under(family: TinyFamily, change: str) -> torch.Tensor:
    """What the pipeline gives under a change alone.

    Raises:
        NotApplicableError: diffusers does not offer the change for the family.
    """
    pipe, call = family()
    CHANGES[change].apply(pipe)
    dense = generate(pipe, short(call))
    generate(pipe, short(call))  # (diffusers' own hooks fail at a second run of some families)
    return dense


def is_attention(method: str) -> bool:
    """Whether a key of `METHODS` is an attention method."""
    return parse_spec(METHODS[method].skipping).attention is not None


def _together(
    pipe: Any, call: dict[str, Any], apply: Change, when: str, spec: str
) -> tuple[torch.Tensor, list[str]]:
    """The result with a change and a method on, and the lines that we warned with."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if when == "before":
            apply(pipe)
            ditaccel.accelerate(pipe, spec)
        else:
            ditaccel.accelerate(pipe, spec)
            generate(pipe, call)
            apply(pipe)
        result = generate(pipe, call)
    return result, [str(w.message) for w in caught if "ditaccel:" in str(w.message)]


def _undo(pipe: Any, call: dict[str, Any], dense: torch.Tensor, expected: Expected) -> None:
    """Take the method off, and see that the change alone is left."""
    ditaccel.restore(pipe)
    for part in transformers(pipe):  # (modular pipelines leave the state of diffusers' caches)
        getattr(part, "_reset_stateful_cache", lambda: None)()
    error = relative_rmse(generate(pipe, call), dense)
    assert error <= expected.rounding, "something is left after restore"
