"""The nets that `tiny` and its variant on Hiera, `tiny2`, are: sizes, first weights, or those of an exported model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, Sam2Config, Sam2Model, SamConfig, SamModel

from hf_sam_adapt.sam.families import family_of
from hf_sam_adapt.sam.image_embeddings import ImageEmbeddings


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


def tiny2_config() -> Sam2Config:
    """5.0 M parameters: SAM 2's form with nine blocks in four stages, two of them global in the third."""
    widths = [48, 96, 192, 384]
    return Sam2Config(
        vision_config={
            "model_type": "sam2_vision_model",
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": widths[0],
                "num_attention_heads": 1,
                "blocks_per_stage": [1, 2, 5, 1],
                "embed_dim_per_stage": widths,
                "num_attention_heads_per_stage": [1, 2, 3, 6],
                "window_size_per_stage": [8, 4, 8, 8],
                "global_attention_blocks": [5, 7],
                "image_size": [SIDE, SIDE],
            },
            "backbone_channel_list": widths[::-1],
            "backbone_feature_sizes": [[factor * GRID] * 2 for factor in (4, 2, 1)],
            "fpn_hidden_size": WIDTH,
        },
        prompt_encoder_config={
            "hidden_size": WIDTH,
            "mask_input_channels": 16,
            "image_size": SIDE,
            "patch_size": SIDE // GRID,
        },
        mask_decoder_config={
            "hidden_size": WIDTH,
            "mlp_dim": 4 * WIDTH,
            "num_attention_heads": 8,
            "iou_head_hidden_dim": WIDTH,
        },
    )


ARCHITECTURES = {"tiny": (SamModel, tiny_config), "tiny2": (Sam2Model, tiny2_config)}


def encode(sam: nn.Module, images: torch.Tensor) -> ImageEmbeddings:
    """What the decoder takes of images (B, 3, 256, 256)."""
    return family_of(sam).encode(sam, images)


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Xavier, N(0, 1) for tokens and point embeddings, and equal orthogonal query and key in the cross-attentions."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.fill_(float(name.endswith("weight")))
        elif name.endswith("bias") or "rel_pos" in name or "no_memory" in name:
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


def decoder_for_sam2(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Prompt encoder and decoder of a `SamModel` by the names of `Sam2Model`; the finer maps add nothing at first."""
    renamed = {}
    for name, value in state.items():
        for theirs, ours in (("out_proj", "o_proj"), ("mlp.lin1", "mlp.proj_in"), ("mlp.lin2", "mlp.proj_out")):
            name = name.replace(theirs, ours)
        renamed[name] = value
    points = [renamed.pop(f"prompt_encoder.point_embed.{number}.weight") for number in range(4)]
    found = {name: value for name, value in renamed.items() if not name.startswith("vision_encoder.")}
    found["prompt_encoder.point_embed.weight"] = torch.cat(points)
    for number, channels in enumerate((WIDTH // 8, WIDTH // 4)):
        found[f"mask_decoder.conv_s{number}.weight"] = torch.zeros(channels, WIDTH, 1, 1)
        found[f"mask_decoder.conv_s{number}.bias"] = torch.zeros(channels)
    return found


def teacher_of(architecture: str, init: str | None) -> nn.Module | None:
    """The frozen `tiny` of the folder `init`, where a `tiny2` is to take its decoder and learn its embedding."""
    if init is None or architecture == "tiny" or AutoConfig.from_pretrained(init).model_type != "sam":
        return None
    return SamModel.from_pretrained(Path(init), dtype=torch.float32).requires_grad_(False)


def new_model(architecture: str = "tiny", init: str | None = None) -> nn.Module:
    """The net in fp32 with first weights, or those of the folder `init`: of a `tiny`, a `tiny2` takes the decoder."""
    model_class, config_of = ARCHITECTURES[architecture]
    config = config_of()
    if architecture == "tiny":  # SDPA with a bias is slow here
        config._attn_implementation = config.vision_config._attn_implementation = "eager"
    model = model_class(config)
    initialise(model)
    teacher = teacher_of(architecture, init)
    if teacher is not None:
        unknown = model.load_state_dict(decoder_for_sam2(teacher.state_dict()), strict=False).unexpected_keys
        assert not unknown, unknown
    elif init is not None:
        model.load_state_dict(model_class.from_pretrained(Path(init), dtype=torch.float32).state_dict())
    fixed = model.shared_image_embedding.positional_embedding
    if architecture == "tiny2":  # SAM 2 has the matrix twice; its memory is not for single images
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(fixed)
        model.no_memory_embedding.requires_grad_(False)
    fixed.requires_grad_(False)
    return model
