"""File names of outputs: a template filled in, never evaluated, never a way out of the folder."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from ..io.given import shown

DEFAULT = "{prompt}-s{seed}-{id}"
PRESETS = {"vbench": "{text}-{take}"}
FIELDS = ("id", "row", "prompt", "text", "take", "seed")
_PART = re.compile(r"\{([^{}]*)\}")
_SLUG, _LENGTH = 60, 180
# Bytes of a row's own name: suffixes and what drafts add must still fit into the system's 255.
_OWN = 200
# Bytes of a template: what it makes must fit into a path.
_TEMPLATE = 500


def check_template(template: str) -> str:
    """Return the template (a preset's name becomes its text).

    Raises:
        ConfigError: an unknown field, or one with a format, an index or an attribute.
    """
    template = PRESETS.get(template, template)
    if re.search(r"[\x00-\x1f\ud800-\udfff]", template):
        raise ConfigError(f"{shown(template)}: it holds what no file name can", "name")
    if len(template.encode()) > _TEMPLATE:
        raise ConfigError(f"{shown(template)}: longer than {_TEMPLATE} bytes", "name")
    for name in _PART.findall(template):
        if name not in FIELDS and not re.fullmatch(r"meta\.\w+", name):
            raise ConfigError(
                f"{shown(template)}: unknown field {{{name}}}; known: "
                f"{', '.join('{' + f + '}' for f in FIELDS)}, {{meta.COLUMN}}; presets: "
                f"{', '.join(PRESETS)}",
                "name",
            )
    rest = _PART.sub("", template)
    if "{" in rest or "}" in rest:
        raise ConfigError(f"{template!r}: a brace is not closed", "name")
    if template.startswith("/") or not all(part.strip(" .-") for part in template.split("/")):
        raise ConfigError(f"{template!r}: it must name a file inside the output folder", "name")
    return template


def slug(text: str) -> str:
    """Text as part of a file name: letters, digits, `.`, `_` and `-` of any script.

    Args:
        text: a prompt.
    """
    kept = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", text)).strip("-.")
    return kept[:_SLUG].rstrip("-.")


def _literal(text: str) -> str:
    """Text with only what a path cannot hold replaced."""
    return re.sub(r"[\x00-\x1f/\\:]+", " ", unicodedata.normalize("NFC", text)).strip(" .")


def fill(template: str, values: Mapping[str, Any]) -> str:
    """A path relative to the output folder, without suffix.

    Args:
        template: of `check_template`.
        values: of the fields; a missing one becomes nothing.

    Raises:
        ConfigError: nothing is left of it.
    """

    def value(match: re.Match[str]) -> str:
        field = match.group(1)
        text = str(values.get(field, ""))
        return _literal(text) if field == "text" else slug(text)

    parts = []
    # Split before filling in: a value can never add a folder.
    for part in template.split("/"):
        filled = _PART.sub(value, part).strip(" .-")
        filled = filled.encode()[:_LENGTH].decode(errors="ignore").rstrip(" .-")
        if filled:
            parts.append(filled)
    if not parts:
        raise ConfigError(f"the file name {template!r} comes out empty; add {{id}}")
    return "/".join(parts)


def check_name(name: str) -> str:
    """The `name` of a row.

    Raises:
        ConfigError: it is a path, too long, or holds what no file name can.
    """
    if not name or name.startswith(".") or re.search(r"[\x00-\x1f/\\]", name):
        raise ConfigError(f"name {shown(name)} is no file name: no path, no leading dot")
    size = len(name.encode())
    if size > _OWN:
        raise ConfigError(f"name {shown(name)} is too long: {size} bytes, {_OWN} are the most")
    return name
