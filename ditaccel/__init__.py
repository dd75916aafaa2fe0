"""ditaccel: faster diffusion transformers for diffusers."""
