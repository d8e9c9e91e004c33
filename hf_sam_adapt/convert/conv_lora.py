"""AutoGluon's Conv-LoRA checkpoints (arXiv 2401.17868): `model.ckpt` of a semantic segmentation predictor.

Per adapted layer `vision_encoder.layers.{i}.attn.qkv.` + `lora_A` (r, C), `lora_B` (3C, r), `lora_moe_gating.w_gate`
and `.w_noise` (r, M), `lora_moe_experts.{e}.0.weight` (r, r, 3, 3) and `.bias` (r,), for the M experts of layer i;
further the mask decoder, cut down to one mask token and trained but for its IoU head, and the frozen rest of SAM.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
from transformers import SamConfig, SamModel

from ..errors import UserError
from ..fingerprint import compute_fingerprint
from ..loading import load_base
from ..processing import SamAdaptProcessor
from ..tuners.conv_lora import ConvLoraConfig
from .checkpoint import check_frozen
from .folder import write_adapter


# Not in any tensor; the official preset's, which the paper's script leaves as it is.
LORA_ALPHA = 32
IMAGE_SIZE = 1024

_LAYER = re.compile(r"vision_encoder\.layers\.(\d+)\.")
_ADAPTED = re.compile(r"vision_encoder\.layers\.(\d+)\.attn\.qkv\.lora_(.+)")
_EXPERT = re.compile(r"moe_experts\.(\d+)\.")
_CONSTANTS = ("moe_gating.mean", "moe_gating.std")  # of the noise: 0 and 1
_DECODER, _IOU_HEAD, _CLASS_HEAD = "mask_decoder.", "mask_decoder.iou_prediction_head.", "output_classifier_mlps"
_PEFT_PREFIX = "base_model.model."


def convert_conv_lora(
    state: dict[str, torch.Tensor],
    folder: Path,
    *,
    source: str,
    lora_alpha: float | None,
    decoder: str | None,
    base: str | None,
    image_size: int | None,
) -> list[str]:
    """Write the adapter in `state` to `folder`; arguments and errors as for `convert_official_checkpoint`.

    Args:
        source: name of the checkpoint, for messages.

    Returns:
        What was left out or compared, in sentences.
    """
    state = {re.sub(r"^(model\.)+", "", name): value for name, value in state.items()}
    layers = _adapted_layers(state, source)
    sizes = _common_sizes(layers, source)
    if decoder is None:
        _check_decoder(state, source)
    model, base_processor = load_base(base) if base is not None else (None, None)
    sam_config = _sam_config(state, width=sizes["width"]) if model is None else model.config
    frozen = _frozen_weights(state, sam_config, source)
    if model is not None:
        check_frozen(frozen, model, str(base))

    config = ConvLoraConfig(
        r=sizes["r"],
        lora_alpha=LORA_ALPHA if lora_alpha is None else lora_alpha,
        num_experts=sizes["experts"],
        router="faithful",
        decoder="full" if decoder is None else "frozen",
        num_mask_tokens=1 if decoder is None else None,
        layers_to_transform=_layers_to_transform(layers, sam_config),
    )
    tensors = _adapter_tensors(layers)
    if decoder is None:
        tensors |= _decoder_tensors(state)
    config = _check_against_peft(tensors, config, sam_config, source)
    # The model that it was injected into has no values.
    config.base_fingerprint = None if model is None else compute_fingerprint(model)
    config.base_model_name_or_path = base
    patch_size = sam_config.vision_config.patch_size
    side = _input_side(state, patch_size, image_size, base_processor)
    write_adapter(folder, config, tensors, SamAdaptProcessor(side, patch_size, resize="squash"))
    return _notes(state, len(frozen), decoder, base)


def _adapted_layers(state: dict[str, torch.Tensor], source: str) -> dict[int, dict[str, torch.Tensor]]:
    """Layer index -> its adapter's tensors by the name behind `lora_`, in the order of the layers."""
    layers: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in state.items():
        found = _ADAPTED.fullmatch(name)
        if found and found[2] not in _CONSTANTS:
            layers.setdefault(int(found[1]), {})[found[2]] = value
    if not layers:
        raise UserError(
            f"checkpoint: {source} has no Conv-LoRA weights (vision_encoder.layers.<i>.attn.qkv.lora_A and so on)"
        )
    return dict(sorted(layers.items()))


def _common_sizes(layers: dict[int, dict[str, torch.Tensor]], source: str) -> dict[str, int]:
    """Rank r, width C and number of experts M; layers of different or incomplete sizes are a `UserError`."""
    users: dict[tuple[int, int, int], list[int]] = {}
    for index, tensors in layers.items():
        experts = [int(found[1]) for name in tensors if (found := _EXPERT.match(name))]
        if "A" not in tensors or tensors["A"].ndim != 2 or not experts:
            raise UserError(f"checkpoint: {source}: layer {index} has no complete Conv-LoRA weights (lora_A, experts)")
        users.setdefault((*tensors["A"].shape, max(experts) + 1), []).append(index)
    if len(users) > 1:
        listed = "; ".join(
            f"r={rank}, width={width}, {experts} experts in layers {', '.join(map(str, indices))}"
            for (rank, width, experts), indices in users.items()
        )
        raise UserError(f"checkpoint: {source}: the layers differ in size: {listed}")
    (rank, width, experts), _ = users.popitem()
    expected = {
        "A": (rank, width),
        "B": (3 * width, rank),
        "moe_gating.w_gate": (rank, experts),
        "moe_gating.w_noise": (rank, experts),
        **{f"moe_experts.{e}.0.weight": (rank, rank, 3, 3) for e in range(experts)},
        **{f"moe_experts.{e}.0.bias": (rank,) for e in range(experts)},
    }
    for index, tensors in layers.items():
        _compare_shapes({name: tuple(value.shape) for name, value in tensors.items()}, expected, source, index)
    return {"r": rank, "width": width, "experts": experts}


def _compare_shapes(
    found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], source: str, index: int
) -> None:
    for kind, names in (("misses", expected.keys() - found.keys()), ("has unknown", found.keys() - expected.keys())):
        if names:
            listed = ", ".join(f"lora_{name}" for name in sorted(names)[:3])
            raise UserError(f"checkpoint: {source}: layer {index} {kind} {len(names)} Conv-LoRA weights: {listed}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise UserError(f"checkpoint: {source}: lora_{name} of layer {index} is {found[name]}, expected {shape}")


def _check_decoder(state: dict[str, torch.Tensor], source: str) -> None:
    """Raise `UserError` unless the checkpoint has a trained mask decoder for one class."""
    way_out = "; --decoder none (decoder='none') converts the encoder's adapter alone"
    if not any(name.startswith(_DECODER) and not name.startswith(_IOU_HEAD) for name in state):
        raise UserError(f"checkpoint: {source} has no mask_decoder weights{way_out}")
    tokens = state.get("mask_decoder.mask_tokens.weight")
    if any(_CLASS_HEAD in name for name in state) or (tokens is not None and len(tokens) > 1):
        raise UserError(
            f"checkpoint: {source} segments several classes, and its class head is not supported yet{way_out}"
        )


def _sam_config(state: dict[str, torch.Tensor], width: int) -> SamConfig:
    """Sizes of the SAM that was adapted, as far as the tensors tell; SAM's own elsewhere."""

    def size(name: str, axis: int, key: str) -> dict[str, int]:
        return {key: state[name].shape[axis]} if name in state else {}

    depth = 1 + max(int(found[1]) for name in state if (found := _LAYER.match(name)))
    patch = size("vision_encoder.patch_embed.projection.weight", -1, "patch_size")
    tokens = size("mask_decoder.mask_tokens.weight", 1, "hidden_size")
    hidden = size("mask_decoder.transformer.layers.0.mlp.lin1.weight", 0, "mlp_dim")
    vision = {"hidden_size": width, "num_hidden_layers": depth, **patch}
    return SamConfig(vision_config=vision, prompt_encoder_config=tokens, mask_decoder_config=tokens | hidden)


def _frozen_weights(state: dict[str, torch.Tensor], sam_config: SamConfig, source: str) -> dict[str, torch.Tensor]:
    """What the checkpoint has of the base model; a name that is neither that, nor trained, is a `UserError`."""
    with torch.device("meta"):
        sam = SamModel(sam_config)
    # Depth is left to the comparison with the base.
    known = {_LAYER.sub("vision_encoder.layers.0.", name) for name in sam.state_dict()}
    frozen, unknown = {}, []
    for name, value in state.items():
        if _ADAPTED.fullmatch(name) or _CLASS_HEAD in name:
            continue
        if _LAYER.sub("vision_encoder.layers.0.", name) not in known:
            unknown.append(name)
        elif not name.startswith(_DECODER) or name.startswith(_IOU_HEAD):
            frozen[name] = value
    if unknown:
        raise UserError(
            f"checkpoint: {source} has {len(unknown)} weights that are neither SAM's nor Conv-LoRA's: "
            f"{', '.join(unknown[:3])}"
        )
    return frozen


def _layers_to_transform(layers: dict[int, dict], sam_config: SamConfig) -> list[int] | None:
    return None if list(layers) == list(range(sam_config.vision_config.num_hidden_layers)) else list(layers)


def _adapter_tensors(layers: dict[int, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The encoder's part under the keys of PEFT's files, experts stacked."""
    tensors = {}
    for index, old in layers.items():
        prefix = f"{_PEFT_PREFIX}vision_encoder.layers.{index}.attn.qkv.lora_"
        experts = range(old["moe_gating.w_gate"].shape[1])
        tensors |= {
            f"{prefix}A.weight": old["A"],
            f"{prefix}B.weight": old["B"],
            f"{prefix}experts.weight": torch.stack([old[f"moe_experts.{e}.0.weight"] for e in experts]),
            f"{prefix}experts.bias": torch.stack([old[f"moe_experts.{e}.0.bias"] for e in experts]),
        }
        if len(experts) > 1:  # the gate of a single expert decides nothing, and this package's has none
            for name in ("w_gate", "w_noise"):
                tensors[f"{prefix}experts.{name}"] = old[f"moe_gating.{name}"]
    return tensors


def _decoder_tensors(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    prefix = f"{_PEFT_PREFIX}mask_decoder.lora_weights."
    return {
        prefix + name.removeprefix(_DECODER): value
        for name, value in state.items()
        if name.startswith(_DECODER) and not name.startswith(_IOU_HEAD)
    }


def _check_against_peft(
    tensors: dict[str, torch.Tensor], config: ConvLoraConfig, sam_config: SamConfig, source: str
) -> PeftConfig:
    """The config as injection leaves it; `UserError` unless PEFT saves such an adapter by these names and shapes."""
    with torch.device("meta"):
        adapted = get_peft_model(SamModel(sam_config), config)
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    for kind, keys in (("missing", expected.keys() - tensors.keys()), ("unknown", tensors.keys() - expected.keys())):
        if keys:
            listed = ", ".join(key.removeprefix(_PEFT_PREFIX) for key in sorted(keys)[:3])
            way_out = "; --decoder none leaves the decoder out" if any(_DECODER in key for key in keys) else ""
            raise UserError(f"checkpoint: {source}: {len(keys)} weights {kind}: {listed}{way_out}")
    for key, value in expected.items():
        if value.shape != tensors[key].shape:
            raise UserError(
                f"checkpoint: {source}: {key.removeprefix(_PEFT_PREFIX)} is {tuple(tensors[key].shape)}, this SAM "
                f"takes {tuple(value.shape)}"
            )
    return adapted.peft_config["default"]


def _input_side(
    state: dict[str, torch.Tensor], patch_size: int, wanted: int | None, base: SamAdaptProcessor | None
) -> int:
    """Side of the network's input in pixels: the position embedding's, the base's, the caller's, or SAM's."""
    table = state.get("vision_encoder.pos_embed")
    known = None if base is None else base.image_size
    if table is not None:
        known = table.shape[1] * patch_size  # (1, h, w, C)
    if known is not None and wanted not in (None, known):
        raise UserError(f"image_size: the checkpoint was trained at {known}, not at {wanted}; leave it unset")
    return known or wanted or IMAGE_SIZE


def _notes(state: dict[str, torch.Tensor], frozen: int, decoder: str | None, base: str | None) -> list[str]:
    notes = []
    if decoder == "none":
        dropped = sum(name.startswith(_DECODER) and not name.startswith(_IOU_HEAD) for name in state)
        notes.append(f"{dropped} weights of the mask decoder left out, as asked.")
    if base is None:
        notes.append(
            f"{frozen} frozen weights skipped, not compared: no --base. The adapter names no base model, so name the "
            "one it was trained on wherever it is loaded."
        )
    else:
        notes.append(f"{frozen} frozen weights compared with {base}: equal within half precision.")
    return notes
