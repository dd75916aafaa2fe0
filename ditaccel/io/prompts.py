"""What a verb that takes several prompts is given: texts, or arguments of the pipeline call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import UsageError

Prompt = str | Mapping[str, Any]


def listed(prompts: Prompt | Iterable[Prompt], name: str = "prompts") -> list[Prompt]:
    """Return prompts as a list; one prompt alone is a list of one, not of its letters.

    Args:
        prompts: texts, or mappings of call arguments (`{"class_labels": [3]}`); one or several.
        name: of the argument, for the message.

    Raises:
        UsageError: there is none, or one is neither text nor a mapping.
    """
    if isinstance(prompts, (str, Mapping)):
        prompts = [prompts]
    if not isinstance(prompts, Iterable):
        raise UsageError(
            f"{name} is of type {type(prompts).__name__}; give prompts, or mappings of arguments "
            "of the pipeline call"
        )
    found = list(prompts)
    if not found:
        raise UsageError(f"{name} is empty: give at least one prompt")
    for i, item in enumerate(found):
        if not isinstance(item, (str, Mapping)):
            raise UsageError(
                f"item {i} of {name} is of type {type(item).__name__}; give prompts, or mappings "
                "of arguments of the pipeline call"
            )
    return found


def as_calls(
    prompts: Prompt | Iterable[Prompt], call: Mapping[str, Any], name: str = "prompts"
) -> list[dict[str, Any]]:
    """Arguments of one pipeline call per prompt: `call`, and what the prompt says on top.

    Raises:
        UsageError: as `listed`.
    """
    return [
        {**call, **({"prompt": item} if isinstance(item, str) else item)}
        for item in listed(prompts, name)
    ]
