"""What `accelerate` would do to a pipeline, and why not: nothing is run, nothing is changed.

Every method is really put on and taken off again, so that a reason given here is the one that
`accelerate` would give. Modules may lie on the meta device: no weight is read.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .. import config as configs
from ..attention.engine.planner import Planner, planner_of
from ..attention.engine.runtime import find_attention
from ..caching.engine.blocks import find_blocks
from ..caching.engine.correction import check_correction, why_not
from ..caching.engine.fitted import FittedConfig
from ..caching.engine.policy import CachePolicy, policy_of, too_few_steps
from ..config import AccelerationConfig, AttentionConfig, CacheConfig, MethodConfig
from ..config.attention_presets import attention_presets
from ..config.completion import completed
from ..config.option_types import checked_value
from ..config.published import published_presets
from ..core.denoising.experts import boundary_of
from ..core.denoising.schedulers import set_up
from ..core.denoising.tracker import DenoisingStep, DenoisingTracker
from ..core.patching import unwrapped
from ..core.transformers import modules_of, transformers_of, with_checkpoint
from ..errors import DitaccelError, UnsupportedError
from ..pipelines import FamilyAdapter
from ..sessions.open_sessions import sessions_on, suspended
from ..sessions.session import Session
from .findings import Diagnosis, MethodVerdict, TransformerFacts
from .known_before import auto_steps_of, few_steps_of, published_for
from .memory_estimate import cache_bytes, memory_here
from .sizes import CallSize, call_size, text_of

# Tokens of a 1024 x 1024 picture in patches of 16, and of 81 frames at 832 x 480 (Wan).
_TOKENS = {"image": 4096, "video": 32760}


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


def _facts(
    name: str, transformer: nn.Module, adapter: FamilyAdapter, tokens: int | None, text: int
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
        dtype=str(getattr(transformer, "dtype", torch.float32)).removeprefix("torch."),
        text_tokens=text if adapter.text != "none" else 0,
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


def first_step(
    scheduler: Any, steps: int | None = None, pipe: Any = None, converted: bool = False
) -> DenoisingStep | None:
    """The first step of a loop of this scheduler; None where it cannot be set up.

    Args:
        scheduler: of the pipeline; it is left alone.
        steps: of the loop; where they are not known, its length is not either.
        pipe: the pipeline, where it may have two experts.
        converted: `FamilyAdapter.converted`.
    """
    scheduler = set_up(scheduler, steps or 20)
    if scheduler is None:
        return None
    shared = ("config", "transformer", "transformer_2")
    parts = {name: getattr(pipe, name, None) for name in shared}
    holder = type("Holder", (), {**parts, "scheduler": scheduler})()
    tracker = DenoisingTracker(holder)
    step = tracker.observe("transformer", scheduler.timesteps[0], converted=converted)
    return step if steps is not None else dataclasses.replace(step, total=None)


def _scheduler_facts(scheduler: Any, step: DenoisingStep | None) -> dict[str, str]:
    facts = {"class": type(scheduler).__name__}
    if step is None:
        facts["noise levels"] = "not looked at: it cannot be set up without its pipeline"
        return facts
    facts["noise levels"] = "known" if step.sigma is not None else "none that ditaccel can read"
    why = why_not(step)
    facts["gap correction"] = f"off: {why}" if why else "on"
    return facts


def _experts(boundary: float, step: DenoisingStep | None) -> str:
    """Which of two transformers makes which steps."""
    which = f"transformer makes the steps down to timestep {boundary:g}"
    if step is not None and step.parts:
        which = f"transformer makes the first {step.end} of {step.total} steps"
    return f"{which}, transformer_2 the others; forecasts never reach across"


def _objection(policy: CachePolicy, step: DenoisingStep | None) -> str:
    """What a policy would say at the first step of this scheduler."""
    if step is None:
        return ""
    try:
        policy.branch_state().place(step)
        policy.gate.check(step)
        check_correction(policy, step)
    except DitaccelError as error:
        return str(error)
    return policy.gate.falls_back(step)


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
    from ..kernels import TileMap, Tiling, tile_attention_backends

    options = getattr(transformer, "config", None) or {}
    dim = options.get("attention_head_dim")
    dim = dim if isinstance(dim, int) else 64
    dtype = getattr(transformer, "dtype", torch.float32)
    if device.type == "cpu" and dtype == torch.float16:
        dtype = torch.float32
    q = torch.zeros(1, 1, 128, dim, dtype=dtype, device=device)
    tiles = TileMap.dense(Tiling.fixed(128, 64), Tiling.fixed(128, 64), device=device)
    return tile_attention_backends(q, q, q, tiles)


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
        UsageError: it is not a pipeline.
    """
    tokens = checked_value("doctor", "tokens", int | None, tokens)
    steps = checked_value("doctor", "steps", int | None, steps)
    # what is on is off while methods are tried
    with suspended(sessions_on(pipe, modules_of(pipe).values())):
        return _diagnosis(pipe, config, tokens, steps, call)


def _diagnosis(
    pipe: Any,
    config: Any,
    tokens: int | None,
    steps: int | None,
    call: Mapping[str, Any] | None,
) -> Diagnosis:
    found = Diagnosis(type(pipe).__name__, versions=versions())
    try:
        transformers, adapter = transformers_of(pipe)
        adapter = with_checkpoint(pipe, transformers, adapter)
        found.family = adapter.name
        found.presets = [*adapter.presets, *attention_presets(adapter)]
        found.presets += published_presets(adapter)
        found.checkpoint, found.schedules = published_for(adapter)
        expected = steps or (call or {}).get("num_inference_steps")
        total = expected if isinstance(expected, int) else None
        found.few_steps = few_steps_of(adapter, total)
        found.auto_steps = auto_steps_of(adapter, total)
        first = next(iter(transformers.values()))
        size = call_size(pipe, unwrapped(first), adapter, call)
        count = tokens or (None if size is None else size.tokens)
        text = text_of(pipe, call)
        found.transformers = [_facts(n, t, adapter, count, text) for n, t in transformers.items()]
    except UnsupportedError as error:
        found.problem = str(error)
        return found
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scheduler = getattr(pipe, "scheduler", None)
    converted = adapter.is_converted(unwrapped(first))
    step = None if scheduler is None else first_step(scheduler, steps, pipe, converted)
    if scheduler is not None:
        found.scheduler = _scheduler_facts(scheduler, step)
    boundary = boundary_of(pipe)
    if boundary is not None:
        found.scheduler["experts"] = _experts(boundary, step)
    chosen = None
    if config is not None:
        chosen = (
            config if isinstance(config, AccelerationConfig) else configs.resolve(config, adapter)
        )
        chosen, _ = completed(chosen, adapter)
        found.config = chosen.label or " & ".join(m.method for m in chosen.methods)
    examiner = _Examiner(pipe, transformers, adapter, device, step, tokens, steps, size, call)
    tried: list[tuple[Any, Any]] = [(cls, None) for cls in configs.methods().values()]
    if chosen is not None:
        tried = [(type(each), each) for each in chosen.methods]
    found.methods = [examiner.verdict(*each, found.transformers[0]) for each in tried]
    if chosen is not None:
        why = (m.reason or (m.to_fit and f"{m.name} {m.to_fit}") for m in found.methods)
        found.problem = next(filter(None, why), "")
        if not found.problem and all(m.idle for m in found.methods):
            found.problem = "; ".join(f"{m.name} {m.note}" for m in found.methods)
    else:
        found.recommendation = _recommendation(found, transformers, adapter, step, steps)
    if found.transformers[0].attention:
        found.backends = _backends(first, device)
    return found


@dataclasses.dataclass(frozen=True)
class _Examiner:
    """What every method is examined against.

    Attributes:
        pipe: the pipeline.
        transformers: its transformers by name.
        adapter: of their family.
        device: that it would run on.
        step: the first step of its loop, None where it cannot be set up.
        tokens: per call, as the user gave them.
        steps: of the loop, as the user gave them.
        size: of a call, as far as the pipeline says it.
        call: arguments that it will be called with.
    """

    pipe: Any
    transformers: dict[str, nn.Module]
    adapter: FamilyAdapter
    device: torch.device
    step: DenoisingStep | None
    tokens: int | None
    steps: int | None
    size: CallSize | None
    call: Mapping[str, Any] | None

    def verdict(
        self, cls: type[MethodConfig], method: Any, facts: TransformerFacts
    ) -> MethodVerdict:
        """Whether a method would work, and at what cost.

        Args:
            cls: its class.
            method: its config, None for one with its own defaults.
            facts: of the first transformer.

        Returns:
            The verdict; a method from outside that fails, however it does, breaks no other.
        """
        try:
            return self._verdict(cls() if method is None else method, facts)
        except Exception as error:
            own = isinstance(error, DitaccelError)
            reason = str(error) if own else f"its class fails ({type(error).__name__}: {error})"
            return MethodVerdict(cls.method, cls.kind, reason)

    def _verdict(self, method: Any, facts: TransformerFacts) -> MethodVerdict:
        setting, _ = completed(AccelerationConfig.of(method), self.adapter)
        (method,) = setting.methods
        if isinstance(method, FittedConfig) and not method.is_fitted:
            made = f"{type(method).__name__}()"
            to_fit = (
                f"works once its {method.fits} are measured: config = ditaccel.fit(pipe, {made}, "
                "prompts)"
            )
            return MethodVerdict(method.method, method.kind, to_fit=to_fit)
        found = MethodVerdict(method.method, method.kind, try_on(self.transformers, setting))
        dry = self.adapter.provisional
        if isinstance(method, CacheConfig):
            policy = policy_of(method)
            found = self._with_cache(found, policy, facts)
            dry = dry and not policy.outside
        if dry:
            note = "if a dry run at the first call shows how its blocks work"
            found = dataclasses.replace(found, note=note)
        if isinstance(method, AttentionConfig):
            found = self._with_attention(found, planner_of(method))
        return found

    def _with_cache(
        self, found: MethodVerdict, policy: CachePolicy, facts: TransformerFacts
    ) -> MethodVerdict:
        reason = found.reason or _objection(policy, self.step)
        if not reason and self.steps is not None:
            reason = too_few_steps(found.name, policy, self.steps) or ""
        first = next(iter(self.transformers.values()))
        text = text_of(self.pipe, self.call)
        memory = cache_bytes(
            policy, first, self.adapter, facts.tokens, facts.width, self.step, text
        )
        room = memory_here(self.device)
        limit = room if memory and room and memory > room else None
        return dataclasses.replace(found, reason=reason, memory=memory, limit=limit)

    def _with_attention(self, found: MethodVerdict, planner: Planner) -> MethodVerdict:
        reason, note, least = found.reason, found.note, planner.least_tokens
        if self.tokens is not None and self.tokens < least and self.adapter.text == "none":
            reason = reason or f"{self.tokens} tokens are fewer than its min_tokens={least}"
        idle = ""
        if self.tokens is None and self.size is not None and not note:
            idle = _too_short(planner, self.size)
        return dataclasses.replace(
            found,
            reason=reason,
            note=note or idle,
            idle=bool(idle),
            pays=_pays(planner, self.device),
        )


def _too_short(planner: Planner, size: CallSize) -> str:
    """That an attention method does nothing at a size, and from which on it would."""
    if size.tokens >= planner.least_tokens:
        return ""
    longer = size.reaching(planner.least_tokens)
    here = f" ({_in_words(size.call)})" if size.call else ""
    more = "" if longer is None else f"; it would from {_in_words(longer)} on"
    return (
        f"does nothing at this model's size{here}: {size.tokens} tokens are fewer than its "
        f"min_tokens={planner.least_tokens}{more}"
    )


def _pays(planner: Planner, device: torch.device) -> str:
    """Where an attention method saves time: what it keeps shows in the first steps of a run."""
    share = 100 * planner.pays_below
    found = []
    if share < 100:
        found.append(
            f"in layers that keep under {share:.0f} % of their attention; others stay dense"
        )
    if planner.precision != "model":
        scores = "with 8-bit scores"
        if device.type == "cpu":
            scores += ", which save no time on a CPU (it computes the same numbers in float32)"
        found.append(scores)
    return "; ".join(found)


def _recommendation(
    found: Diagnosis,
    transformers: dict[str, nn.Module],
    adapter: FamilyAdapter,
    step: DenoisingStep | None,
    steps: int | None,
) -> str:
    """What to call, and why: the family's preset, else the first method that works."""
    reasons = []
    for name in sorted(adapter.presets, key=lambda name: name != "balanced"):
        setting = configs.preset(name, adapter)
        (method,) = setting.methods
        reason = try_on(transformers, setting)
        if not reason and isinstance(method, CacheConfig):
            policy = policy_of(method)
            reason = _objection(policy, step)
            if not reason and steps is not None:
                reason = too_few_steps(name, policy, steps) or ""
        if not reason:
            return (
                f"ditaccel.accelerate(pipe, {name!r}): the preset that was set for this family "
                f"({method.method}), and it applies here"
            )
        reasons.append(reason)
    known = configs.methods()
    better = [m for m in found.methods if m.works and not m.note and not known[m.name].baseline]
    if not better:
        return ""
    why = (
        f"the presets do not apply ({reasons[0]}), and" if reasons else "the family has no preset;"
    )
    return (
        f"ditaccel.accelerate(pipe, {better[0].name!r}): {why} this is the first method that "
        "applies; compare it with dense runs before you rely on it (ditaccel eval)"
    )


def _in_words(call: Mapping[str, int]) -> str:
    return ", ".join(f"{key}={value}" for key, value in call.items())
