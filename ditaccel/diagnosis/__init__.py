"""`doctor`: what would be accelerated in a pipeline, what would not, and why."""

from .checks import Diagnosis, doctor

__all__ = ["Diagnosis", "doctor"]
