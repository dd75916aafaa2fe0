"""What an evaluation is going to take, reported before it starts."""

from __future__ import annotations

from collections.abc import Mapping

from ditaccel.io.progress import duration

_LONG = 120.0


def size_line(prompts: int, seeds: int, rows: int, left: int, kind: str) -> str:
    """How many generations a comparison has.

    Args:
        prompts: that are made.
        seeds: of each.
        rows: that are compared, dense and the fewer-steps rows among them.
        left: generations that are still to be made.
        kind: what a generation makes, in the plural.
    """
    of_each = f" x {seeds} seeds" if seeds > 1 else ""
    total = prompts * seeds * rows
    more = "" if left == total else f", {left:,} of them left"
    word = "prompt" if prompts == 1 else "prompts"
    return f"{prompts} {word}{of_each} x {rows} rows: {total:,} {kind}{more}"


def seconds_left(
    warm: Mapping[str, float], left: Mapping[str, int], dense: str, timed: Mapping[str, int]
) -> float:
    """Seconds that the generations left will take.

    Args:
        warm: of one generation by row; rows without an entry count as long as dense.
        left: generations left by row.
        dense: the dense row's id.
        timed: how many of those are paired with one more dense generation, by row.
    """
    each = {row: warm.get(row, warm[dense]) for row in left}
    return sum(n * each[row] for row, n in left.items()) + sum(timed.values()) * warm[dense]


def time_line(seconds: float) -> str:
    """The time, and what makes it shorter where it is long."""
    line = f"about {duration(seconds)} to go"
    if seconds < _LONG:
        return line
    return f"{line}; a smaller `limit` takes fewer prompts (after Ctrl-C the same run resumes)"
