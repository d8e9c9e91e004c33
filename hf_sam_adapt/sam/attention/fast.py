"""Which attention the encoder of a SAM runs, chosen for a model in place."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers.utils import logging

from ...errors import UserError
from ..families import SamFamily, family_of, find_family, find_vision_encoder
from .folded import folded_attention
from .positions import position_tables
from .tiles import tiled_attention


Kind = Literal["auto", "folded", "sdpa", "eager"]
KINDS: tuple[str, ...] = get_args(Kind)
OWN = ("sdpa", "eager")  # transformers'
AMX: bool = torch.cpu._is_amx_tile_supported()
_BEFORE = "_hf_sam_adapt_attention_before"

logger = logging.get_logger(__name__)


class FastAttention:
    """What stands as `forward` on the attention modules; calls their `qkv` and `proj`, whatever layers these are.

    transformers chooses SAM's attention by class when the model is built and asks none of its attention interfaces in
    the forward, so there is no hook to register with. An object as the instance's own `forward` changes neither the
    module's class nor its parameters and their names; hooks of the module run as ever. One object serves all modules
    of a model, which tell it who calls (`name_caller`): what `torch.compile` makes for a block fits the next one, and
    a replica that `nn.DataParallel` makes runs its own weights.

    Args:
        kind: one of `KINDS`.
        own: the classes of transformers that compute it, by kind.
    """

    def __init__(self, kind: str, own: dict[str, type[nn.Module]]) -> None:
        self.kind, self.own = kind, own

    def __call__(
        self, hidden_states: torch.Tensor, output_attentions: bool | None = None, *, caller: Any
    ) -> tuple[Any, Any]:
        """(B, h, w, C) -> (B, h, w, C), and the attention's weights of kind `eager`, None of the others."""
        attention = caller
        kind = fastest(attention, hidden_states.device, self.own) if self.kind == "auto" else self.kind
        if kind in self.own:
            return self.own[kind].forward(attention, hidden_states, output_attentions)
        batch, height, width, _ = hidden_states.shape
        qkv = attention.qkv(hidden_states)
        if torch.is_autocast_enabled(qkv.device.type):
            qkv = qkv.to(torch.get_autocast_dtype(qkv.device.type))
        # (B, h, w, 3 C) -> (B, S, 3, heads, d)
        qkv = qkv.reshape(batch, height * width, 3, attention.num_attention_heads, -1)
        tables = position_tables(attention, height, width)
        attended = kernel_for(qkv.device.type, qkv.dtype)(qkv, *tables, attention.scale)
        return attention.proj(attended.reshape(batch, height, width, -1)), None


def kernel_for(device: str, dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    """What computes `folded`: tiles on CPUs, longer queries and keys on GPUs and for bf16 on a CPU with AMX.

    What is exported has to run without this package, whose operation the tiles are.
    """
    longer = device != "cpu" or torch.compiler.is_exporting() or (AMX and dtype == torch.bfloat16)
    return folded_attention if longer else tiled_attention


def name_caller(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Forward pre-hook of an attention module: its forward learns which module this is."""
    return args, kwargs | {"caller": module}


def fastest(attention: nn.Module, device: torch.device, own: dict[str, type[nn.Module]]) -> str:
    """What `auto` means for a module on a device; benchmarks/attention.py has the measurements."""
    reason = _unsupported(attention, own)
    if reason is None and device.type not in ("cpu", "cuda"):
        reason = f"it was never measured on {device.type}"
    if reason is None:
        return "folded"
    kind = _built_as(attention, own)
    if not torch.compiler.is_compiling():
        logger.warning_once(f"attention: the model keeps its {kind} attention, for {reason}.")
    return kind


def use_fast_attention(model: nn.Module, kind: Kind = "auto") -> None:
    """Make the encoder of a SAM compute its attention in another way, with the same result but for rounding.

    Changes the instance only: parameters, state-dict keys and classes stay. The patch embedding gets a hook that lays
    its output out as the blocks read it (`token_major`). It works before and after an adapter is added, and a copy or
    pickle of the model keeps it. A second call chooses anew; `restore_attention` undoes it.

    Args:
        model: a SAM, its encoder, or a PEFT model of one.
        kind: `folded` never makes the bias of the relative positions as a whole; `sdpa` and `eager` are
             transformers' own. `auto` is the fastest measured on the device that the model runs on, and leaves SAM 2
             and 3 as they are, which have no such bias.

    Raises:
        UserError: unknown kind, no SAM encoder, or one whose attention the named kind cannot compute.
    """
    if kind not in KINDS:
        raise UserError(f"unknown {kind!r}", key="attention", fix=f"choose from {', '.join(KINDS)}")
    encoder = find_vision_encoder(model)
    if encoder is None:
        raise UserError(f"{type(model).__name__} has no image encoder of SAM", key="attention")
    family = family_of(model)
    own, modules = own_classes(family), list(attention_modules(model))
    if kind == "folded":
        reasons = {_unsupported(attention, own) for attention in modules} - {None}
        if not own:
            reasons = {f"{family.title} has no relative positions"}
        if reasons:
            raise UserError(f"{kind} cannot be used, for {reasons.pop()}", key="attention", fix="use auto")
    restore_attention(model)
    fast = FastAttention(kind, own)
    for attention in modules:
        vars(attention)["forward"] = fast
        attention.register_forward_pre_hook(name_caller, with_kwargs=True)
    if not own:
        _use_implementation(encoder, kind)
    for patches in _patch_embeddings(model):
        patches.register_forward_hook(token_major)


def restore_attention(model: nn.Module) -> None:
    """Undo `use_fast_attention`: the model's attention is that of its classes."""
    for attention in attention_modules(model):
        vars(attention).pop("forward", None)
        hooks = attention._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if hook is name_caller]:
            del hooks[key], attention._forward_pre_hooks_with_kwargs[key]
    encoder = find_vision_encoder(model)
    if encoder is not None and hasattr(encoder, _BEFORE):
        _use_implementation(encoder, getattr(encoder, _BEFORE))
        delattr(encoder, _BEFORE)
    for patches in _patch_embeddings(model):
        hooks = patches._forward_hooks
        for key in [key for key, hook in hooks.items() if hook is token_major]:
            del hooks[key]


def token_major(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
    """Forward hook of the patch embedding: (B, h, w, C) with C innermost in memory too.

    SAM permutes a convolution's output, and every residual sum keeps that layout: all blocks would add across memory
    and copy the map for each layer norm.
    """
    return output.contiguous()


def attention_kind(model: nn.Module) -> str:
    """The kind that `use_fast_attention` chose, or that of transformers which the model was built with."""
    encoder = find_vision_encoder(model)
    if encoder is None:
        raise UserError(f"{type(model).__name__} has no image encoder of SAM", key="attention")
    family = family_of(encoder)
    for attention in attention_modules(model):
        forward = vars(attention).get("forward")
        return forward.kind if isinstance(forward, FastAttention) else _built_as(attention, own_classes(family))
    return family.config_of(encoder)._attn_implementation


def own_classes(family: SamFamily) -> dict[str, type[nn.Module]]:
    """transformers' classes of attention with relative positions, by kind; empty for a family without."""
    eager, sdpa = family.attention_class, family.sdpa_class
    return {} if eager is None or sdpa is None else {"sdpa": sdpa, "eager": eager}


def attention_modules(model: nn.Module) -> Iterator[nn.Module]:
    """The attention with relative positions of every block of the encoder; none in SAM 2 and 3."""
    family = find_family(model)
    wanted = None if family is None else family.attention_class
    return (module for module in model.modules() if wanted is not None and isinstance(module, wanted))


def _use_implementation(encoder: nn.Module, kind: str) -> None:
    """Let transformers' interface of attentions compute an encoder's; `auto` is what it was built with."""
    if kind not in OWN:
        return
    config = family_of(encoder).config_of(encoder)
    if not hasattr(encoder, _BEFORE):
        setattr(encoder, _BEFORE, config._attn_implementation)
    config._attn_implementation = kind


def _patch_embeddings(model: nn.Module) -> Iterator[nn.Module]:
    """Those of encoders whose attention is computed here."""
    family = find_family(model)
    wanted = None if family is None or not own_classes(family) else family.patch_embedding_class
    return (module for module in model.modules() if wanted is not None and isinstance(module, wanted))


def _built_as(attention: nn.Module, own: dict[str, type[nn.Module]]) -> str:
    return "sdpa" if isinstance(attention, own["sdpa"]) else "eager"


def _unsupported(attention: Any, own: dict[str, type[nn.Module]]) -> str | None:
    """Why `folded` cannot stand for a module's own attention."""
    if not attention.use_rel_pos:
        return "it has no relative positions"
    if attention.dropout > 0 and not isinstance(attention, own["sdpa"]):
        return "it has dropout"
    return None
