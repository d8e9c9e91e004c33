"""What the conversions of all formats share: names, sizes, strictness, the comparison with the base, the folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
from transformers import SamConfig, SamModel

from ..errors import UserError
from ..fingerprint import compute_fingerprint
from ..processing import SamAdaptProcessor
from .checkpoint import check_frozen
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
    model: SamModel
    processor: SamAdaptProcessor


@dataclass
class Adapter:
    """What a format finds in a checkpoint.

    Attributes:
        config: of the adapter, before injection.
        tensors: the adapter's, by their names in an adapted `SamModel` without the adapter's name.
        frozen: the rest, by the names of `SamModel`.
        notes: sentences on what was left out.
    """

    config: PeftConfig
    tensors: Tensors
    frozen: Tensors
    notes: list[str]


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
        state: by the names of `SamModel`.
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


def write_converted(
    adapter: Adapter,
    sam_config: SamConfig,
    folder: Path,
    *,
    source: str,
    title: str,
    base: Base | None,
    image_size: int | None,
) -> list[str]:
    """Check what a format found, and write it to `folder`.

    Args:
        sam_config: of the SAM that was adapted.
        source: name of the checkpoint, for messages.
        title: of the method, for messages.

    Returns:
        What was left out or compared, in sentences.

    Raises:
        UserError: weights missing, unknown, of another size, or not the base's.
    """
    _check_known(adapter.frozen, sam_config, source, title)
    if base is not None:
        check_frozen(adapter.frozen, base.model, base.name)
    tensors = {f"{_PEFT_PREFIX}{name}": value for name, value in adapter.tensors.items()}
    config = _check_against_peft(tensors, adapter.config, sam_config, source)
    # The model that it was injected into has no values.
    config.base_fingerprint = None if base is None else compute_fingerprint(base.model)
    config.base_model_name_or_path = None if base is None else base.name
    patch_size = sam_config.vision_config.patch_size
    side = _input_side(adapter.frozen, patch_size, image_size, base)
    write_adapter(folder, config, tensors, SamAdaptProcessor(side, patch_size, resize="squash"))
    if base is None:
        compared = (
            f"{len(adapter.frozen)} frozen weights skipped, not compared: no --base. The adapter names no base model, "
            "so name the one it was trained on wherever it is loaded."
        )
    else:
        compared = f"{len(adapter.frozen)} frozen weights compared with {base.name}: equal within half precision."
    return [*adapter.notes, compared]


def _check_known(frozen: Tensors, sam_config: SamConfig, source: str, title: str) -> None:
    """Raise `UserError` for a name that no `SamModel` has; depth is left to the comparison with the base."""
    with torch.device("meta"):
        known = {LAYER.sub("vision_encoder.layers.0.", name) for name in SamModel(sam_config).state_dict()}
    unknown = [name for name in frozen if LAYER.sub("vision_encoder.layers.0.", name) not in known]
    if unknown:
        raise UserError(
            f"checkpoint: {source} has {len(unknown)} weights that are neither SAM's nor {title}'s: "
            f"{', '.join(unknown[:3])}"
        )


def _check_against_peft(tensors: Tensors, config: PeftConfig, sam_config: SamConfig, source: str) -> PeftConfig:
    """The config as injection leaves it; `UserError` unless PEFT saves such an adapter by these names and shapes."""
    with torch.device("meta"):
        adapted = get_peft_model(SamModel(sam_config), config)
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    for kind, keys in (("missing", expected.keys() - tensors.keys()), ("unknown", tensors.keys() - expected.keys())):
        if keys:
            listed = ", ".join(key.removeprefix(_PEFT_PREFIX) for key in sorted(keys)[:3])
            way_out = "; --decoder none leaves the decoder out" if any(DECODER in key for key in keys) else ""
            raise UserError(f"checkpoint: {source}: {len(keys)} weights {kind}: {listed}{way_out}")
    for key, value in expected.items():
        if value.shape != tensors[key].shape:
            raise UserError(
                f"checkpoint: {source}: {key.removeprefix(_PEFT_PREFIX)} is {tuple(tensors[key].shape)}, this SAM "
                f"takes {tuple(value.shape)}"
            )
    return adapted.peft_config["default"]


def _input_side(frozen: Tensors, patch_size: int, wanted: int | None, base: Base | None) -> int:
    """Side of the network's input in pixels: the position embedding's, the base's, the caller's, or SAM's."""
    table = frozen.get("vision_encoder.pos_embed")
    known = None if base is None else base.processor.image_size
    if table is not None:
        known = table.shape[1] * patch_size  # (1, h, w, C)
    if known is not None and wanted not in (None, known):
        raise UserError(f"image_size: the checkpoint was trained at {known}, not at {wanted}; leave it unset")
    return known or wanted or IMAGE_SIZE
