"""What SLA's options are where neither the config nor a file of weights says it."""

from __future__ import annotations

from typing import Any

from ...config import require

# Modes with a projection that has to be trained.
TRAINED = ("sla", "combined")
DEFAULTS: dict[str, Any] = {
    "critical": 0.05,
    "negligible": 0.0,
    "feature_map": "softmax",
    "linear": "marginal",
    "projection": "per_head",
    "cube": None,
    "q_tile": None,
    "k_tile": None,
}
# ... and in the modes `sla` and `sparse`.
PUBLISHED: dict[str, Any] = {"negligible": 0.1, "cube": []}
# Options that weights are trained for: those of a config must agree.
SHARED = (
    "mode",
    "critical",
    "negligible",
    "feature_map",
    "linear",
    "projection",
    "cube",
    "q_tile",
    "k_tile",
)


def check_sum(critical: float, negligible: float) -> None:
    """Check that critical and negligible tiles are not more than there are."""
    require(
        critical + negligible <= 1.0 + 1e-9,
        f"critical={critical:g} and negligible={negligible:g} add up to more than 1; they are "
        "shares of the same key tiles",
    )
