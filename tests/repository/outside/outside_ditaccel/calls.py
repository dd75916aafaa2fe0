"""A call method: what the transformer returns is rounded."""

from dataclasses import dataclass

from ditaccel.calls.engine.method import CallLog, CallMethod
from ditaccel.config import CallConfig, Example, method, require
from ditaccel.core.outputs import tensors_of, with_tensors


class Rounding(CallMethod):
    """Looks at nothing inside the transformer."""

    outside = True

    def __init__(self, digits):
        super().__init__()
        self.digits = digits

    def attach(self, site, ledger):
        self.site, self.log = site, CallLog(site.name, "rounded", "of the calls were as they came")

    def carry_out(self, call):
        output = call.dense()
        if self.digits is None:
            self.log.add(False)
            return output
        self.changed = True
        self.log.add(True, 0.0)
        return with_tensors(
            output, [made.round(decimals=self.digits) for made in tensors_of(output)]
        )


@method("rounded")
@dataclass(frozen=True, kw_only=True)
class RoundedConfig(CallConfig):
    """Round what the transformer returns.

    Args:
        digits: behind the point, >= 0; None for all (exact).
    """

    digits: int | None = 2

    def __post_init__(self):
        require(self.digits is None or self.digits >= 0, f"digits is {self.digits}; give 0 or more")

    @classmethod
    def examples(cls):
        return (Example(cls(digits=None), cls(digits=1)),)

    def call_method(self):
        return Rounding(self.digits)
