"""Checkpoints as AutoGluon's Conv-LoRA writes them, made from a SAM of any size."""

import torch


QKV = "model.model.vision_encoder.layers.{}.attn.qkv."


def autogluon_state(sam, rank=2, experts=4, layers=None, scale=1.0, seed=7):
    """The state dict of an AutoGluon predictor around `sam`: its names, its pruned decoder, random trained values."""
    width = sam.config.vision_config.hidden_size
    layers = range(sam.config.vision_config.num_hidden_layers) if layers is None else layers
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return scale * torch.randn(*shape, generator=generator)

    state = {}
    for name, value in sam.state_dict().items():
        if any(name.startswith(f"mask_decoder.output_hypernetworks_mlps.{mlp}.") for mlp in (1, 2, 3)):
            continue
        trained = name.startswith("mask_decoder.") and "iou_prediction_head" not in name
        if name == "mask_decoder.mask_tokens.weight":
            value = value[:1]
        state[f"model.model.{name}"] = draw(*value.shape) if trained else value.clone()
    for index in layers:
        prefix = QKV.format(index)
        state |= {
            f"{prefix}lora_A": draw(rank, width),
            f"{prefix}lora_B": draw(3 * width, rank),
            f"{prefix}lora_moe_gating.w_gate": draw(rank, experts),
            f"{prefix}lora_moe_gating.w_noise": draw(rank, experts),
            f"{prefix}lora_moe_gating.mean": torch.zeros(1),
            f"{prefix}lora_moe_gating.std": torch.ones(1),
        }
        for expert in range(experts):
            state[f"{prefix}lora_moe_experts.{expert}.0.weight"] = draw(rank, rank, 3, 3)
            state[f"{prefix}lora_moe_experts.{expert}.0.bias"] = draw(rank)
    return state
