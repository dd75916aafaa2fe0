"""What `accelerate` would do to a pipeline, and why not: nothing is run, nothing is changed.

Every method is really put on and taken off again, so that a reason given here is the one that
`accelerate` would give. Modules may lie on the meta device: no weight is read.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
import platform
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from . import config as configs
from .api import _components, _transformers
from .attention.runtime import find_attention
from .caching.blocks import find_blocks
from .caching.budget import size, tensors_per_branch, unit
from .caching.policy import CachePolicy
from .caching.state import BranchState
from .completion import completed
from .config import AccelerationConfig
from .denoising import DenoisingStep, DenoisingTracker
from .errors import DitaccelError, UnsupportedError, UsageError
from .patching import unwrapped
from .pipelines import FamilyAdapter
from .published import published_presets
from .session import Session, session_of, too_few_steps
from .sizes import CallSize, call_size

# Tokens of a 1024 x 1024 picture in patches of 16, and of 81 frames at 832 x 480 (Wan).
_TOKENS = {"image": 4096, "video": 32760}
# Options without which a method has no meaning.
_OPTIONS: dict[str, dict[str, Any]] = {"step_mask": {"steps": (0,)}}


@dataclass(frozen=True)
class MethodVerdict:
    """Whether a method applies.

    Attributes:
        name: of the method.
        kind: `cache` or `attention`.
        reason: why it does not apply; empty where it does.
        memory: bytes that its histories take for two guidance branches; None where unknown.
        note: what remains to be seen where it applies.
    """

    name: str
    kind: str
    reason: str = ""
    memory: int | None = None
    note: str = ""


@dataclass(frozen=True)
class TransformerFacts:
    """What would be patched of one transformer.

    Attributes:
        component: its name in the pipeline.
        kind: its class.
        blocks: `(container, class, number)` in the order in which they run.
        attention: `(container.*.module, processor, number)` of self-attention.
        text: where text tokens stand in the joint sequence: `none`, `front`, `back` or `unknown`.
        width: channels of a token, None where the config does not tell.
        tokens: for which memory is estimated.
    """

    component: str
    kind: str
    blocks: list[tuple[str, str, int]]
    attention: list[tuple[str, str, int]]
    text: str
    width: int | None
    tokens: int


@dataclass
class Diagnosis:
    """What `doctor` found; print it to read it.

    Attributes:
        pipeline: class of the pipeline.
        family: its family, empty where there is none.
        problem: why nothing can be accelerated, or why the chosen config would do nothing.
        transformers: what would be patched.
        scheduler: facts of the scheduler by name.
        config: the config that was asked about.
        methods: which apply.
        presets: names of the family's presets.
        backends: backend of the tile kernel -> why it cannot run here, None where it can.
        versions: package -> version.
    """

    pipeline: str
    family: str = ""
    problem: str = ""
    transformers: list[TransformerFacts] = field(default_factory=list)
    scheduler: dict[str, str] = field(default_factory=dict)
    config: str = ""
    methods: list[MethodVerdict] = field(default_factory=list)
    presets: list[str] = field(default_factory=list)
    backends: dict[str, str | None] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether `accelerate` would do something."""
        return not self.problem and any(not m.reason for m in self.methods)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {**dataclasses.asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        lines = [f"ditaccel doctor: {self.pipeline}, family {self.family or 'unknown'}"]
        for facts in self.transformers:
            lines += _transformer_lines(facts)
        lines += [f"Scheduler: {k}: {v}" for k, v in self.scheduler.items()]
        if self.presets:
            lines.append(f"Presets: {', '.join(self.presets)}")
        lines += _method_lines(self.methods)
        for name, reason in self.backends.items():
            lines.append(f"Kernel backend {name}: {reason or 'can run'}")
        lines.append(f"Versions: {', '.join(f'{k} {v}' for k, v in self.versions.items())}")
        if self.ok:
            what = f"with {self.config}" if self.config else "by the methods above"
            lines.append(f"Verdict: this pipeline can be accelerated {what}.")
        else:
            why = self.problem or "no method applies (reasons above)"
            lines.append(f"Verdict: nothing would happen: {why}")
        return "\n".join(lines)


def _transformer_lines(facts: TransformerFacts) -> list[str]:
    lines = [f"{facts.component}: {facts.kind}"]
    lines += [f"  blocks     {c}: {n} x {kind}" for c, kind, n in facts.blocks]
    lines += [f"  attention  {path}: {n} x {kind}" for path, kind, n in facts.attention]
    text = {
        "none": "no text in the sequence",
        "front": "text, then image or video tokens",
        "back": "image or video tokens, then text",
    }.get(facts.text, "where text stands is seen in a dry run")
    width = f"{facts.width} channels" if facts.width else "unknown width"
    return [*lines, f"  tokens     {text}; {width}; memory below is for {facts.tokens} tokens"]


def _method_lines(methods: Iterable[MethodVerdict]) -> list[str]:
    lines = []
    for each in methods:
        text = each.reason or f"works{each.note and f', {each.note}'}"
        if not each.reason and each.memory is not None:
            text += f", about {size(each.memory)} of cache"
        lines.append(f"Method {each.name} ({each.kind}): {text}")
    return lines


def _count(items: Iterable[tuple[str, str]]) -> list[tuple[str, str, int]]:
    counts: dict[tuple[str, str], int] = {}
    for item in items:
        counts[item] = counts.get(item, 0) + 1
    return [(place, kind, number) for (place, kind), number in counts.items()]


def _width(transformer: nn.Module) -> int | None:
    options = getattr(transformer, "config", None) or {}
    heads, dim = options.get("num_attention_heads"), options.get("attention_head_dim")
    if isinstance(heads, int) and isinstance(dim, int):
        return heads * dim
    named = options.get("hidden_size") or options.get("dim")
    width = getattr(transformer, "inner_dim", None) or named
    return width if isinstance(width, int) else None


def _output_width(transformer: nn.Module) -> int | None:
    """Channels that the transformer returns per token."""
    options = getattr(transformer, "config", None) or {}
    channels = options.get("out_channels") or options.get("in_channels")
    patch = options.get("patch_size", 1)
    if not isinstance(channels, int) or not isinstance(patch, (int, list, tuple)):
        return None
    sizes = [patch, patch, options.get("patch_size_t") or 1] if isinstance(patch, int) else patch
    for step in sizes:
        channels *= step
    return channels


def _facts(
    name: str, transformer: nn.Module, adapter: FamilyAdapter, tokens: int | None
) -> TransformerFacts:
    transformer = unwrapped(transformer)
    lists = {b.container: list(getattr(transformer, b.container, ())) for b in adapter.blocks}
    if not adapter.provisional:
        find_blocks(transformer, adapter.blocks)
    attention = [
        (f"{container}.*.{path}", type(processor).__name__)
        for container, path, processor in _attention(transformer, adapter, lists)
    ]
    kind = type(transformer).__name__
    video = "3D" in kind or "Video" in kind
    return TransformerFacts(
        component=name,
        kind=kind,
        blocks=_count((name, type(each).__name__) for name, part in lists.items() for each in part),
        attention=_count(attention),
        text="unknown" if adapter.provisional else adapter.text,
        width=_width(transformer),
        tokens=tokens or _TOKENS["video" if video else "image"],
    )


def _attention(
    transformer: nn.Module, adapter: FamilyAdapter, lists: dict[str, list[nn.Module]]
) -> Iterator[tuple[str, str, Any]]:
    """`(container, path, processor)` of self-attention; of all attention where that is unknown."""
    if adapter.provisional:
        for container, blocks in lists.items():
            for block in blocks:
                for path, module in block.named_modules():
                    if path and hasattr(module, "processor"):
                        yield container, path, module.processor
    elif adapter.attention:
        for each in find_attention(transformer, adapter.attention):
            container, _, path = each.name.split(".", 2)
            yield container, path, getattr(each.module, "processor", None)


def first_step(scheduler: Any, steps: int | None = None) -> DenoisingStep | None:
    """The first step of a loop of this scheduler; None where it cannot be set up.

    Args:
        scheduler: of the pipeline; it is left alone.
        steps: of the loop; where they are not known, its length is not either.
    """
    scheduler = copy.deepcopy(scheduler)
    options = getattr(scheduler, "config", None) or {}
    extra = {"mu": 0.5} if options.get("use_dynamic_shifting") else {}
    try:
        scheduler.set_timesteps(steps or 20, **extra)
    except Exception:
        # schedulers raise many types where a pipeline would hand more over
        return None
    holder = type("Holder", (), {"scheduler": scheduler})()
    step = DenoisingTracker(holder).observe("transformer", scheduler.timesteps[0])
    return step if steps is not None else dataclasses.replace(step, total=None)


def _scheduler_facts(scheduler: Any, step: DenoisingStep | None) -> dict[str, str]:
    facts = {"class": type(scheduler).__name__}
    if step is None:
        facts["noise levels"] = "not looked at: it cannot be set up without its pipeline"
        return facts
    facts["noise levels"] = "known" if step.sigma is not None else "none that ditaccel can read"
    facts["gap correction"] = "on" if step.additive else "off: it keeps earlier outputs, or clips"
    return facts


def _objection(policy: CachePolicy, step: DenoisingStep | None) -> str:
    """What a policy would say at the first step of this scheduler."""
    if step is None:
        return ""
    try:
        state = BranchState(policy)
        state.place(step)
        if not policy.gate.needs_first_block:
            policy.gate.before(step, state)
    except DitaccelError as error:
        return str(error)
    return ""


def _memory(
    policy: CachePolicy, transformer: nn.Module, adapter: FamilyAdapter, facts: TransformerFacts
) -> int | None:
    outputs = unit(policy) == "outputs"
    width = _output_width(transformer) if outputs else facts.width
    if width is None:
        return None
    if adapter.provisional and policy.granularity == "module":
        return None
    blocks = [] if adapter.provisional else find_blocks(unwrapped(transformer), adapter.blocks)
    count = tensors_per_branch(policy, blocks)
    dtype = getattr(transformer, "dtype", torch.float32)
    return 2 * count * facts.tokens * width * dtype.itemsize


def try_on(transformers: dict[str, nn.Module], config: AccelerationConfig) -> str:
    """Put a config on and take it off again; why it does not apply, empty where it does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Session(None, transformers, config).restore()
    except UnsupportedError as error:
        return str(error)
    return ""


def _backends(transformer: nn.Module, device: torch.device) -> dict[str, str | None]:
    from .kernels import TileMap, Tiling
    from .kernels.attention import why

    options = getattr(transformer, "config", None) or {}
    dim = options.get("attention_head_dim")
    dim = dim if isinstance(dim, int) else 64
    dtype = getattr(transformer, "dtype", torch.float32)
    if device.type == "cpu" and dtype == torch.float16:
        dtype = torch.float32
    q = torch.zeros(1, 1, 128, dim, dtype=dtype, device=device)
    tiles = TileMap.dense(Tiling.fixed(128, 64), Tiling.fixed(128, 64), device=device)
    return why(q, q, q, tiles)


def versions() -> dict[str, str]:
    """Versions of what decides how a pipeline is patched."""
    found = {"python": platform.python_version()}
    for name in ("torch", "diffusers", "transformers", "triton"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def doctor(
    pipe: Any,
    config: Any = None,
    *,
    tokens: int | None = None,
    steps: int | None = None,
    call: Mapping[str, Any] | None = None,
) -> Diagnosis:
    """Say what `accelerate` would do to a pipeline; nothing is run or changed.

    Args:
        pipe: a diffusers pipeline, or a bare transformer; its weights may be on the meta device.
        config: a preset name, path, spec or `AccelerationConfig` to look at; by default all
            methods are, with their own defaults.
        tokens: image or video tokens that a call makes; by default those of `call`, and for the
            estimate of memory those of a common size.
        steps: scheduler steps that the pipeline will be called with.
        call: height, width and frames that it will be called with; by default its own.

    Raises:
        ConfigError: the config is wrong.
        UsageError: this is no pipeline, or it is accelerated.
    """
    found = Diagnosis(type(pipe).__name__, versions=versions())
    try:
        transformers, adapter = _transformers(pipe)
    except UnsupportedError as error:
        found.problem = str(error)
        _components(pipe)
        return found
    if session_of(transformers) is not None:
        raise UsageError("this pipeline is accelerated; call ditaccel.restore(pipe) first")
    found.family, found.presets = adapter.name, [*adapter.presets, *published_presets(adapter.name)]
    try:
        found.transformers = [_facts(n, t, adapter, tokens) for n, t in transformers.items()]
    except UnsupportedError as error:
        found.problem = str(error)
        return found
    scheduler = getattr(pipe, "scheduler", None)
    step = None if scheduler is None else first_step(scheduler, steps)
    if scheduler is not None:
        found.scheduler = _scheduler_facts(scheduler, step)
    chosen = None
    if config is not None:
        chosen = (
            config if isinstance(config, AccelerationConfig) else configs.resolve(config, adapter)
        )
        chosen, _ = completed(chosen, adapter)
        found.config = chosen.label or " & ".join(m.method for m in chosen.methods)
    first = next(iter(transformers.values()))
    ours = call_size(pipe, unwrapped(first), adapter, call)
    tried = chosen.methods if chosen is not None else _all_methods()
    for each in tried:
        setting, _ = completed(AccelerationConfig(**{each.kind: each}), adapter)
        (method,) = setting.methods
        reason = try_on(transformers, setting)
        memory = None
        dry = adapter.provisional
        if method.kind == "cache":
            policy = method.policy()
            reason = reason or _objection(policy, step)
            if not reason and steps is not None:
                reason = too_few_steps(method.method, policy, steps) or ""
            memory = _memory(policy, first, adapter, found.transformers[0])
            dry = dry and not policy.outside
        elif tokens is not None and tokens < method.min_tokens and adapter.text == "none":
            reason = reason or (
                f"{tokens} tokens are fewer than its min_tokens={method.min_tokens}"
            )
        note = "if a dry run at the first call shows how its blocks work" if dry else ""
        if method.kind == "attention" and tokens is None and ours is not None and not note:
            note = _too_short(method, ours)
        found.methods.append(MethodVerdict(method.method, method.kind, reason, memory, note))
    if chosen is not None:
        found.problem = next((m.reason for m in found.methods if m.reason), "")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if found.transformers[0].attention:
        found.backends = _backends(first, device)
    return found


def _too_short(method: Any, size: CallSize) -> str:
    """That an attention method does nothing at a size, and from which on it would."""
    if size.tokens >= method.min_tokens:
        return ""
    longer = size.reaching(method.min_tokens)
    here = f" ({_in_words(size.call)})" if size.call else ""
    more = "" if longer is None else f"; it would from {_in_words(longer)} on"
    return (
        f"but does nothing at this model's size{here}: {size.tokens} tokens are fewer than its "
        f"min_tokens={method.min_tokens}{more}"
    )


def _in_words(call: Mapping[str, int]) -> str:
    return ", ".join(f"{key}={value}" for key, value in call.items())


def _all_methods() -> list[Any]:
    return [cls(**_OPTIONS.get(name, {})) for name, cls in configs.methods().items()]
