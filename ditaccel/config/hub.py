"""Configs on the Hugging Face Hub: `hf://user/repo/folder/file.yaml`, `hf://user/repo@v1/file.yaml`."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import UsageError
from ..io.models import line_of

SCHEME = "hf:/"
# (one slash is what a path makes of two)
_ADDRESS = re.compile(
    r"hf://?(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?/(?P<file>[^@]+\.(ya?ml|json))"
)


def is_address(text: str) -> bool:
    """Whether a text means a file on the Hub."""
    return text.startswith(SCHEME)


def fetched(address: str) -> Path:
    """The file at an address, in the Hub's cache: downloaded where it is not there yet.

    Args:
        address: of a YAML or JSON file in a model repository; `@` names a branch, tag or commit.

    Raises:
        UsageError: the address is wrong, or the Hub did not give the file.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise UsageError(
            f"{address!r} is not the address of a config on the Hub; it looks like "
            "hf://user/repo/file.yaml, or hf://user/repo@revision/file.yaml"
        )
    from huggingface_hub import constants, hf_hub_download

    try:
        return Path(hf_hub_download(found["repo"], found["file"], revision=found["revision"]))
    except Exception as error:  # the client raises its own, its transport's, and the system's
        if constants.HF_HUB_OFFLINE:
            raise UsageError(
                f"{address} is not in the Hub's cache, and nothing was asked for, since "
                "HF_HUB_OFFLINE is set: unset it, or give a file"
            ) from None
        raise UsageError(
            f"the Hub did not give {address} ({line_of(error)}); check the address and the network"
        ) from None
