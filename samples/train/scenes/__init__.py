"""The harder samples: textured scenes that few forecasts get right.

What makes real models hard to cache is that most of their latents is fine detail that nobody can
foretell until the noise is low. So there is much of it here: noise of many octaves, stripes of
random phase, bricks and leaves with a tone of their own, on everything, under a light that the
prompt leaves open.
"""
