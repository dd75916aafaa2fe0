"""Paired runs, metrics and reports."""
