"""The student of attention tile (Efficient-vDiT): weights that learn from few frames."""

from __future__ import annotations

from ...attention.attention_tile import AttentionTileConfig
from ..attention_student import AttentionStudent
from ..student import student


@student(AttentionTileConfig)
class AttentionTileStudent(AttentionStudent):
    """Learns the weights of the attention modules by distillation."""
