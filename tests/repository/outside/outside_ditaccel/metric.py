"""A metric: how far the levels of a picture are off."""

from ditaccel.eval.metrics.base import Better, Metric, Unit, register


def levels_off(reference, frames):
    """Mean absolute difference of 8-bit frames `(F, H, W, 3)`, in levels."""
    return float(abs(reference.astype(float) - frames.astype(float)).mean())


register(
    Metric(
        key="levels_off",
        title="levels off",
        unit=Unit.NUMBER,
        better=Better.LOWER,
        about="mean absolute difference to dense, in 8-bit levels",
        run=levels_off,
    )
)
