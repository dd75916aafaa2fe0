"""What ditaccel must know of a family, as plain data. A family is one file with one `ADAPTER`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from .grids import GivenRule, Grid, GridRule, channels_last, frames_first, of_patches, patch_grid

# Where text tokens are in a sequence of text and image or video tokens.
TextSide = Literal["none", "front", "back"]


def packed_tokens(config: Any, shape: tuple[int, ...]) -> int:
    """Image or video tokens of latents that come packed, `(B, L, C)`."""
    return shape[1]


def patch_tokens(config: Any, shape: tuple[int, ...]) -> int:
    """Image or video tokens of latents `(B, C, [F,] H, W)` that are cut into patches."""
    return math.prod(patch_grid(config, shape))


def submodule(module: Any, path: str) -> Any:
    """The submodule at a dotted path, None where a part of it is missing."""
    for part in path.split("."):
        module = getattr(module, part, None)
    return module


# Tolerance, and the share of the loop that is computed before the first forecast. Both follow the
# number of steps: wider steps leave larger errors, which the tolerance then lets pass less often.
# Ordered on every sample at 8 to 50 steps (eval/bench/results/presets.csv). The last number is that
# of steps which a loop of 4 to 12 skips at most.
_LEVELS = {"safe": (0.003, 0.5, 0), "balanced": (0.01, 0.35, 2), "fast": (0.03, 0.25, 3)}

# Presets of attention, `attention:balanced` and `attention:fast`: what won in the tables of
# eval/README.md ("Attention end to end"), training-free. There is no safe one: where attention does
# not pay, a method stays dense by itself.
SPARSE: Mapping[str, Mapping[str, Any]] = {
    "balanced": {"method": "sla", "critical": 0.2},
    "fast": {"method": "sla", "critical": 0.05},
}

# Key of a preset beside the options of its method: the share of the steps asked for that
# `steps="auto"` runs with it. A preset has it where fewer steps with this cache were measured to be
# better, at equal time, than all steps with a more daring one. Without it, that of `balanced`
# holds; where that has none either, `auto` keeps the steps.
AUTO_STEPS = "auto_steps"

# Base of families that call the transformer once per guidance branch.
BY_DIFFERENCE: Mapping[str, Mapping[str, Any]] = {"adaptive_taylor": {"guidance": "difference"}}


def adaptive_presets(
    levels: Mapping[str, tuple[float, float, int]] = _LEVELS,
    auto_steps: Mapping[str, float] = {},
) -> dict[str, dict[str, Any]]:
    """Presets `safe`, `balanced` and `fast`: adaptive Taylor, more and more daring.

    Args:
        levels: preset -> tolerance, share of the loop that is computed first, and steps that are
            skipped where there are few (the method's option `few`).
        auto_steps: preset -> share of the steps asked for that it runs where the user allows it
            (`AUTO_STEPS`).
    """
    return {
        name: {
            "method": "adaptive_taylor",
            "tolerance": tolerance,
            "warmup": warmup,
            "few": few,
            **({AUTO_STEPS: auto_steps[name]} if name in auto_steps else {}),
        }
        for name, (tolerance, warmup, few) in levels.items()
    }


@dataclass(frozen=True)
class ScaleShift:
    """Modulation of blocks that get its rows as an argument (PixArt's adaLN-single and its kin).

    The first row is the shift of what the norm gives, the second one its scale.

    Attributes:
        norm: submodule that only normalises.
        table: parameter `(…, rows, C)` of the block, which is added; empty where there is none.
        timestep: argument of the block, `(B, [L,] rows C)`, `(B, [L,] rows, C)` or
            `(B, rows, L, C)`; `(B, rows, C)` where there is no table.
    """

    norm: str = "norm1"
    table: str = "scale_shift_table"
    timestep: str = "temb"


@dataclass(frozen=True)
class BlockContract:
    """How the blocks of one container are called and what they return.

    Attributes:
        container: attribute of the transformer that holds the blocks.
        hidden: argument that carries the image or video tokens `(B, L, C)`.
        encoder: argument that carries the text tokens where the block returns them too.
        second_stream: argument that carries the tokens of a second stream of latents, which are
            forecast like `hidden` (the sound of a video).
        returns: order of the outputs, of `hidden`, `encoder`, `second_stream` and `hint` (what
            blocks of another container add); one name for a bare tensor.
        joint_text: where text is in `hidden`, `front` or `back`, if these blocks get text and image
            as one sequence from earlier ones that had them apart. Only the image is forecast: text
            may have another length in another guidance branch.
        takes_turns: whether its blocks take turns with those of the contract before it.
        regrouped: whether they get tokens as `(B S, F, C)` where the others get `(B F, S, C)`.
        gives_hints: whether its blocks only give hints to those of a later container, by way of
            the transformer.
        forecast_modules: submodules (dotted paths) whose outputs TaylorSeer forecasts at module
            granularity; one that runs twice in a block is named twice.
        idle_modules: submodules whose outputs only feed forecast ones, and need not run then.
        cross: those of `forecast_modules` that attend to another stream: text, or sound.
        token_axes: arguments besides `hidden` that have a row for each token (rotary embeddings,
            modulation by token), and their axis of tokens; text comes first or last in it where it
            has rows for text too. A block with these can be given fewer tokens. None where it is
            not known, or where the block needs the whole grid.
        added: argument that a block adds to `hidden` before anything else, where it is given.
        modulation: submodule of a block that normalises, scales and shifts what goes into its
            attention by the timestep, where it has one (an adaptive norm); or how the block itself
            scales and shifts what a plain norm gives.
    """

    container: str
    hidden: str = "hidden_states"
    encoder: str | None = None
    second_stream: str | None = None
    returns: tuple[str, ...] = ("hidden",)
    joint_text: Literal["", "front", "back"] = ""
    takes_turns: bool = False
    regrouped: bool = False
    gives_hints: bool = False
    forecast_modules: tuple[str, ...] = ()
    idle_modules: tuple[str, ...] = ()
    cross: tuple[str, ...] = ("attn2", "cross_attn", "cross_attention")
    token_axes: Mapping[str, int] | None = None
    added: str = ""
    modulation: str | ScaleShift = "norm1"

    def kind(self, path: str) -> str:
        """What a forecast module does: `spatial`, `temporal` or `cross` attention, or `mlp`."""
        if path in self.cross:
            return "cross"
        if "att" not in path.rpartition(".")[2]:
            return "mlp"
        return "temporal" if self.regrouped else "spatial"

    @property
    def streams(self) -> tuple[str, ...]:
        """Arguments whose tokens are forecast."""
        return (self.hidden,) if self.second_stream is None else (self.hidden, self.second_stream)


@dataclass(frozen=True)
class AttentionContract:
    """Where the self-attention (or joint attention) of the blocks of one container is.

    Attributes:
        container: attribute of the transformer that holds the blocks.
        module: path of the attention module inside a block.
        breaks_graph: whether its processor breaks the graph when it is compiled; then it runs
            eagerly between the compiled parts of its block.
    """

    container: str
    module: str = "attn1"
    breaks_graph: bool = False


@dataclass(frozen=True)
class FamilyAdapter:
    """One family of pipelines.

    Attributes:
        name: the family's name.
        transformers: class names of its transformers.
        blocks: contracts of the block containers, in the order in which they run; none where
            nothing inside the transformer may be touched: then methods that forecast what it
            returns work, and others are refused.
        attention: where self-attention is, in the order in which it runs; empty where attention
            methods do not apply.
        no_attention_because: why attention methods do not apply, for people, where they do not.
        tokens: number of image or video tokens, from the transformer's config and the shape of
            the latents it is given (stacked, where they come as a list); needed where text tokens
            are in the same sequence.
        extra_tokens: number of tokens beside those of the latents that are not text (of given
            frames or images, of sound), from the transformer's config and the arguments of its
            call by name; less than 0 where text comes in the latents; None where there are none.
            It may give None for a call in which it is not known where text is: attention then
            stays dense.
        extra_in_front: whether they, or given images among the latents, are in front of the tokens
            of what is made; else behind them.
        grid_rule: the grid of the image or video tokens that are made (a rule of `grids`), None
            where it is not known; latents that `patch_tokens` cuts into patches need none. Tokens
            of the latents that are not of the grid are given images where latents come packed, and
            else padding.
        without_given: what changes of the arguments of a call when tokens of given images, behind
            those that are made, are left out of latents that come packed (a rule of `grids`, which
            gives None for calls where that cannot be done); None where no call allows it, or no
            pipeline gives any.
        text: where text tokens are in the sequence: `none`, `front` or `back`.
        presets: preset name -> options of its method, as `AccelerationConfig.to_dict` writes them,
            and `AUTO_STEPS` where it has such a share.
        attention_presets: likewise, those of attention.
        base: method -> options that this family's configs have where nothing else is said
            (`completion.completed`).
        timestep: argument of the transformer that carries the timestep.
        timestep_of: the step's timestep, from the arguments of a call by name, where `timestep`
            also holds those of tokens at other noise levels; None where it holds one for each
            sample.
        sample: argument of the transformer that carries the latents.
        second_stream: argument that carries a second stream of latents, which it returns as second.
        prepares: whether a call, by its arguments, is no step but fills a cache of keys and values
            that the steps read (of a reference, of finished frames): it is computed as it is.
        side_by_side: whether several transformers of a pipeline are called at every step, one for
            each guidance branch; else each has steps of its own (Wan 2.2).
        embedding: submodule of the transformer that embeds the timestep, where a caching method
            looks at that; empty where none does.
        preconditioned: whether, at noise levels beyond 1, latents are mixed into the output (EDM),
            by the pipeline or by its scheduler; the error of a forecast is then weighted, but not
            taken out again.
        converted: from the transformer's config, whether the scheduler gets something else than
            what the transformer returns, or streams of latents have schedules of their own; the
            error of a forecast is then not taken out again. None where it never does.
        guidance: `sequential` (one call per branch) or `batched` (branches side by side).
        provisional: made by `auto.recognise`: a dry run must show how the blocks work.
        checkpoint: of one pipeline, and not of the family: key of the published checkpoint that it
            holds (`schedules.recognised`), empty where it holds none of them, None where nobody
            has looked.
    """

    name: str
    transformers: tuple[str, ...]
    blocks: tuple[BlockContract, ...]
    attention: tuple[AttentionContract, ...] = ()
    no_attention_because: str = ""
    tokens: Callable[[Any, tuple[int, ...]], int] | None = None
    extra_tokens: Callable[[Any, Mapping[str, Any]], int | None] | None = None
    extra_in_front: bool = False
    grid_rule: GridRule | None = None
    without_given: GivenRule | None = None
    text: TextSide = "none"
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    attention_presets: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: SPARSE)
    base: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    timestep: str = "timestep"
    timestep_of: Callable[[Mapping[str, Any]], Any] | None = None
    sample: str = "hidden_states"
    second_stream: str | None = None
    prepares: Callable[[Mapping[str, Any]], bool] | None = None
    side_by_side: bool = False
    embedding: str = ""
    preconditioned: bool = False
    converted: Callable[[Any], bool] | None = None
    guidance: Literal["sequential", "batched"] = "sequential"
    provisional: bool = False
    checkpoint: str | None = None

    @property
    def samples(self) -> tuple[str, ...]:
        """Arguments that carry latents."""
        return (self.sample,) if self.second_stream is None else (self.sample, self.second_stream)

    def is_converted(self, transformer: Any) -> bool:
        """What `converted` says of a transformer."""
        return self.converted is not None and self.converted(getattr(transformer, "config", None))

    def timestep_in(self, named: Mapping[str, Any]) -> Any:
        """The timestep of a call, from its arguments by name; None where it was not given."""
        given = named.get(self.timestep)
        return given if given is None or self.timestep_of is None else self.timestep_of(named)

    def grid(self, config: Any, shape: tuple[int, ...], named: Mapping[str, Any]) -> Grid | None:
        """Frames, rows and columns of the image or video tokens; None where that is not known.

        Args:
            config: of the transformer.
            shape: of the latents that it is given.
            named: the arguments of its call by name.
        """
        rule = self.grid_rule or (of_patches if self.tokens is patch_tokens else None)
        return None if rule is None else rule(config, shape, named)

    @property
    def packed(self) -> bool:
        """Whether latents come as a sequence of tokens, `(B, L, C)`."""
        return self.tokens is packed_tokens

    def volume(self, config: Any, latents: Tensor, named: Mapping[str, Any]) -> Tensor | None:
        """Latents with their places in front of their channels; None where these are not known.

        Packed latents are on the grid of their tokens, those of given images left out; so are
        condition channels behind those that the transformer returns.

        Args:
            config: of the transformer.
            latents: `(B, …)`, as the transformer is given them.
            named: the arguments of its call by name.

        Returns:
            `(B, …, C)`: frames, rows and columns, or whatever there is of them.
        """
        channels = 1
        if self.packed:
            grid = self.grid(config, tuple(latents.shape), named)
            extra = self.extra_tokens(config, named) if self.extra_tokens is not None else None
            tokens = latents.shape[1] + min(extra or 0, 0)  # (text comes with them as zeros)
            if grid is None or math.prod(grid) > tokens:
                return None
            own = latents[:, :tokens] if self.text == "back" else latents[:, -tokens:]
            count = math.prod(grid)  # without given images
            made = own[:, -count:] if self.extra_in_front else own[:, :count]
            latents, channels = made.flatten(2).unflatten(1, grid), -1
        elif self.grid_rule is frames_first:
            channels = 2
        elif self.grid_rule is channels_last:
            channels = -1
        latents = latents.movedim(channels, -1)
        returned = getattr(config, "out_channels", None)
        if returned is None or (self.packed and not isinstance(config.patch_size, int)):
            return latents
        # (of packed latents, a token has the channels of all its places)
        return latents[..., : returned * config.patch_size**2 if self.packed else returned]
