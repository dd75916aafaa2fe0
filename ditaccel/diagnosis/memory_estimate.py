"""How much memory a cache will take, from configs alone: the sum that a run's budget is held to."""

from __future__ import annotations

import os

import torch
from torch import nn

from ..caching.engine.blocks import find_blocks
from ..caching.engine.budget import for_followers, full
from ..caching.engine.policy import CachePolicy
from ..caching.engine.state import Snapshot
from ..core.denoising.tracker import DenoisingStep
from ..core.patching import unwrapped
from ..pipelines import FamilyAdapter, submodule


def output_width(transformer: nn.Module) -> int | None:
    """Channels that the transformer returns per token; None where its config does not tell."""
    options = getattr(transformer, "config", None) or {}
    channels = options.get("out_channels") or options.get("in_channels")
    patch = options.get("patch_size", 1)
    if not isinstance(channels, int) or not isinstance(patch, (int, list, tuple)):
        return None
    sizes = [patch, patch, options.get("patch_size_t") or 1] if isinstance(patch, int) else patch
    for step in sizes:
        channels *= step
    return channels


def cache_bytes(
    policy: CachePolicy,
    transformer: nn.Module,
    adapter: FamilyAdapter,
    tokens: int,
    width: int | None,
    step: DenoisingStep | None,
    text: int = 0,
) -> int | None:
    """Bytes that a policy's cache holds at most, for two guidance branches.

    Args:
        policy: what is to be done.
        transformer: its modules may be on the meta device.
        adapter: its family.
        tokens: image or video tokens.
        width: channels of a token.
        step: the first one of the loop; None where the scheduler is not known.
        text: text tokens beside them, where they are in one sequence.

    Returns:
        None where the configs do not tell.
    """
    returned = output_width(transformer)
    if returned is None or (width is None and not policy.target_class.whole_call):
        return None
    if adapter.provisional and policy.granularity == "module":
        return None
    size = getattr(transformer, "dtype", torch.float32).itemsize
    numbers, hidden = tokens * returned, tokens * (width or 0) * size
    text = 0 if adapter.text == "none" else text
    begins_joint = bool(adapter.blocks and adapter.blocks[0].joint_text)
    branch = Snapshot(
        hidden=numbers * size if policy.target_class.whole_call else hidden,
        first=hidden + begins_joint * text * (width or 0) * size,
        modules=0
        if policy.granularity != "module"
        else _modules(transformer, adapter, tokens, text) * (width or 0) * size,
        output=numbers * size,
        numbers=numbers,
        feedback=step is not None and step.response is not None and step.feedback > 0.0,
        streams=len(adapter.samples),
    )
    if adapter.guidance == "sequential":
        return full(policy, [branch, branch])
    # both branches side by side, in one call
    return full(policy, [branch]) + full(policy, [branch]) - for_followers(policy, branch)


def _modules(transformer: nn.Module, adapter: FamilyAdapter, tokens: int, text: int) -> int:
    """Tokens of all modules' outputs that are forecast.

    Where text is in the sequence or comes back from a block, a module is taken to return both: some
    return one of them (`ff_context`), others both (attention).
    """
    count = 0
    for block in find_blocks(unwrapped(transformer), adapter.blocks):
        contract = block.contract
        joint = contract.encoder is not None or contract.joint_text
        for name in contract.forecast_modules:
            if submodule(block.module, name) is not None:
                count += tokens + (text if joint else 0)
    return count


def memory_here(device: torch.device) -> int | None:
    """Bytes of memory of a device; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
