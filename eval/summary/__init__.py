"""From results to findings: figures per row, curves, verdicts, and the row to look at first."""
