"""What the conversions of all formats share: names, sizes, strictness, the comparison with the base, the folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
from transformers import PretrainedConfig, PreTrainedModel, SamConfig

from ...errors import UserError
from ...sam.families import encoder_shape, family_of_type
from ...sam.fingerprint import compute_fingerprint
from ...sam.processing import SamAdaptProcessor
from .checkpoint import Checkpoint, check_finite, check_frozen
from .folder import write_adapter


IMAGE_SIZE = 1024  # of the official presets; in no tensor without a position embedding
DECODER = "mask_decoder."
LAYER = re.compile(r"vision_encoder\.layers\.(\d+)\.")
WAY_OUT = "; --decoder none (decoder='none') converts the encoder's adapter alone"

_PEFT_PREFIX = "base_model.model."

Tensors = dict[str, torch.Tensor]
Rules = Sequence[tuple[str, str]]  # (regular expression at the start of a name, its replacement)


@dataclass(frozen=True)
class Base:
    """The SAM that was adapted: its name, the model in fp32 and its processor."""

    name: str
    model: PreTrainedModel
    processor: SamAdaptProcessor


@dataclass
class Request:
    """What a caller of `convert_official_checkpoint` asks of any format.

    Attributes:
        decoder: `"none"` leaves the mask decoder out.
        base: the SAM that was adapted.
        image_size: side of the input in pixels, where nothing else tells.
        fields: of the adapter's config, in place of the published values.
        classes: names of the classes.
    """

    decoder: str | None = None
    base: Base | None = None
    image_size: int | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    classes: list[str] | None = None


@dataclass
class Adapter:
    """What a format finds in a checkpoint.

    Attributes:
        config: of the adapter, before injection.
        tensors: the adapter's, by their names in an adapted SAM of transformers without the adapter's name.
        frozen: the rest, by the names of transformers.
        notes: sentences on what was left out.
        untold: fields of the config that no tensor tells.
        processor: how the official code prepares images, as fields of the processor; squashed unless they say more.
    """

    config: PeftConfig
    tensors: Tensors
    frozen: Tensors
    notes: list[str]
    untold: Sequence[str] = ()
    processor: dict[str, Any] = field(default_factory=dict)


def renamed(names: Tensors, rules: Rules) -> Tensors:
    """Apply every rule to every name, in turn; here a rule may match anywhere in the name."""
    result = {}
    for name, value in names.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        result[name] = value
    return result


def split(state: Tensors, rules: Rules) -> tuple[Tensors, Tensors]:
    """The tensors whose names begin as a rule says, under their new names, and those of no rule."""
    moved, rest = {}, {}
    for name, value in state.items():
        for pattern, replacement in rules:
            if match := re.match(pattern, name):
                moved[match.expand(replacement) + name[match.end() :]] = value
                break
        else:
            rest[name] = value
    return moved, rest


def sam_config_of(state: Tensors, width: int) -> SamConfig:
    """Sizes of the SAM that was adapted, as far as the tensors tell; SAM's own elsewhere.

    Args:
        state: by the names of transformers' `SamModel`.
        width: of the encoder.
    """

    def size(name: str, axis: int, key: str) -> dict[str, int]:
        return {key: state[name].shape[axis]} if name in state and state[name].ndim else {}

    depth = 1 + max((int(found[1]) for name in state if (found := LAYER.match(name))), default=0)
    patch = size("vision_encoder.patch_embed.projection.weight", -1, "patch_size")
    features = size("shared_image_embedding.positional_embedding", -1, "num_pos_feats")
    tokens = size("mask_decoder.mask_tokens.weight", 1, "hidden_size")
    hidden = size("mask_decoder.transformer.layers.0.mlp.lin1.weight", 0, "mlp_dim")
    iou = size("mask_decoder.iou_prediction_head.proj_in.weight", 0, "iou_head_hidden_dim")
    vision = {"hidden_size": width, "num_hidden_layers": depth, **patch, **features}
    return SamConfig(vision_config=vision, prompt_encoder_config=tokens, mask_decoder_config=tokens | hidden | iou)


def class_names(classes: list[str] | None, count: int) -> dict[int, str] | None:
    """`id2label` of `count` classes: from the names of all, or of those after a background 0; None without names.

    Raises:
        UserError: another number of names.
    """
    if classes is None:
        return None
    names = ["background", *classes] if len(classes) == count - 1 else classes
    if len(names) != count:
        raise UserError(
            f"{len(classes)} names for {count} classes", key="classes", fix="name all, or all but a background 0"
        )
    return dict(enumerate(names))


def write_converted(
    adapter: Adapter,
    sam_config: PretrainedConfig,
    folder: Path,
    checkpoint: Checkpoint,
    request: Request,
    *,
    title: str,
) -> list[str]:
    """Check what a format found, and write it to `folder`.

    Args:
        sam_config: of the SAM that was adapted.
        title: of the method, for messages.

    Returns:
        What was left out, is in no tensor, or was compared, in sentences.

    Raises:
        UserError: weights missing, unknown, not finite, of another size, or not the base's.
    """
    base = request.base
    _check_known(adapter.frozen, sam_config, checkpoint, title)
    check_finite(adapter.tensors, checkpoint)
    if base is not None:
        check_frozen(adapter.frozen, base.model, base.name, checkpoint)
    tensors = {f"{_PEFT_PREFIX}{name}": value for name, value in adapter.tensors.items()}
    config: Any = _check_against_peft(tensors, adapter.config, sam_config, checkpoint)
    # The model that it was injected into has no values.
    known = base is not None and any(_tells_sams_apart(name) for name in adapter.frozen)
    config.base_fingerprint = compute_fingerprint(base.model) if base is not None and known else None
    config.base_model_name_or_path = None if base is None else base.name
    vision: Any = sam_config.vision_config
    patch_size = vision.patch_size if base is None else encoder_shape(base.model).patch_size
    side, told = _input_side(adapter.frozen, patch_size, request.image_size, base)
    processor = SamAdaptProcessor(side, patch_size, **{"resize": "squash"} | adapter.processor)
    write_adapter(folder, config, tensors, processor, family_of_type(sam_config.model_type, title).model_class)
    assumed = [f"{name}={getattr(config, name)}" for name in adapter.untold if name not in request.fields]
    untold = [] if told else [f"The checkpoint does not tell its input size: {side} pixels, see --image_size."]
    if assumed:
        untold.append(f"In no tensor, so as published: {', '.join(assumed)}; --method_args.<field> says otherwise.")
    return [*adapter.notes, *untold, _comparison(adapter.frozen, base, known)]


def _tells_sams_apart(name: str) -> bool:
    """Whether fine-tuned SAMs differ in this weight: most keep the prompt encoder and the IoU head of SAM."""
    return name.startswith(("vision_encoder.", DECODER)) and "iou_prediction_head." not in name


def _comparison(frozen: Tensors, base: Base | None, known: bool) -> str:
    if base is None:
        return (
            f"{len(frozen)} frozen weights skipped, not compared: no --base. The adapter names no base model, so name "
            "the one it was trained on wherever it is loaded."
        )
    if known:
        return f"{len(frozen)} frozen weights compared with {base.name}: equal within half precision."
    reason = (
        f"none of its {len(frozen)} frozen weights tells" if frozen else "it holds no frozen weight that would tell"
    )
    return (
        f"Nothing shows that the checkpoint was trained on {base.name}: {reason} one SAM from another. The adapter "
        "stores the name that you gave, but no fingerprint."
    )


def _check_known(frozen: Tensors, sam_config: PretrainedConfig, checkpoint: Checkpoint, title: str) -> None:
    """Raise `UserError` for a name that this SAM has not; depth is left to the comparison with the base."""
    known = {LAYER.sub("vision_encoder.layers.0.", name) for name in _without_values(sam_config).state_dict()}
    unknown = [name for name in frozen if LAYER.sub("vision_encoder.layers.0.", name) not in known]
    if unknown:
        listed = ", ".join(checkpoint.name_of(name, frozen[name]) for name in unknown[:3])
        raise UserError(
            f"{checkpoint} has {len(unknown)} weights that are neither SAM's nor {title}'s: {listed}", key="checkpoint"
        )


def _without_values(sam_config: PretrainedConfig) -> PreTrainedModel:
    """A SAM on the meta device."""
    with torch.device("meta"):
        return family_of_type(sam_config.model_type, type(sam_config).__name__).model_class(sam_config)


def _check_against_peft(
    tensors: Tensors, config: PeftConfig, sam_config: PretrainedConfig, checkpoint: Checkpoint
) -> PeftConfig:
    """The config as injection leaves it; `UserError` unless PEFT saves such an adapter by these names and shapes."""
    with torch.device("meta"):
        adapted = get_peft_model(_without_values(sam_config), config)
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    for kind, keys in (("missing", expected.keys() - tensors.keys()), ("unknown", tensors.keys() - expected.keys())):
        if keys:
            listed = ", ".join(_shown(key, tensors, checkpoint) for key in sorted(keys)[:3])
            way_out = "; --decoder none leaves the decoder out" if any(DECODER in key for key in keys) else ""
            raise UserError(f"{checkpoint}: {len(keys)} weights {kind}: {listed}{way_out}", key="checkpoint")
    for key, value in expected.items():
        if value.shape != tensors[key].shape:
            raise UserError(
                f"{checkpoint}: {_shown(key, tensors, checkpoint)} is {tuple(tensors[key].shape)}, this SAM takes "
                f"{tuple(value.shape)}",
                key="checkpoint",
            )
    return adapted.peft_config["default"]


def _shown(key: str, tensors: Tensors, checkpoint: Checkpoint) -> str:
    """A tensor's name in the file, or of one that it has not, the name here."""
    name = key.removeprefix(_PEFT_PREFIX)
    return checkpoint.name_of(name, tensors[key]) if key in tensors else name


def _input_side(frozen: Tensors, patch_size: int, wanted: int | None, base: Base | None) -> tuple[int, bool]:
    """Side of the network's input in pixels: the position embedding's, the base's, the caller's, or SAM's; known?"""
    table = frozen.get("vision_encoder.pos_embed")
    known = None if base is None else base.processor.image_size
    if table is not None:
        known = table.shape[1] * patch_size  # (1, h, w, C)
    if known is not None:
        check_image_size(known, wanted)
    return known or wanted or IMAGE_SIZE, bool(known or wanted)


def check_image_size(known: int, wanted: int | None) -> None:
    """Raise `UserError` for an `image_size` that is not the checkpoint's."""
    if wanted not in (None, known):
        raise UserError(
            f"the checkpoint was trained at {known}, not at {wanted}", key="image_size", fix="leave it unset"
        )
