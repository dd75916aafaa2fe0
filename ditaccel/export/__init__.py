"""Schedules for other engines: which steps are computed, in the form that each of them reads."""
