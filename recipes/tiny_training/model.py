"""The net that `tiny` is: its sizes, its first weights, or those of an exported model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import SamConfig, SamModel


SIDE, GRID, MASK = 256, 16, 64  # pixels of input, tokens and mask logits a side
WIDTH = 128  # channels of image embedding and decoder


def tiny_config() -> SamConfig:
    """3.8 M parameters: six layers of 192, two of them global, and a decoder of SAM's form at half its width."""
    vision = {"hidden_size": 192, "mlp_dim": 768, "num_hidden_layers": 6, "num_attention_heads": 3}
    vision |= {"window_size": 8, "global_attn_indexes": [2, 5], "output_channels": WIDTH, "num_pos_feats": WIDTH // 2}
    size = {"image_size": SIDE, "patch_size": SIDE // GRID}
    return SamConfig(
        vision_config=vision | size,
        prompt_encoder_config={"hidden_size": WIDTH, "mask_input_channels": 16} | size,
        mask_decoder_config={
            "hidden_size": WIDTH,
            "mlp_dim": 4 * WIDTH,
            "num_attention_heads": 8,
            "iou_head_hidden_dim": WIDTH,
        },
    )


@torch.no_grad()
def initialise(model: SamModel) -> None:
    """Xavier, N(0, 1) for tokens and point embeddings, and equal orthogonal query and key in the cross-attentions."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.fill_(float(name.endswith("weight")))
        elif name.endswith("bias") or "rel_pos" in name:
            parameter.zero_()
        elif "pos_embed" in name:
            nn.init.trunc_normal_(parameter, std=0.02)
        elif any(part in name for part in ("token", "point_embed", "not_a_point", "positional_embedding")) and (
            parameter.shape[0] <= 4
        ):
            parameter.normal_()
        elif "no_mask_embed" in name:
            parameter.normal_(std=0.5)
        elif "upscale_conv" in name:
            nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")
        else:
            nn.init.xavier_uniform_(parameter.view(parameter.shape[0], -1))
    for name, module in model.mask_decoder.named_modules():
        if hasattr(module, "q_proj") and "self_attn" not in name:
            nn.init.orthogonal_(module.q_proj.weight, gain=1.5)
            module.k_proj.weight.copy_(module.q_proj.weight)
            module.q_proj.bias.zero_()
            module.k_proj.bias.zero_()


def new_model(init: str | None = None) -> SamModel:
    """The net with first weights, or with those of the model folder `init`, in fp32."""
    config = tiny_config()
    config._attn_implementation = config.vision_config._attn_implementation = "eager"  # SDPA with a bias is slow here
    model = SamModel(config)
    initialise(model)
    if init is not None:
        found = SamModel.from_pretrained(Path(init), dtype=torch.float32).state_dict()
        model.load_state_dict(found)
    model.shared_image_embedding.positional_embedding.requires_grad_(False)
    return model
