"""`method: peft`: a stock tuner of PEFT on the attention of a SAM's encoder, its decoder trained beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peft import AdaLoraConfig, LoraConfig, PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from ..errors import UserError
from ..sam.families import SamFamily


LORA_SIZE = {"r": 8, "lora_alpha": 16}  # where the recipe does not say
# Names under which variants of LoRA are known -> the fields of LoraConfig that make them.
LORA_VARIANTS: dict[str, dict[str, Any]] = {
    "DORA": {"use_dora": True},
    "RSLORA": {"use_rslora": True},
    "PISSA": {"init_lora_weights": "pissa"},
    "OLORA": {"init_lora_weights": "olora"},
}
_LANGUAGE = "it is for language models"
# Types that are no use here -> why; of OFT, GRALORA, POLY and SHADOW a test notices when PEFT takes them.
UNUSABLE = {
    "ADAPTION_PROMPT": _LANGUAGE,
    "CARTRIDGE": _LANGUAGE,
    "CPT": _LANGUAGE,
    "GRALORA": "its layers read (B, L, C), SAM's attention works on maps (B, h, w, C)",
    "MULTITASK_PROMPT_TUNING": _LANGUAGE,
    "OFT": "its linear layer takes a map (B, h, w, C) for the input of a convolution",
    "POLY": "its layers want task_ids in every forward",
    "PREFIX_TUNING": _LANGUAGE,
    "PROMPT_TUNING": _LANGUAGE,
    "P_TUNING": _LANGUAGE,
    "SHADOW": "it copies the blocks of a language model's decoder",
    "TRAINABLE_TOKENS": "SAM has no table of tokens",
    "XLORA": "it mixes LoRAs that were trained before",
}
# What LoRA may do without changing the base, which `disable_adapter` then gives back and several adapters share.
LORA_KEEPS_BASE: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}


def stock_tuner(fields: dict[str, Any], family: SamFamily, steps: int | None) -> tuple[type, dict[str, Any]]:
    """The config class that `fields` name by their `peft_type`, and its fields, with those that nobody should type.

    Args:
        fields: the recipe's `method_args`.
        family: of the SAM, which says where its attention is.
        steps: optimizer steps of the training, which AdaLoRA spreads its ranks over; None = unknown.

    Raises:
        UserError: no `peft_type`, an unknown one, one of this package's methods, or one that cannot adapt a SAM.
    """
    fields = dict(fields)
    given = fields.pop("peft_type", None)
    kind = str(given).upper()
    configs = {key.value: cls for key, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    stock = sorted(
        [name for name, cls in configs.items() if _is_stock(cls) and name not in UNUSABLE] + list(LORA_VARIANTS)
    )
    key = "method_args.peft_type"
    if given is None:
        raise UserError("missing", key=key, fix=f"name one of {', '.join(stock)}")
    if kind in UNUSABLE:
        raise UserError(f"{kind} cannot adapt a SAM: {UNUSABLE[kind]}", key=key, fix=f"use one of {', '.join(stock)}")
    if kind in configs and not _is_stock(configs[kind]):
        raise UserError(f"{kind} is a method of this package", key=key, fix="name it as the recipe's method")
    variant = LORA_VARIANTS.get(kind, {})
    config_cls = configs.get("LORA" if variant else kind)
    if config_cls is None:
        raise UserError(f"PEFT has no tuner {given!r}", key=key, fix=f"use one of {', '.join(stock)}")
    usual: dict[str, Any] = {"target_modules": family.attention_names, "modules_to_save": [family.mask_decoder]}
    if kind == "LN_TUNING":
        usual["target_modules"] = family.norm_names
    elif kind == "IA3":
        usual["feedforward_modules"] = []
    elif kind == "ADALORA":
        if steps == 1:
            raise UserError("AdaLoRA cannot spread its ranks in a single step", key="max_steps", fix="use 2 or more")
        usual["total_step"] = steps
    elif config_cls is LoraConfig:
        usual |= LORA_SIZE | variant
    return config_cls, usual | fields


def changes_base(config: PeftConfig | None) -> bool:
    """Whether an adapter writes into its base's own weights, so that the base without it is no longer the base."""
    return isinstance(config, LoraConfig) and any(
        getattr(config, name) not in kept for name, kept in LORA_KEEPS_BASE.items()
    )


def rank_allocator(model: nn.Module, steps: int) -> Callable[[int], None] | None:
    """What a tuner that moves ranks between layers (AdaLoRA, AdaMSS with ASA) does after an optimizer step, else None.

    It is called with the number of steps done, while their gradients are still there. An AdaLoRA whose ranks an
    earlier training has settled keeps them.

    Args:
        steps: optimizer steps of the training.
    """
    config = config_of(model)
    if config is None or not getattr(config, "use_asa", True) or getattr(config, "rank_pattern", None):
        return None
    if isinstance(config, AdaLoraConfig):
        config.total_step = steps
    return getattr(model.base_model, "update_and_allocate", None)


def keep_every_rank(model: nn.Module) -> None:
    """Store an AdaLoRA whole: weights of an earlier step do not fit the ranks that the last one has left."""
    config = config_of(model)
    if isinstance(config, AdaLoraConfig):
        config.rank_pattern = None


def pool_refuses(model: nn.Module) -> str | None:
    """Why the adapter of a model cannot be that of a pool's domain, None where it can."""
    if changes_base(config_of(model)):
        return "the method changes SAM's own weights, which the domains share"
    if getattr(type(getattr(model, "base_model", None)), "uses_shared_state", False):
        return "the tuner keeps tensors for all of its layers together"
    return None


def config_of(model: nn.Module) -> PeftConfig | None:
    """Of the adapter of a `PeftModel`; None for any other model."""
    return getattr(model, "peft_config", {}).get("default")


def _is_stock(config_cls: type) -> bool:
    return config_cls.__module__.partition(".")[0] == "peft"
