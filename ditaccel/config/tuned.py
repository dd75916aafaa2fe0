"""What a config was tuned on, and what it gave there: its provenance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError
from ..io.files import plain
from ..io.given import suggest
from .option_types import checked

_TABLES = ("versions", "figures", "profile")


@checked(but=_TABLES)
@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What a config was tuned on; `accelerate` warns where a run differs.

    Attributes:
        model: class of the pipeline.
        weights: hash of its weights (`io.provenance.fingerprint_of`).
        family: of its transformers.
        steps: of the loop.
        latents: shape of one sample's latents as the transformer gets them.
        dtype: of the transformer's weights.
        device: that seconds were measured on.
        prompts: how many were learnt from.
        prompts_hash: of their calls.
        versions: of what computed the figures.
        figures: name -> value, and the ends of its 95 % interval.
        profile: per step at which forecasts were judged, `(step, low, middle, high)` of the error
            that they left in the latents, over the tuning's runs (`reports.drift`).
    """

    model: str = ""
    weights: str = ""
    family: str = ""
    steps: int | None = None
    latents: tuple[int, ...] = ()
    dtype: str = ""
    device: str = ""
    prompts: int = 0
    prompts_hash: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    profile: tuple[tuple[float, ...], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what is empty is left out."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: plain(value) for name, value in fields.items() if value}

    @classmethod
    def from_dict(cls, data: Any) -> Tuned:
        """Read what `to_dict` wrote.

        Raises:
            ConfigError: it is of another form.
        """
        if not isinstance(data, Mapping):
            raise ConfigError("'tuned' must be a mapping, as `ditaccel tune` writes it")
        names = [f.name for f in dataclasses.fields(cls)]
        unknown = next((key for key in data if key not in names), None)
        if unknown is not None:
            raise ConfigError(f"'tuned' has no key {unknown!r}{suggest(str(unknown), names)}")
        try:
            profile = tuple(tuple(map(float, row)) for row in data.get("profile", ()))
            figures = {str(k): tuple(map(float, v)) for k, v in data.get("figures", {}).items()}
            versions = {str(k): str(v) for k, v in data.get("versions", {}).items()}
        except (TypeError, ValueError, AttributeError):
            raise ConfigError(
                "'tuned' holds something else than `ditaccel tune` writes; delete the key to use "
                "the config without what it was tuned on"
            ) from None
        if any(len(row) != 4 for row in profile):
            raise ConfigError("'tuned': each row of profile is [step, low, middle, high]")
        if not all(0 <= step < math.inf and min(errors) > 0 for step, *errors in profile):
            raise ConfigError("'tuned': a step of profile is 0 or more, and its errors are above 0")
        made = {**data, "profile": profile, "figures": figures, "versions": versions}
        return cls(**made)
