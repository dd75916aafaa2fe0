"""Attention methods: one file each. What carries them out is in `engine/`."""
