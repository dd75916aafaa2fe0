"""What people do to a pipeline besides accelerating it, and that both go together in either order.

Each check builds pipelines of one family, does its thing before and after `accelerate`, and returns
`WORKS`, or the reason why there is nothing to check for this family.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from conformance import METHODS, WORKS, Subject, short, skipped
from tiny import TinyFamily, generate

import ditaccel

STEPS = 5
CACHE = METHODS["confidence_gated_taylor"]
OUTSIDE = "taylorseer:interval=2,granularity=last_block,target=output"
Apply = Callable[[Any], None]


def both(family: TinyFamily) -> str:
    """A caching and an attention method together, where both apply."""
    attention = METHODS["svg2"].skipping
    return f"{CACHE.skipping} & {attention}" if family.attention else CACHE.skipping


def transformers(pipe: Any) -> list[Any]:
    """The transformers of a pipeline."""
    return [
        part
        for name, part in pipe.components.items()
        if name.startswith("transformer") and part is not None
    ]


def in_either_order(
    family: TinyFamily,
    apply: Apply,
    exact: str = CACHE.exact,
    skipping: str = CACHE.skipping,
    tolerance: float = 0.0,
) -> str:
    """`apply`, with and without `accelerate`, before and after it.

    Args:
        family: of `FAMILIES`.
        apply: changes a pipeline.
        exact: spec that must give what the changed pipeline gives.
        skipping: spec that must skip and give the same in both orders.
        tolerance: absolute and relative, where something else adds up in another order.

    Returns:
        `WORKS`, or why the dense pipeline itself does not work so.
    """
    results, kinds = [], []
    for order in ("before", "after"):
        pipe, call = family()
        call = short(call)
        if order == "before":
            try:
                apply(pipe)
                changed = generate(pipe, call)
            except (RuntimeError, ValueError, TypeError, AttributeError) as error:
                return f"the dense pipeline fails under it: {str(error).splitlines()[0]}"
            with ditaccel.accelerated(pipe, exact):
                _close(generate(pipe, call), changed, tolerance)
        ditaccel.accelerate(pipe, skipping)
        if order == "after":
            apply(pipe)
        results.append(generate(pipe, call))
        kinds.append([c.action for c in ditaccel.report(pipe).calls])
        assert skipped(pipe), f"nothing is skipped when it is done {order} accelerate"
        ditaccel.restore(pipe)
        _close(generate(pipe, call), changed, tolerance)
    _close(results[0], results[1], tolerance)
    assert kinds[0] == kinds[1]
    return WORKS


def _close(result: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    if tolerance:
        torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)
    else:
        assert torch.equal(result, expected)


def compiled_blocks(family: TinyFamily) -> str:
    """Blocks compiled each for itself, one graph where diffusers says that they compile in one."""

    def apply(pipe: Any) -> None:
        torch._dynamo.reset()
        for part in transformers(pipe):
            if getattr(part, "_repeated_blocks", None):
                part.compile_repeated_blocks(backend="eager")
                continue
            adapter = ditaccel.pipelines.adapter_for(type(part).__name__)
            for contract in adapter.blocks:
                for block in getattr(part, contract.container):
                    block.compile(backend="eager")

    try:
        return in_either_order(family, apply, skipping=both(family), tolerance=1e-4)
    finally:
        torch._dynamo.reset()


def compiled_whole(family: TinyFamily) -> str:
    """The transformer compiled as a whole, outputs forecast."""
    subject = Subject(family, STEPS)
    pipe = subject.pipe
    with ditaccel.accelerated(pipe, OUTSIDE):
        expected = subject.run()
    torch._dynamo.reset()
    try:
        for part in transformers(pipe):
            part.compile(backend="eager")
        with ditaccel.accelerated(pipe, OUTSIDE):
            _close(subject.run(), expected, 1e-4)
            assert skipped(pipe)
        _close(subject.run(), subject.dense, 1e-4)
    finally:
        torch._dynamo.reset()
    return WORKS


def group_offload(family: TinyFamily) -> str:
    """Groups of blocks moved in and out (here from CPU to CPU)."""

    def apply(pipe: Any) -> None:
        for part in transformers(pipe):
            part.enable_group_offload(
                onload_device=torch.device("cpu"),
                offload_device=torch.device("cpu"),
                offload_type="block_level",
                num_blocks_per_group=1,
            )

    if not transformers(family()[0])[0]._supports_group_offloading:
        return "diffusers has no group offloading for this transformer"
    return in_either_order(family, apply)


def model_offload(family: TinyFamily) -> str:
    """Whole models moved in and out, by the hooks that `enable_model_cpu_offload` sets."""
    from accelerate import cpu_offload_with_hook

    def apply(pipe: Any) -> None:
        for part in transformers(pipe):
            cpu_offload_with_hook(part, torch.device("cpu"))

    return in_either_order(family, apply)


def sequential_offload(family: TinyFamily) -> str:
    """Each layer moved in and out, by the hooks that `enable_sequential_cpu_offload` sets."""
    from accelerate import cpu_offload

    def apply(pipe: Any) -> None:
        for part in transformers(pipe):
            cpu_offload(part, torch.device("cpu"))

    return in_either_order(family, apply)


def layerwise_casting(family: TinyFamily) -> str:
    """Weights stored in 8 bits."""

    def apply(pipe: Any) -> None:
        for part in transformers(pipe):
            part.enable_layerwise_casting(
                storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
            )

    return in_either_order(family, apply)


def fused_qkv(family: TinyFamily) -> str:
    """Query, key and value projections fused."""
    if not hasattr(transformers(family()[0])[0], "fuse_qkv_projections"):
        return "diffusers fuses no projections of this transformer"

    def apply(pipe: Any) -> None:
        for part in transformers(pipe):
            part.fuse_qkv_projections()

    # families that fuse by other processors lose the wrappers, which a warning says: caching alone
    return in_either_order(family, apply, tolerance=1e-5)


def lora(family: TinyFamily) -> str:
    """An adapter on the blocks: put on before or after, switched off, fused, taken away.

    Unfusing subtracts what fusing added, which leaves weights equal up to rounding; clusters of
    attention methods would turn that into another picture, so a cache alone is on.
    """
    from peft import LoraConfig

    if not hasattr(transformers(family()[0])[0], "add_adapter"):
        return "diffusers puts no LoRA on this transformer"
    subject = Subject(family, STEPS)
    pipe = subject.pipe

    def put_on(pipe: Any) -> None:
        torch.manual_seed(3)
        for part in transformers(pipe):
            part.add_adapter(
                LoraConfig(r=2, init_lora_weights=False, target_modules=r".*(to_q|to_k|to_query)")
            )

    ditaccel.accelerate(pipe, CACHE.skipping)
    plain = subject.run()
    put_on(pipe)
    adapted = subject.run()
    assert not torch.equal(adapted, plain)
    # Merging rounds weights, and random models amplify that along the steps; an adapter that got
    # lost would differ by `effect`.
    effect = float((adapted - plain).abs().max())
    tolerance = max(1e-4, min(1e-3, effect / 10))
    for part in transformers(pipe):
        part.disable_adapters()
    assert torch.equal(subject.run(), plain)
    for part in transformers(pipe):
        part.enable_adapters()
    assert torch.equal(subject.run(), adapted)
    for part in transformers(pipe):
        part.fuse_lora()
    _close(subject.run(), adapted, tolerance)
    for part in transformers(pipe):
        part.unfuse_lora()
    _close(subject.run(), adapted, tolerance)
    for part in transformers(pipe):
        part.delete_adapters("default")
    _close(subject.run(), plain, tolerance)
    ditaccel.restore(pipe)
    _close(generate(pipe, subject.call), subject.dense, tolerance)
    before = subject.fresh()
    put_on(before)
    ditaccel.accelerate(before, CACHE.skipping)
    assert torch.equal(generate(before, subject.call), adapted)
    return WORKS


def int8_weights(family: TinyFamily) -> str:
    """Linear layers with weights in 8 bits by torchao."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError:
        return "torchao is not installed"

    def apply(pipe: Any) -> None:
        for part in transformers(pipe):
            quantize_(part, Int8WeightOnlyConfig())

    return in_either_order(family, apply)


COMPOSITIONS: dict[str, Callable[[TinyFamily], str]] = {
    "compiled blocks": compiled_blocks,
    "compiled as a whole": compiled_whole,
    "group offload": group_offload,
    "model offload": model_offload,
    "sequential offload": sequential_offload,
    "fp8 storage": layerwise_casting,
    "fused QKV": fused_qkv,
    "LoRA": lora,
    "int8 weights": int8_weights,
}
