"""Small SAMs whose weights matter: with transformers' default initialisation (std 1e-10) all images look alike."""

import torch
from torch import nn
from transformers import SamConfig, SamModel, SamVisionModel


def sam_config(image_size: int = 64, hidden_size: int = 32, layers: int = 3, window: int = 3, **vision) -> SamConfig:
    """A SamConfig of a few ten thousand parameters: grid 8x8, windows that do not divide it, one global layer."""
    patch = 8
    return SamConfig(
        vision_config={
            "hidden_size": hidden_size,
            "output_channels": 16,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "image_size": image_size,
            "patch_size": patch,
            "window_size": window,
            "global_attn_indexes": [1],
            "mlp_dim": 2 * hidden_size,
            "num_pos_feats": 8,
            **vision,
        },
        prompt_encoder_config={
            "hidden_size": 16,
            "image_size": image_size,
            "patch_size": patch,
            "mask_input_channels": 8,
        },
        mask_decoder_config={
            "hidden_size": 16,
            "mlp_dim": 32,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
    )


def randomise(model: nn.Module, seed: int = 0, std: float = 0.2) -> nn.Module:
    """Give every parameter values that change the output; norms stay near one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator) * std
            parameter.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)
    return model.eval()


def random_sam(seed: int = 0, **config) -> SamModel:
    return randomise(SamModel(sam_config(**config)), seed)


def random_vision_sam(seed: int = 0, **config) -> SamVisionModel:
    return randomise(SamVisionModel(sam_config(**config).vision_config), seed)


def perturb(model: nn.Module, seed: int = 1, std: float = 0.1) -> nn.Module:
    """Move every trainable parameter away from its initialisation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * std)
    return model
