"""An accelerated pipeline, and which of them are open."""
