"""The fingerprint of a base model: what tells one SAM from another without trusting its name."""

import hashlib
from collections.abc import Mapping

import torch
from torch import nn

from ..errors import UserError
from .families import encoder_shape, family_of, find_vision_encoder
from .image_size import original_position_embedding


PARTS = ("model_type", "hidden_size", "num_hidden_layers", "patch_size", "image_size", "pos_embed")
POSITION_ENTRIES = 64
TOLERANCE = 1e-2  # of the largest entry: wide enough for fp16 and bf16 copies of the same weights


def compute_fingerprint(model: nn.Module) -> dict:
    """Describe a base model by the shape of its encoder and some values of its position embedding.

    Args:
        model: the base model, before or after adapters were injected, at its own or at a resized input size.

    Returns:
        JSON-able dictionary: `model_type`, `hidden_size`, `num_hidden_layers`, `patch_size`, `image_size` (the
        original one) and `pos_embed`, 64 evenly spaced entries of the original table as floats. An entry is None where
        the model has no such part: no SAM encoder, no absolute position embedding, or no values (meta device).
    """
    encoder = find_vision_encoder(model)
    if encoder is None:
        return dict.fromkeys(
            ("model_type", "hidden_size", "num_hidden_layers", "patch_size", "image_size", "pos_embed")
        )
    table, image_size = original_position_embedding(encoder)
    values = None
    if table is not None and table.device.type != "meta":
        flat = table.detach().flatten()
        picks = torch.linspace(0, flat.numel() - 1, POSITION_ENTRIES, dtype=torch.float64).long().to(flat.device)
        values = flat[picks].float().tolist()
    shape = encoder_shape(encoder)
    return {
        "model_type": family_of(encoder).model_type,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "patch_size": shape.patch_size,
        "image_size": image_size,
        "pos_embed": values,
    }


def check_fingerprint(stored: dict, model: nn.Module, adapter: str) -> None:
    """Compare the fingerprint out of an adapter's file with a base model.

    Args:
        stored: the dictionary of `adapter_config.json`; parts that are None on either side are not compared.
        model: the base model that the adapter is to be injected into.
        adapter: name of the adapter, for the message.

    Raises:
        UserError: if a part differs.
    """
    actual = compute_fingerprint(model)
    for part, expected in sorted(stored.items(), key=lambda item: item[0] != "model_type"):
        found = actual.get(part)
        if expected is None or found is None:
            continue
        if part == "pos_embed":
            limit = TOLERANCE * max(abs(value) for value in expected)
            if max(abs(a - b) for a, b in zip(expected, found, strict=True)) > limit:
                raise UserError(
                    f"adapter {adapter!r} was trained on a base model with other weights (base_fingerprint.pos_embed "
                    "differs)",
                    fix="load the base model that base_model_name_or_path in its adapter_config.json names",
                )
        elif expected != found:
            raise UserError(
                f"adapter {adapter!r} was trained on another base model: base_fingerprint.{part} is {expected}, this "
                f"model has {found}",
                fix="load the base model that base_model_name_or_path in its adapter_config.json names",
            )


def weights_digest(model: nn.Module) -> str:
    """A digest of all parameters and buffers of a model by name, dtype, shape and bytes, 32 hexadecimal digits."""
    found = hashlib.blake2b(digest_size=16)
    hash_tensors(found, dict(sorted(model.state_dict().items())))
    return found.hexdigest()


def hash_tensors(digest: "hashlib.blake2b", tensors: Mapping[str, torch.Tensor]) -> None:
    """Add name, dtype, shape and bytes of each tensor to a digest."""
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
