"""HTML elements that escape by default."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

VOID = {"meta", "link", "img", "br", "input", "source"}


class Markup(str):
    """Text that is HTML already and must not be escaped again."""

    __slots__ = ()


Child = str | int | float | None | Iterable["Child"]


def raw(text: str) -> Markup:
    """Mark `text` as HTML. Only for text written by this package, never for prompts or labels."""
    return Markup(text)


def _render(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return str(child)
    if isinstance(child, str):
        return escape(child, quote=False)
    if isinstance(child, int | float):
        return str(child)
    return "".join(_render(part) for part in child)


def el(tag: str, *children: Child, **attributes: object) -> Markup:
    """Build one element.

    Args:
        tag: element name.
        children: escaped unless they are `Markup`; iterables are joined, None is left out.
        attributes: `cls` is `class`, `_` in a name becomes `-`, True gives a bare attribute,
            None and False leave it out. Values are escaped.

    Returns:
        The element as `Markup`.
    """
    parts = [tag]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        key = "class" if name == "cls" else name.rstrip("_").replace("_", "-")
        parts.append(key if value is True else f'{key}="{escape(str(value))}"')
    opening = f"<{' '.join(parts)}>"
    if tag in VOID:
        return Markup(opening)
    return Markup(f"{opening}{_render(children)}</{tag}>")


def breakable(text: str) -> Markup:
    """Escaped text that may break after `:` and `,`, as long specs must on narrow screens."""
    return Markup(re.sub(r"([:,])(?=\S)", r"\1<wbr>", escape(text, quote=False)))


def join(parts: Iterable[Child]) -> Markup:
    """Concatenate children, escaping those that are not `Markup`."""
    return Markup(_render(parts))
