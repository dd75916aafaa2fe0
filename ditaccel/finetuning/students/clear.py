"""The student of CLEAR: attention weights that learn to see a circle alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...attention.clear import CLEARConfig
from ...attention.engine.runtime import find_attention
from ...core.outputs import tensors_of
from ..attention_student import AttentionStudent
from ..student import Backward, student
from ..teacher import Teacher, TeacherCall

_EVERY = 4  # one attention layer in so many is compared (published)


@student(CLEARConfig)
class CLEARStudent(AttentionStudent):
    """Learns the weights of the attention modules by distillation, as published.

    To the error of the output comes that of some attention layers, at the same weight; what is left
    out is the loss of flow matching on pictures, which are not asked for here.
    """

    def learn(self, lesson: TeacherCall, teacher: Teacher, backward: Backward) -> None:
        """See `Student`: the teacher runs again, for what its attention layers give."""
        with torch.no_grad(), self.dense(), self._seen(lesson.component) as wanted:
            teacher.output(lesson)
        with self._seen(lesson.component) as own:
            output = self.output(lesson, teacher)
        loss = (output.float() - lesson.target.to(output.device).float()).square().mean()
        pairs = [(x.float() - y.float()).square().mean() for x, y in zip(own, wanted, strict=True)]
        backward(loss + torch.stack(pairs).mean())

    @contextmanager
    def _seen(self, component: str) -> Iterator[list[Tensor]]:
        """What some attention layers give meanwhile, in the order in which they run."""
        found: list[Tensor] = []

        def keep(module: Any, args: Any, output: Any) -> None:
            found.append(tensors_of(output)[0])

        transformer = self.subject.transformers[component]
        layers = find_attention(transformer, self.subject.family.attention)
        handles = [each.module.register_forward_hook(keep) for each in layers[::_EVERY]]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()
