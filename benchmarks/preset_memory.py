"""Memory of a training step of each SAM and method, counted from shapes: what the presets are chosen by.

Random weights, nothing is computed, so no GPU is needed; CUDA's context and fragments come on top.

    python benchmarks/preset_memory.py
"""

from __future__ import annotations

import argparse

import torch
from hiera import HIERAS, build_hiera
from results import publish, table
from transformers import PreTrainedModel, SamConfig, SamModel

from hf_sam_adapt.config.recipe import Recipe
from hf_sam_adapt.estimate.shapes import step_bytes
from hf_sam_adapt.inference.loading import build_model
from hf_sam_adapt.sam.attention import use_fast_attention
from hf_sam_adapt.sam.gradient_checkpointing import enable_checkpointing


SIZES = {
    "vit-base": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "mlp_dim": 3072,
        "global_attn_indexes": [2, 5, 8, 11],
    },
    "vit-large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "mlp_dim": 4096,
        "global_attn_indexes": [5, 11, 17, 23],
    },
    "vit-huge": {
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "mlp_dim": 5120,
        "global_attn_indexes": [7, 15, 23, 31],
    },
}
METHODS = {
    "decoder, cached": ("decoder", {"cache_embeddings": True, "augment": ["none"]}),
    "sam_adapter": ("sam_adapter", {}),
    "conv_lora": ("conv_lora", {}),
    "cwsam": ("cwsam", {}),
    "lora": ("lora", {}),
    "lora, attention of transformers": ("lora", {"attention": "sdpa"}),
    "full": ("full", {}),
}


def row(size: str, name: str, batches: list[int]) -> list[str]:
    """Gigabytes of weights and step at each batch size, without and with checkpointing."""
    method, keys = METHODS[name]
    if size in HIERAS:
        base: PreTrainedModel = build_hiera(size, 1024)
    else:
        base = SamModel(SamConfig(vision_config={**SIZES[size], "initializer_range": 0.02}))
    use_fast_attention(base, keys.get("attention", "auto"))
    fields = {"num_labels": 2} if method == "cwsam" else {}
    model = build_model(method, fields, base, image_size=None)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    recipe = Recipe(model="tiny", method=method, precision="bf16", loss="ce+dice" if fields else "structure", **keys)
    cells = [size, name, f"{weights / 1e9:.1f}"]
    for checkpointing in (False, True):
        if checkpointing:
            enable_checkpointing(model, True)
        for batch in batches:
            cells.append(f"{(weights + step_bytes(model, recipe, batch, 1)) / 1e9:.1f}")
    print(cells, flush=True)
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=[*SIZES, *HIERAS], default=list(SIZES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4])
    args = parser.parse_args()
    torch.manual_seed(0)
    rows = [row(size, name, args.batches) for size in args.sizes for name in args.methods]
    header = ["SAM", "method", "weights"]
    header += [f"batch {batch}{way}" for way in ("", ", checkpointed") for batch in args.batches]
    note = "GB of 1e9 bytes, weights included; 1024 pixels, one object an image, bf16 autocast over fp32 weights."
    publish("Memory of a step by shapes", f"{table(header, rows)}\n\n{note}")


if __name__ == "__main__":
    main()
