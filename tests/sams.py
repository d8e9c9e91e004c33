"""Small SAMs whose weights matter: with transformers' default initialisation (std 1e-10) all images look alike."""

import torch
from torch import nn
from transformers import (
    Sam2Config,
    Sam2Model,
    Sam2VideoConfig,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    Sam3VideoConfig,
    SamConfig,
    SamHQConfig,
    SamHQModel,
    SamModel,
    SamVisionModel,
)


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
        for name, buffer in model.named_buffers():
            if name.endswith("positional_embedding"):  # drawn when the model is built; the same in each of its places
                buffer.copy_(torch.randn(buffer.shape, generator=torch.Generator().manual_seed(seed)))
    return model.eval()


def random_sam(seed: int = 0, **config) -> SamModel:
    return randomise(SamModel(sam_config(**config)), seed)


def random_vision_sam(seed: int = 0, **config) -> SamVisionModel:
    return randomise(SamVisionModel(sam_config(**config).vision_config), seed)


def sam_hq_config(**config) -> SamHQConfig:
    """`sam_config` with SAM-HQ's branch."""
    sizes = sam_config(**config).to_dict()
    parts = {name: sizes[name] for name in ("vision_config", "prompt_encoder_config", "mask_decoder_config")}
    for part in parts.values():
        part.pop("model_type")
    parts["mask_decoder_config"]["vit_dim"] = parts["vision_config"]["hidden_size"]
    return SamHQConfig(**parts)


def random_sam_hq(seed: int = 0, **config) -> SamHQModel:
    return randomise(SamHQModel(sam_hq_config(**config)), seed)


def _pyramid_parts(image_size: int, patch: int, vision_type: str, backbone: dict, **vision) -> dict:
    """The parts of a Sam2Config or a Sam3TrackerConfig, which differ in the backbone."""
    grid = image_size // patch
    sizes = {"backbone_feature_sizes": [[factor * grid] * 2 for factor in (4, 2, 1)], "fpn_hidden_size": 32}
    prompts = {"hidden_size": 32, "image_size": image_size, "patch_size": patch, "mask_input_channels": 8}
    return {
        "vision_config": {"model_type": vision_type, "backbone_config": backbone, **sizes, **vision},
        "prompt_encoder_config": prompts,
        "mask_decoder_config": {
            "hidden_size": 32,
            "mlp_dim": 32,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 8,
        },
    }


def sam2_config(image_size: int = 128, **backbone) -> Sam2Config:
    """Four stages, windows that do not divide the map of the third, one global block in it."""
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "num_attention_heads": 1,
        "blocks_per_stage": [1, 2, 2, 2],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [8, 4, 6, 3],
        "global_attention_blocks": [4],
        "image_size": [image_size, image_size],
        **backbone,
    }
    channels = {"backbone_channel_list": [64, 32, 16, 8]}
    return Sam2Config(**_pyramid_parts(image_size, 16, "sam2_vision_model", backbone, **channels))


def random_sam2(seed: int = 0, **config) -> Sam2Model:
    return randomise(Sam2Model(sam2_config(**config)), seed)


def sam3_tracker_config(image_size: int = 112, **backbone) -> Sam3TrackerConfig:
    """A grid of 8 with windows of 3, which do not divide it, and two global blocks of four."""
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": image_size,
        "window_size": 3,
        "global_attn_indexes": [1, 3],
        "pretrain_image_size": 42,
        **backbone,
    }
    return Sam3TrackerConfig(**_pyramid_parts(image_size, 14, "sam3_vision_model", backbone))


def random_sam3_tracker(seed: int = 0, **config) -> Sam3TrackerModel:
    return randomise(Sam3TrackerModel(sam3_tracker_config(**config)), seed)


_MEMORY = {
    "memory_attention_hidden_size": 32,
    "memory_attention_num_layers": 1,
    "memory_attention_feed_forward_hidden_size": 32,
    "memory_attention_rope_feat_sizes": [8, 8],
    "memory_encoder_hidden_size": 32,
    "memory_encoder_output_channels": 8,
    "memory_fuser_embed_dim": 32,
    "memory_fuser_intermediate_dim": 32,
    "memory_fuser_num_layers": 1,
    "mask_downsampler_embed_dim": 32,
}
_PARTS = ("vision_config", "prompt_encoder_config", "mask_decoder_config")


def _video_parts(config: Sam2Config | Sam3TrackerConfig) -> dict:
    parts = {name: getattr(config, name).to_dict() for name in _PARTS}
    for name in _PARTS[1:]:
        parts[name].pop("model_type")
    return parts


def sam2_video_config() -> Sam2VideoConfig:
    """As Meta's checkpoints of SAM 2 come."""
    return Sam2VideoConfig(**_video_parts(sam2_config()), **_MEMORY, image_size=128)


def sam3_video_config() -> Sam3VideoConfig:
    """As Meta's checkpoint of SAM 3 comes: a detector, and a tracker that shares its encoder."""
    parts = _video_parts(sam3_tracker_config())
    layer = {"hidden_size": 32, "num_layers": 1, "intermediate_size": 16, "num_attention_heads": 2}
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Sam3VideoConfig(
        tracker_config={**parts, **_MEMORY, "image_size": 112},
        detector_config={
            "vision_config": parts["vision_config"],
            "text_config": {**text, "vocab_size": 50, "projection_dim": 16, "bos_token_id": 0, "eos_token_id": 1},
            "detr_encoder_config": layer,
            "detr_decoder_config": {**layer, "num_queries": 5},
            "geometry_encoder_config": layer,
            "mask_decoder_config": {"hidden_size": 32},
        },
    )


# By `config.model_type`.
RANDOM_SAMS = {"sam": random_sam, "sam_hq": random_sam_hq, "sam2": random_sam2, "sam3_tracker": random_sam3_tracker}


def perturb(model: nn.Module, seed: int = 1, std: float = 0.1) -> nn.Module:
    """Move every trainable parameter away from its initialisation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * std)
    return model
