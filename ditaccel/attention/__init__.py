"""Attention methods: one file each; `processor.py` is the only one that touches processors."""
