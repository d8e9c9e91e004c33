"""The decoder field: which parameters of SAM's mask decoder and prompt encoder an adapter brings along."""

from collections.abc import Sequence

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ...errors import UserError
from ...names import check_id2label
from ...sam.families import SamFamily, encoder_shape, family_of, find_family, find_mask_decoder
from .class_wise import READ
from .config import SamConfigMixin


# Of SAM2-Adapter's decoder. Its masks are the second's, which stands first here: the transformer knows no order.
SAM2_ADAPTER_TOKENS = 2


def resolve_decoder(config: SamConfigMixin, model: nn.Module) -> None:
    """Settle an unset `decoder` in the config: the method's default, or `"frozen"` without SAM's mask decoder.

    Raises:
        UserError: if a decoder is named that the model does not have.
    """
    has_decoder = find_mask_decoder(model) is not None
    if config.decoder is None:
        config.decoder = config.default_decoder if has_decoder else "frozen"
    family = find_family(model)
    if family is not None and config.decoder in family.refused_decoders:
        raise UserError(
            f"decoder={config.decoder!r} on {family.title}: {family.refused_decoders[config.decoder]}",
            code="decoder-of-family",
        )
    if (config.decoder == "class_wise") != (config.num_labels is not None):
        raise UserError(
            f"decoder={config.decoder!r} with num_labels={config.num_labels}: decoder='class_wise' needs the number "
            "of classes, background included, and no other decoder takes it"
        )
    if config.num_labels is not None and config.id2label is not None and not config.fingerprint_is_from_file:
        check_id2label(config.id2label, config.num_labels)
    if config.num_mask_tokens is not None:
        official = config.faithful and config.num_mask_tokens == SAM2_ADAPTER_TOKENS
        fitting = ("full", "class_wise") if config.num_mask_tokens == 1 or official else ("class_wise",)
        if config.decoder not in fitting:
            raise UserError(
                f"num_mask_tokens={config.num_mask_tokens} needs decoder={' or '.join(map(repr, fitting))}, not "
                f"{config.decoder!r}"
            )
    if config.decoder != "hq" and config.early_layer is not None:
        raise UserError(f"early_layer={config.early_layer} needs decoder='hq', not {config.decoder!r}")
    if config.decoder in ("hq", "class_wise") and config.train_iou_head:
        raise UserError(
            f"train_iou_head with decoder={config.decoder!r}: the estimate rates SAM's own masks", fix="leave it out"
        )
    if config.decoder != "frozen" and not has_decoder:
        raise UserError(
            f"decoder={config.decoder!r}: {type(model).__name__} has no mask decoder", fix="use SamModel or 'frozen'"
        )


def early_layer(config: SamConfigMixin, model: nn.Module) -> int:
    """Index of the block whose output the `"hq"` decoder of this config sees.

    Raises:
        UserError: the encoder has no such block, or none with global attention.
    """
    shape = encoder_shape(model)
    if config.early_layer is None:
        if not shape.global_blocks:
            raise UserError(
                "decoder='hq': this encoder has no block with global attention", fix="name one as early_layer"
            )
        return shape.global_blocks[0]
    if not 0 <= config.early_layer < shape.num_hidden_layers:
        raise UserError(f"early_layer={config.early_layer}: the encoder has blocks 0 to {shape.num_hidden_layers - 1}")
    return config.early_layer


def decoder_parameters(config: SamConfigMixin, family: SamFamily, mask_decoder: nn.Module) -> list[str]:
    """Names of the mask decoder's parameters in an adapter with this config; none of a frozen decoder."""
    names = [name for name, _ in mask_decoder.named_parameters()]
    if config.decoder in ("frozen", "hq"):
        return [name for name in names if config.train_iou_head and name.startswith("iou_prediction_head.")]
    if config.faithful and config.num_mask_tokens is None:
        return names
    reached = set(family.reached_parameters(mask_decoder))
    if config.decoder == "class_wise":
        reached = set(filter(READ.match, reached))
    if config.faithful:  # SAM2-Adapter's code trains what makes the finer maps, too
        parts = [part.removeprefix(f"{family.mask_decoder}.") for part in family.embedding_parts]
        reached |= {name for name in names if name.rpartition(".")[0] in parts}
    return [n for n in names if n in reached or (config.train_iou_head and n.startswith("iou_prediction_head."))]


def prompt_encoder_parameters(config: SamConfigMixin) -> list[str]:
    """Names of the prompt encoder's parameters in an adapter with this config."""
    whole = config.faithful and config.decoder in ("full", "class_wise") and config.num_mask_tokens is None
    trained = config.train_no_mask_embed or whole
    return ["no_mask_embed.weight"] if trained else []


def freeze_outside_adapter(model: nn.Module) -> None:
    """Freeze what no method trains when whole modules are trained (`lora` with `modules_to_save`, `full`).

    Prompt encoder, positional matrix and the decoder parameters that a loss on mask token 0 does not reach: left
    trainable they get no gradient, and DDP stops with "Expected to have finished reduction". What an adapter owns
    stays as its tuner has set it, wherever it stands, but for LoRA around those decoder parameters; and so does what
    `modules_to_save` names in the prompt encoder.

    Args:
        model: a `SamModel`, or a PEFT model around one.
    """
    owned = set()
    for module in model.modules():
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            for attribute in module.adapter_layer_names:
                owned.update(map(id, getattr(module, attribute).parameters()))
    family = family_of(model)
    for name, parameter in model.named_parameters():
        _, decoder, inside = name.replace("modules_to_save.default.", "").rpartition(f"{family.mask_decoder}.")
        unreached = decoder and family.not_reached.match(inside)
        kept = any(f"{part}." in f"{name}." for part in family.never_trained)
        if unreached or (kept and id(parameter) not in owned):
            parameter.requires_grad_(False)


def lacks_gradients(model: nn.Module, prompts: Sequence[str]) -> bool:
    """Whether a training step may not reach all that is trained, so that DDP needs `find_unused_parameters`.

    Args:
        prompts: kinds that are trained.
    """
    prompt_encoder = f"{family_of(model).prompt_encoder}."
    for name, parameter in model.named_parameters():
        # Beside a mask `no_mask_embed` is not read; the rest of the prompt encoder is read for some prompts alone.
        if parameter.requires_grad and prompt_encoder in name:
            if "mask" in prompts or not name.endswith("no_mask_embed.weight"):
                return True
    # The faithful methods train parts of the decoder that no loss reaches.
    return any(getattr(config, "faithful", False) for config in getattr(model, "peft_config", {}).values())
