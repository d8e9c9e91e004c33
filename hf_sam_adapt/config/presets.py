"""Presets: recipe keys by the memory that there is, chosen from benchmarks/preset_memory.py."""

from __future__ import annotations

from typing import Any


_GPU: dict[str, Any] = {"precision": "bf16"}

# Bytes of the step by benchmarks/RESULTS.md, "Memory of a step by shapes", with a tenth of the card to spare, and room
# for the wider queries and keys of a GPU's folded attention. Checkpointing would cost time where memory is left.
PRESETS: dict[str, dict[str, Any]] = {
    "cpu": {"method": "decoder", "cache_embeddings": True, "augment": ["none"]},
    # As much memory as ViT-B takes, for a third of its operations (RESULTS.md, "The SAMs").
    "8gb": {**_GPU, "model": "facebook/sam2.1-hiera-small", "batch_size": 4},
    "12gb": {**_GPU, "model": "facebook/sam-vit-large", "batch_size": 2, "gradient_accumulation_steps": 2},
    "24gb": {**_GPU, "model": "facebook/sam-vit-huge", "batch_size": 2, "gradient_accumulation_steps": 2},
    "80gb": {**_GPU, "model": "facebook/sam-vit-huge", "batch_size": 8},
}
# Keys of a preset that go with its method alone.
_OF_METHOD = {"cache_embeddings", "augment"}
_UNCHANGED: tuple = (None, ["none"], "none", [])  # of `augment`: images that stay as they are


def with_preset(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe's keys with those of its `preset` where they are not given.

    What belongs to the preset's method is left out where another method, or an adapter to start from, is named, and
    cached embeddings where images change; an adapter keeps its base model.
    """
    preset = values.get("preset")
    chosen = dict(PRESETS.get(preset, {})) if isinstance(preset, str) else {}
    if values.get("adapter") is not None:
        chosen.pop("model", None)
    if values.get("adapter") is not None or values.get("method", chosen.get("method")) != chosen.get("method"):
        chosen = {key: value for key, value in chosen.items() if key not in {*_OF_METHOD, "method"}}
    if values.get("tile") is not None or values.get("augment") not in _UNCHANGED:
        chosen.pop("cache_embeddings", None)  # whose images are the same in each epoch
    return chosen | {key: value for key, value in values.items() if value is not None or key not in chosen}
