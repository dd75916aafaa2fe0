"""Denoising loops: which loop, step and branch a transformer call belongs to."""
