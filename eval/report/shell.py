"""What every page has: policy, style, script, and a way to write it all or nothing."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from ditaccel.eval.report.markup import Child, el, raw
from ditaccel.eval.report.series import PALETTE

from ditaccel.errors import UsageError
from ditaccel.io.checked import legible

# The page may load nothing at all: pictures and videos are data URIs, style and script are inline.
POLICY = (
    "default-src 'none'; img-src data:; media-src data:{media}; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'"
)


def _asset(name: str) -> str:
    return resources.files("ditaccel.eval.report").joinpath(name).read_text(encoding="utf-8")


def _style() -> str:
    light = "".join(f"--s{i}:{pair[0]};" for i, pair in enumerate(PALETTE))
    dark = "".join(f"--s{i}:{pair[1]};" for i, pair in enumerate(PALETTE))
    colours = f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return colours + _asset("page.css")


def document(title: str, header: Child, main: Child, own_media: bool = False) -> str:
    """A whole page around `header` and `main`.

    Args:
        title: of the window.
        header: top of the page.
        main: the rest.
        own_media: whether it may play videos that lie in folders beside it.
    """
    policy = POLICY.format(media=" file: 'self'" if own_media else "")
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("link", rel="icon", href="data:,"),
        el("title", title),
        el("style", raw(_style())),
    )
    body = el(
        "body",
        header,
        el("main", main),
        el("div", id="tip", role="tooltip", hidden=True),
        el("script", raw(_asset("page.js"))),
    )
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


def write_text(path: Path, text: str) -> Path:
    """Write all or nothing.

    Raises:
        UsageError: `path` cannot be written.
    """
    draft = path.with_name(path.name + ".tmp")
    try:
        # A lone surrogate, half of a cut emoji, must not cost the page.
        draft.write_bytes(legible(text).encode("utf-8"))
        os.replace(draft, path)
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error.strerror}): choose another folder") from None
    return path
