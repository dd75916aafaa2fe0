"""The student of CLEAR: attention weights that learn to see a circle alone."""

from __future__ import annotations

from ...attention.clear import CLEARConfig
from ..attention_student import AttentionStudent
from ..student import student


@student(CLEARConfig)
class CLEARStudent(AttentionStudent):
    """Learns the weights of the attention modules by distillation, as published."""
