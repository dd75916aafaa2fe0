"""What `doctor` found, as values, and how it is printed."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..caching.engine.budget import size
from .known_before import PublishedSource

_WIDTH = 80  # of the text that is printed
_COLUMN = " " * len("  attention  ")  # to what is said of a transformer
_SPACE = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class MethodVerdict:
    """Whether a method applies.

    Attributes:
        name: of the method.
        kind: `cache` or `attention`.
        reason: why it does not apply; empty where it does.
        memory: bytes that its cache takes for two guidance branches; None where unknown.
        note: what remains to be seen where it applies, or why it does nothing.
        idle: whether it applies, and would do nothing at the size of the call.
        limit: bytes of memory that this machine has for its cache, where that is too little.
        pays: where it saves time, as far as that is known before a run.
        to_fit: how to measure the constants that it needs of the model first; empty where it needs
            none, or has them.
    """

    name: str
    kind: str
    reason: str = ""
    memory: int | None = None
    note: str = ""
    idle: bool = False
    limit: int | None = None
    pays: str = ""
    to_fit: str = ""

    @property
    def works(self) -> bool:
        """Whether it would do something."""
        return not self.reason and not self.idle and not self.to_fit


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
        dtype: for which memory is estimated.
        text_tokens: in the same sequence or beside it, for which memory is estimated; 0 where there
            are none, or where the pipeline does not tell.
    """

    component: str
    kind: str
    blocks: list[tuple[str, str, int]]
    attention: list[tuple[str, str, int]]
    text: str
    width: int | None
    tokens: int
    dtype: str = "float32"
    text_tokens: int = 0


@dataclass(repr=False)
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
        presets: names of the family's presets, and of schedules published for the checkpoint.
        checkpoint: name of the published checkpoint that this is, empty for none that is known.
        schedules: what was published for it.
        few_steps: what each preset gains in a loop of few steps; empty for other loops.
        auto_steps: what `steps="auto"` runs with each preset that chooses the number of steps.
        recommendation: what to call, and why; empty where nothing can be accelerated.
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
    checkpoint: str = ""
    schedules: list[PublishedSource] = field(default_factory=list)
    few_steps: list[str] = field(default_factory=list)
    auto_steps: list[str] = field(default_factory=list)
    recommendation: str = ""
    backends: dict[str, str | None] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether `accelerate` would do something."""
        return not self.problem and any(m.works for m in self.methods)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {**dataclasses.asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        lines = [f"ditaccel doctor: {self.pipeline}, family {self.family or 'unknown'}"]
        for facts in self.transformers:
            lines += _transformer_lines(facts)
        lines += [f"Scheduler: {k}: {v}" for k, v in self.scheduler.items()]
        apart = {name for each in self.schedules for name in each.names}
        if self.presets:
            lines.append(f"Presets: {', '.join(p for p in self.presets if p not in apart)}")
        if self.schedules:
            lines.append(f"Schedules published for {self.checkpoint} (none was measured here):")
            lines += [f"  {each}" for each in self.schedules]
        lines += [f"Few steps: {line}" for line in self.few_steps]
        lines += [f"With steps='auto': {line}" for line in self.auto_steps]
        lines += _method_lines(self.methods)
        for name, reason in self.backends.items():
            lines.append(f"Kernel backend {name}: {reason or 'can run'}")
        versions = (f"{name}{_SPACE}{version}" for name, version in self.versions.items())
        lines.append(f"Versions: {', '.join(versions)}")
        if self.ok:
            what = f"with {self.config}" if self.config else "by the methods above"
            lines.append(f"Verdict: this pipeline can be accelerated {what}.")
        else:
            why = self.problem or "no method applies (reasons above)"
            lines.append(f"Verdict: nothing would happen: {why}")
        if self.recommendation:
            lines.append(f"Recommended: {self.recommendation}")
        return "\n".join(_wrapped(line) for line in lines)

    def __repr__(self) -> str:
        return str(self)


def _wrapped(line: str) -> str:
    """A line as a terminal shows it, with a hanging indent; long names stay whole."""
    indent = _COLUMN if line.startswith(" ") else " " * 4
    text = textwrap.fill(
        line, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return text.replace(_SPACE, " ")


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
    beside = f" and {facts.text_tokens} of text" if facts.text_tokens else ""
    size = f"{facts.tokens} tokens{beside} in {facts.dtype}, two branches"
    return [*lines, f"  tokens     {text}; {width}; memory below is for {size}"]


def _method_lines(methods: Iterable[MethodVerdict]) -> list[str]:
    lines = []
    for each in methods:
        joint = ", but " if each.idle else ", "
        text = each.reason or each.to_fit or f"works{each.note and joint + each.note}"
        if not each.reason and each.memory is not None:
            text += f", about {size(each.memory)} of cache"
        if not each.reason and each.limit is not None:
            text += (
                f": WILL NOT FIT into the {size(each.limit)} of memory here; "
                "granularity='last_block', target='output' or a lower order take less"
            )
        if each.works and each.pays:
            text += f", {each.pays}"
        lines.append(f"Method {each.name} ({each.kind}): {text}")
    return lines
