"""The only file that touches attention processors: the seam through which attention is replaced.

A wrapping processor stands in for a module's own one and runs that one's very code, with one thing
exchanged: the attention function it calls. The code object is bound to a copy of its globals in
which `dispatch_attention_fn` and `F.scaled_dot_product_attention` lead here. So projections, norms
and RoPE are never copied, no class and no module global changes, and families that call SDPA
directly are served like those that use the dispatcher. Under `torch.compile` the call is one opaque
operator that gets the layer's number as a tensor: all layers of a model share one graph.
"""

from __future__ import annotations

import functools
import itertools
import types
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core._compat import ulysses
from ...core.patching import PatchLedger
from ...core.ranks import Ranks
from ...errors import UnsupportedError

_SEAMS = ("dispatch_attention_fn", "F")
_OWN = ("_ditaccel_inner", "_ditaccel_layer", "_ditaccel_call", "_ditaccel_number")
_NUMBERS = itertools.count()
_LAYERS: weakref.WeakValueDictionary[int, LayerSeam] = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class Split:
    """What there is to know of a call whose tokens are shared out over ranks (Ulysses).

    Attributes:
        ranks: that take part.
        uneven: whether their parts may differ in size.
        dense: the family's own attention, without ranks, on q, k, v `(B, H, L, D)` and a mask:
            some heads of whole sequences.
    """

    ranks: Ranks
    uneven: bool
    dense: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]

    @classmethod
    def of(cls, config: Any, dense: Callable[..., Tensor]) -> Split | None:
        """Of a `parallel_config` of diffusers; None for ring attention."""
        found = ulysses(config)
        return None if found is None else cls(*found, dense)


class Attend(Protocol):
    """What runs in place of a layer's attention, on `(B, H, L, D)` views."""

    def __call__(
        self,
        layer: int,
        dense: Callable[[], Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float | None,
        split: Split | None = None,
    ) -> Tensor:
        """Return the output `(B, H, L, D)`; `dense()` gives the family's own.

        With `split`, tensors hold this rank's tokens of all heads, and so does the output.
        """
        ...


@dataclass(frozen=True)
class AttentionModule:
    """A self-attention module and its name for people.

    Attributes:
        breaks_graph: `AttentionContract.breaks_graph`.
    """

    name: str
    module: nn.Module
    breaks_graph: bool = False


class LayerSeam:
    """What a wrapping processor leads to: layer `index` of one runtime.

    Attributes:
        breaks_graph: `AttentionContract.breaks_graph`.
        closed: whether the wrapper was undone. diffusers may still put it back (`fuse_*` keeps the
            processors it replaces, for `unfuse_*`); it then runs dense.
        processor: the family's own, which the newest wrapper runs.
    """

    def __init__(self, index: int, attend: Attend, breaks_graph: bool = False) -> None:
        self.index = index
        self.breaks_graph = breaks_graph
        self.attend = attend
        self.closed = False
        self.processor: Any = None

    def dense(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float | None, shared: Any = None
    ) -> Tensor:
        """The layer's own attention, on `(B, H, L, D)`, by the backend that the user has set.

        With `shared`, diffusers' `parallel_config`, on this rank's tokens.
        """
        backend = getattr(self.processor, "_attention_backend", None)
        if backend is None and shared is None:
            return _native(q, k, v, mask, scale)
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        more = {"enable_gqa": q.shape[2] != k.shape[2], "parallel_config": shared}
        out = dispatch_attention_fn(q, k, v, attn_mask=mask, scale=scale, backend=backend, **more)
        return out.transpose(1, 2)

    def compiled(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float | None, shared: bool
    ) -> Tensor:
        """A call from a compiled graph; `shared` tells whether ranks share out its tokens."""
        config = getattr(self.processor, "_parallel_config", None) if shared else None
        whole = functools.partial(self.dense, scale=scale)
        split = None if config is None else Split.of(config, whole)
        dense = functools.partial(self.dense, q, k, v, mask, scale, config)
        if shared and split is None:
            return dense()
        return self.attend(self.index, dense, q, k, v, mask, scale, split)


class _Functional:
    """`torch.nn.functional` with another attention function."""

    def __init__(self, attention: Callable[..., Tensor]) -> None:
        self.scaled_dot_product_attention = attention

    def __getattr__(self, name: str) -> Any:
        return getattr(F, name)


def _autocast(device: torch.device) -> torch.dtype | None:
    """The dtype of the autocast that is on for a device, if any."""
    kind = device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _cast(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """What autocast hands to `F.scaled_dot_product_attention`; see `_autocast`."""
    castable = x.is_floating_point() and x.dtype != torch.float64
    return x if dtype is None or not castable else x.to(dtype)


def _autocasting(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Autocast with a dtype, or without any; nothing where that is so already.

    Planners and kernels choose the precision of each product themselves, as attention's own kernels
    do, which autocast never looks into.
    """
    if _autocast(device) == dtype:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def _native(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)


@torch.library.custom_op("ditaccel::layer_attention", mutates_args=())
def _layer_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    layer: Tensor,
    shared: bool,
) -> Tensor:
    """One layer's attention in a compiled graph, `(B, L, H, D)`."""
    seam = _LAYERS.get(int(layer))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if seam is None:
        out = _native(q, k, v, mask, scale)
    else:
        with _autocasting(q.device, None):  # which runs on around a graph, as it was traced for
            out = seam.compiled(q, k, v, mask, scale, shared)
    return out.transpose(1, 2).contiguous()


@_layer_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    layer: Tensor,
    shared: bool,
) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


class _Wrapper:
    """Base of the wrapping processors; attributes are those of the wrapped processor.

    diffusers makes new processors by calling the class of those that it finds: calling a wrapping
    class gives one of the family's own (`_wrapper_class`), and `of` makes the wrappers.
    """

    @classmethod
    def of(cls, inner: Any, seam: LayerSeam) -> _Wrapper:
        """A wrapper of a processor, for one layer."""
        made = object.__new__(cls)
        made._lead(inner, seam)
        return made

    def _lead(self, inner: Any, seam: LayerSeam) -> None:
        number = next(_NUMBERS)
        own = {
            "_ditaccel_inner": inner,
            "_ditaccel_layer": seam,
            # a tensor, since a Python number would make one graph per layer
            "_ditaccel_number": torch.tensor(number),
        }
        self.__dict__.update(own)
        self.__dict__["_ditaccel_call"] = self._rebound(type(inner).__call__)
        _LAYERS[number] = seam
        seam.processor = inner

    def _rebound(self, function: Any) -> Callable[..., Any]:
        scope = dict(function.__globals__)
        # with its name, the tracer would look globals up in the module and not here
        scope.pop("__name__", None)
        if "dispatch_attention_fn" in scope:
            scope["dispatch_attention_fn"] = self._dispatch(scope["dispatch_attention_fn"])
        if "F" in scope:
            scope["F"] = _Functional(self._sdpa)
        code, defaults, closure = function.__code__, function.__defaults__, function.__closure__
        rebound = types.FunctionType(code, scope, function.__name__, defaults, closure)
        rebound.__kwdefaults__ = function.__kwdefaults__
        if self._ditaccel_layer.breaks_graph:
            # What dynamo compiles around a break is kept with code objects, which all layers share,
            # and refers to names in one layer's scope.
            return torch.compiler.disable(rebound)
        return rebound

    def _attend(
        self,
        dense: Callable[[], Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float | None,
        shared: tuple[Any, Callable[..., Tensor]] | None = None,
    ) -> Tensor:
        """`(B, L, H, D)` in and out.

        `shared` is diffusers' `parallel_config`, and the attention of whole sequences without it.
        """
        # Norms give float32 under autocast; all are cast alike ahead of the family's attention.
        device, dtype = q.device, _autocast(q.device)
        q, k, v = (_cast(x, dtype) for x in (q, k, v))
        if torch.compiler.is_compiling():
            # a sparse attention of its own (`flex_attention`), or what attention itself refuses
            special = mask is not None and not isinstance(mask, Tensor)
            if special or not q.dtype == k.dtype == v.dtype:
                return dense()
            mask = mask if mask is None else _cast(mask, dtype)
            number, among = self._ditaccel_number, shared is not None
            return torch.ops.ditaccel.layer_attention(q, k, v, mask, scale, number, among)
        seam = self._ditaccel_layer

        def as_found() -> Tensor:
            with _autocasting(device, dtype):
                return dense().transpose(1, 2)

        def whole(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            assert shared is not None
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            with _autocasting(device, dtype):
                return shared[1](q, k, v, mask).transpose(1, 2)

        split = None if shared is None else Split.of(shared[0], whole)
        special = mask is not None and not isinstance(mask, Tensor)
        if shared is not None and (split is None or special):
            return dense()
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        with _autocasting(device, None):
            out = seam.attend(seam.index, as_found, q, k, v, mask, scale, split)
        return out.transpose(1, 2)

    def _dispatch(self, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def dispatch_attention_fn(
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attn_mask: Tensor | None = None,
            dropout_p: float = 0.0,
            is_causal: bool = False,
            scale: float | None = None,
            enable_gqa: bool = False,
            *args: Any,
            **kwargs: Any,
        ) -> Tensor:
            def run(q: Tensor, k: Tensor, v: Tensor, mask: Any, **changed: Any) -> Tensor:
                return original(
                    q, k, v, mask, dropout_p, is_causal, scale, enable_gqa,
                    *args, **{**kwargs, **changed},
                )  # fmt: skip

            def dense() -> Tensor:
                return run(query, key, value, attn_mask)

            if dropout_p > 0.0 or is_causal or query.shape[1] != key.shape[1]:
                return dense()
            config = kwargs.get("parallel_config")
            shared = None
            if config is not None:
                shared = config, functools.partial(run, parallel_config=None)
            return self._attend(dense, query, key, value, attn_mask, scale, shared)

        return dispatch_attention_fn

    def _sdpa(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        def dense() -> Tensor:
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale,
                enable_gqa=enable_gqa,
            )  # fmt: skip

        if dropout_p > 0.0 or is_causal or query.ndim != 4 or query.shape[2] != key.shape[2]:
            return dense()
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        out = self._attend(lambda: dense().transpose(1, 2), q, k, v, attn_mask, scale)
        return out.transpose(1, 2)

    def __getattr__(self, name: str) -> Any:
        if name in _OWN:
            raise AttributeError(name)
        return getattr(self.__dict__["_ditaccel_inner"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_ditaccel_inner"], name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # copies and pickles of a patched module are dense ones
        return _itself, (self.__dict__["_ditaccel_inner"],)


def _itself(value: Any) -> Any:
    return value


@functools.cache
def _wrapper_class(processor: type) -> type:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._ditaccel_call(self._ditaccel_inner, *args, **kwargs)

    def __new__(cls: type, *args: Any, **kwargs: Any) -> Any:
        return processor(*args, **kwargs)

    # modules filter their arguments by the signature of their processor
    functools.update_wrapper(__call__, processor.__call__)
    methods = {"__call__": __call__, "__new__": __new__}
    return type(f"Sparse{processor.__name__}", (_Wrapper,), methods)


def _set(module: nn.Module, processor: Any) -> None:
    # `set_processor` only adds a check that module-typed processors are registered
    module.processor = processor


class ProcessorSeam:
    """Wraps the processors of one transformer's self-attention modules.

    Args:
        modules: in the order in which they run.
        attend: called for every attention of theirs, with the layer's index.

    Attributes:
        layers: what the wrapper of each module leads to.

    Raises:
        UnsupportedError: a module without a processor, or one whose attention cannot be exchanged.
    """

    def __init__(self, modules: list[AttentionModule], attend: Attend) -> None:
        self._modules = modules
        self.layers = [LayerSeam(i, attend, m.breaks_graph) for i, m in enumerate(modules)]
        self._refused: dict[int, tuple[Any, str]] = {}
        for each in modules:
            check_processor(each)

    def install(self, ledger: PatchLedger) -> None:
        """Put the wrapping processors in place."""
        for each, seam in zip(self._modules, self.layers, strict=True):
            ledger.on_undo(functools.partial(self._put_back, each.module, seam))
            self._wrap(each.module, seam)

    @staticmethod
    def _wrap(module: nn.Module, seam: LayerSeam) -> None:
        inner = _family_processor(module)
        kind: Any = type(inner)
        wrapping: Any = _wrapper_class(kind)
        _set(module, wrapping.of(inner, seam))

    @staticmethod
    def _put_back(module: nn.Module, seam: LayerSeam) -> None:
        seam.closed = True
        processor: Any = getattr(module, "processor", None)
        if _leads_to(processor, seam):
            _set(module, processor._ditaccel_inner)

    def follow(self) -> dict[str, str]:
        """Wrap the processors that were put in place since (by `set_attn_processor`, say).

        Returns:
            Why those of some modules, by their names, cannot be wrapped: these run dense.
        """
        refused = {}
        for each, seam in zip(self._modules, self.layers, strict=True):
            processor: Any = getattr(each.module, "processor", None)
            if _leads_to(processor, seam):
                seam.processor = processor._ditaccel_inner  # (`unfuse_*` puts old ones back)
                continue
            known, why = self._refused.get(seam.index, (None, ""))
            if known is None or known is not processor:
                try:
                    check_processor(each)
                    self._wrap(each.module, seam)
                    continue
                except UnsupportedError as error:
                    why = str(error)
                    self._refused[seam.index] = processor, why
            refused[each.name] = why
        return refused


def _leads_to(processor: Any, seam: LayerSeam) -> bool:
    return isinstance(processor, _Wrapper) and processor._ditaccel_layer is seam


def _family_processor(module: nn.Module) -> Any:
    """The processor of a module, without a wrapper that was undone."""
    processor: Any = getattr(module, "processor", None)
    if isinstance(processor, _Wrapper) and processor._ditaccel_layer.closed:
        return processor._ditaccel_inner
    return processor


def check_processor(each: AttentionModule) -> None:
    """Raise UnsupportedError unless the attention of this module can be exchanged."""
    processor = _family_processor(each.module)
    kind = type(processor).__name__
    if isinstance(processor, _Wrapper):
        raise UnsupportedError(
            f"{each.name} is accelerated already; call ditaccel.restore() on the pipeline it was "
            "accelerated through first"
        )
    function = vars(type(processor)).get("__call__")
    if processor is None or not isinstance(function, types.FunctionType):
        raise UnsupportedError(
            f"{each.name} ({type(each.module).__name__}) has no attention processor written in "
            "Python; its attention cannot be replaced"
        )
    if isinstance(processor, nn.Module):
        raise UnsupportedError(
            f"the processor {kind} of {each.name} has weights of its own (an adapter); unload it, "
            "or use a caching method alone"
        )
    names = set(function.__code__.co_names)
    reached = "dispatch_attention_fn" in names or (
        "F" in names and "scaled_dot_product_attention" in names
    )
    if not reached or not any(seam in function.__globals__ for seam in _SEAMS):
        raise UnsupportedError(
            f"the processor {kind} of {each.name} calls neither dispatch_attention_fn nor "
            "F.scaled_dot_product_attention (a linear attention?); sparse attention does not apply"
        )
