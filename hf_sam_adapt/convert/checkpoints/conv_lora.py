"""AutoGluon's Conv-LoRA checkpoints (arXiv 2401.17868): `model.ckpt` of a semantic segmentation predictor.

Per adapted layer `vision_encoder.layers.{i}.attn.qkv.` + `lora_A` (r, C), `lora_B` (3C, r), `lora_moe_gating.w_gate`
and `.w_noise` (r, M), `lora_moe_experts.{e}.0.weight` (r, r, 3, 3) and `.bias` (r,), for the M experts of layer i;
further the mask decoder, trained but for its IoU head, and the frozen rest of SAM. For one class the decoder is cut
down to one mask token; for several it has one or more and a linear layer that gives each a class.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from ...errors import UserError
from ...tuners.conv_lora import ConvLoraConfig
from .checkpoint import Checkpoint
from .engine import DECODER, WAY_OUT, Adapter, Request, Tensors, class_names, sam_config_of, split, write_converted


LORA_ALPHA = 32  # the official preset's, which the paper's script leaves as it is
UNTOLD = ("lora_alpha", "top_k", "eval_routing")

_ADAPTED = re.compile(r"vision_encoder\.layers\.(\d+)\.attn\.qkv\.lora_(.+)")
_EXPERT = re.compile(r"moe_experts\.(\d+)\.")
_CONSTANTS = ("moe_gating.mean", "moe_gating.std")  # of the noise: 0 and 1
_IOU_HEAD, _CLASS_HEAD = "mask_decoder.iou_prediction_head.", "mask_decoder.output_classifier_mlps."
_TRAINED_DECODER = [
    (r"mask_decoder\.output_classifier_mlps\.", "mask_decoder.lora_class_head.classifier."),
    (r"mask_decoder\.(?!iou_prediction_head\.)", "mask_decoder.lora_weights."),
]


def convert_conv_lora(checkpoint: Checkpoint, folder: Path, request: Request) -> list[str]:
    """Write the adapter in a checkpoint to `folder`; errors as for `convert_official_checkpoint`.

    Returns:
        What was left out, is in no tensor, or was compared, in sentences.
    """
    state, source, alone = checkpoint.tensors, str(checkpoint), request.decoder == "none"
    layers = _adapted_layers(state, source)
    sizes = _common_sizes(layers, source)
    fields: dict[str, Any] = {"decoder": "frozen"} if alone else _decoder_fields(state, source, request.classes)
    sam_config = sam_config_of(state, sizes["width"]) if request.base is None else request.base.model.config
    rest = {name: value for name, value in state.items() if not _ADAPTED.fullmatch(name)}
    trained, frozen = split(rest, _TRAINED_DECODER)
    vision: Any = sam_config.vision_config
    fields |= {
        "r": sizes["r"],
        "lora_alpha": LORA_ALPHA,
        "num_experts": sizes["experts"],
        "router": "faithful",
        "layers_to_transform": None if list(layers) == list(range(vision.num_hidden_layers)) else list(layers),
    }
    config = ConvLoraConfig(**fields | request.fields)
    notes = [f"{len(trained)} weights of the mask decoder left out, as asked."] if alone else []
    if config.num_labels is not None and config.id2label is None:
        notes.append(f"{config.num_labels} classes without names, which --classes gives.")
    tensors = _adapter_tensors(layers) | ({} if alone else trained)
    adapter = Adapter(config, tensors, frozen, notes, UNTOLD, {"resample": "bicubic"})
    return write_converted(adapter, sam_config, folder, checkpoint, request, title="Conv-LoRA")


def _adapted_layers(state: Tensors, source: str) -> dict[int, Tensors]:
    """Layer index -> its adapter's tensors by the name behind `lora_`, in the order of the layers."""
    layers: dict[int, Tensors] = {}
    for name, value in state.items():
        found = _ADAPTED.fullmatch(name)
        if found and found[2] not in _CONSTANTS:
            layers.setdefault(int(found[1]), {})[found[2]] = value
    if not layers:
        raise UserError(
            f"{source} has no Conv-LoRA weights (vision_encoder.layers.<i>.attn.qkv.lora_A and so on)",
            key="checkpoint",
        )
    return dict(sorted(layers.items()))


def _common_sizes(layers: dict[int, Tensors], source: str) -> dict[str, int]:
    """Rank r, width C and number of experts M; layers of different or incomplete sizes are a `UserError`."""
    users: dict[tuple[int, int, int], list[int]] = {}
    for index, tensors in layers.items():
        numbers = [int(found[1]) for name in tensors if (found := _EXPERT.match(name))]
        if "A" not in tensors or tensors["A"].ndim != 2 or not numbers:
            raise UserError(
                f"{source}: layer {index} has no complete Conv-LoRA weights (lora_A, experts)", key="checkpoint"
            )
        rank, width = tensors["A"].shape
        users.setdefault((rank, width, max(numbers) + 1), []).append(index)
    if len(users) > 1:
        listed = "; ".join(
            f"r={rank}, width={width}, {experts} experts in layers {', '.join(map(str, indices))}"
            for (rank, width, experts), indices in users.items()
        )
        raise UserError(f"{source}: the layers differ in size: {listed}", key="checkpoint")
    (rank, width, experts), _ = users.popitem()
    expected: dict[str, tuple[int, ...]] = {
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
            raise UserError(
                f"{source}: layer {index} {kind} {len(names)} Conv-LoRA weights: {listed}", key="checkpoint"
            )
    for name, shape in expected.items():
        if found[name] != shape:
            raise UserError(
                f"{source}: lora_{name} of layer {index} is {found[name]}, expected {shape}", key="checkpoint"
            )


def _decoder_fields(state: Tensors, source: str, classes: list[str] | None) -> dict[str, Any]:
    """The config's fields on the decoder; `UserError` unless the checkpoint has a trained one that AutoGluon knows."""
    if not any(name.startswith(DECODER) and not name.startswith(_IOU_HEAD) for name in state):
        raise UserError(f"{source} has no mask_decoder weights{WAY_OUT}", key="checkpoint")
    tokens = state.get("mask_decoder.mask_tokens.weight")
    count = 1 if tokens is None else len(tokens)
    if not any(name.startswith(_CLASS_HEAD) for name in state):
        if count > 1:
            raise UserError(
                f"{source} has {count} mask tokens and no class head ({_CLASS_HEAD}weight), so it is not a decoder of "
                f"AutoGluon's: one token is for one class, and several classes have a head{WAY_OUT}",
                key="checkpoint",
            )
        if classes is not None:
            raise UserError(f"{source} segments one class", key="classes", fix="leave them out")
        return {"decoder": "full", "num_mask_tokens": 1}
    head = state.get(f"{_CLASS_HEAD}weight")
    if head is None or head.ndim != 2 or len(head) < 3:
        raise UserError(
            f"{source} has no whole class head ({_CLASS_HEAD}weight, classes + 1 rows){WAY_OUT}", key="checkpoint"
        )
    labels = len(head) - 1  # the last row: no object
    names = class_names(classes, labels)
    return {"decoder": "class_wise", "num_mask_tokens": count, "num_labels": labels, "id2label": names}


def _adapter_tensors(layers: dict[int, Tensors]) -> Tensors:
    """The encoder's part with the experts stacked."""
    tensors: Tensors = {}
    for index, old in layers.items():
        prefix = f"vision_encoder.layers.{index}.attn.qkv.lora_"
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
