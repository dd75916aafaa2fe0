"""Report: what happened since `accelerate`, as a value that prints itself."""

from __future__ import annotations

import importlib
import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..errors import UsageError
from ..io.files import plain
from . import text
from .data import CallRecord, ReportData


@dataclass(frozen=True, eq=False, repr=False)
class Report(ReportData):
    """What happened since `accelerate` (or in one generation of it), up to when it was asked for.

    It is a value: runs that follow do not change it, and two reports share nothing. Its attributes
    are those of `ReportData`.

    ```python
    found = ditaccel.report(pipe)
    print(found)                      # short; a notebook shows it with bars
    print(found.details())            # every layer, assumption and warning
    found.computed_share              # 0.41
    found.to_pandas().groupby("cause").size()
    ```
    """

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: strings, numbers, lists and mappings."""
        data: dict[str, Any] = plain(asdict(replace(self, attention=())))
        data["computed_share"] = self.computed_share
        data["attention"] = [row for log in self.attention for row in log.rows()]
        return data

    def to_json(self) -> str:
        """Return JSON."""
        return json.dumps(self.to_dict(), indent=1)

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame` with one row per transformer call.

        Its columns are the attributes of `CallRecord`.

        Raises:
            UsageError: pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError:
            raise UsageError(
                "to_pandas() needs pandas, which is not installed: pip install pandas, or use "
                "to_dict()"
            ) from None
        rows = [asdict(call) | {"cause": call.cause.value} for call in self.calls]
        return pandas.DataFrame(rows, columns=[field.name for field in fields(CallRecord)])

    def details(self) -> str:
        """The report in full: every layer, assumption and warning."""
        return "\n".join(text.details(self))

    def __str__(self) -> str:
        return "\n".join(text.summary(self))

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """The short report as a notebook shows it."""
        return text.html_of(self)
