"""Kernels and the tile format they share; imports torch and triton only."""
