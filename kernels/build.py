"""What is compiled ahead of time: `<operator>/builds.py` yields builds, and `aot` compiles them.

A tool for developers, which wheels leave out.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .triton_common import Launch

DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
"""Triton's names; a pointer has a star in front."""


@dataclass(frozen=True)
class Build:
    """One kernel with its compile-time flags.

    Attributes:
        name: for the table.
        kernel: of a module of `ditaccel.kernels`, `module:function`.
        signature: argument name to type, without the flags.
        flags: compile-time flags.
        options: `num_warps`, `num_stages`.
    """

    name: str
    kernel: str
    signature: dict[str, str]
    flags: dict[str, Any]
    options: dict[str, int]


def build_of(
    name: str,
    kernel: str,
    launch: Launch,
    types: Mapping[str, str],
    *,
    pointers: str,
    absent: Collection[str] = (),
) -> Build:
    """A build as a launcher makes it.

    Args:
        name: for the table.
        kernel: `module:function`, see `Build`.
        launch: flags and options.
        types: of arguments by name. Others are pointers if their names begin with `p_`, else int32.
        pointers: type of these pointers.
        absent: arguments that are None.
    """
    signature = {}
    for argument in kernel_of(kernel).arg_names:
        if argument in absent:
            signature[argument] = "constexpr"
        elif argument not in launch.flags:
            default = pointers if argument.startswith("p_") else "i32"
            signature[argument] = types.get(argument, default)
    return Build(name, kernel, signature, launch.flags, launch.build_options)


def kernel_of(path: str) -> Any:
    """The Triton function that `module:function` names."""
    module, function = path.split(":")
    return getattr(importlib.import_module(f"{__package__}.{module}"), function)
