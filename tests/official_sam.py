"""Checkpoints as Meta's SAM and the official SAM-Adapter, CWSAM and CoSAM name their weights, made from a small SAM.

Written down from the official modules' attribute names, not with the converter's tables.
"""

import torch


def official_name(name):
    """The name in Meta's SAM of a parameter of transformers' encoder or mask decoder."""
    name = name.replace("vision_encoder.", "image_encoder.").replace("patch_embed.projection", "patch_embed.proj")
    for ours, theirs in (("conv1", 0), ("layer_norm1", 1), ("conv2", 2), ("layer_norm2", 3)):
        name = name.replace(f"neck.{ours}", f"neck.{theirs}")
    for ours, theirs in (("upscale_conv1", 0), ("upscale_layer_norm", 1), ("upscale_conv2", 3)):
        name = name.replace(ours, f"output_upscaling.{theirs}")
    if name.startswith("image_encoder."):
        name = name.replace("image_encoder.layers.", "image_encoder.blocks.")
    name = name.replace("layer_norm_final_attn", "norm_final_attn").replace("layer_norm", "norm")
    if any(part in name for part in ("hf_mlp", "hypernetworks", "iou_prediction")):
        for ours, theirs in (("layers.0", "layers.1"), ("proj_in", "layers.0"), ("proj_out", "layers.2")):
            name = name.replace(f".{ours}.", f".{theirs}.")
    return name


class Draw:
    """Random tensors of a seed; `norm=True` near one."""

    def __init__(self, seed=11, scale=0.2):
        self.generator, self.scale = torch.Generator().manual_seed(seed), scale

    def __call__(self, *shape, norm=False):
        return norm + self.scale * torch.randn(*shape, generator=self.generator)


def sam_adapter_state(sam, rank=8, seed=11):
    """`model_epoch_*.pth` of SAM-Adapter: frozen encoder of `sam`, everything else drawn."""
    draw = Draw(seed)
    vision, width = sam.config.vision_config, sam.config.vision_config.hidden_size
    state = {}
    for name, value in sam.state_dict().items():
        if name.startswith("vision_encoder."):
            state[official_name(name)] = value.clone()
        elif name.startswith("mask_decoder."):
            norm = "norm" in name and name.endswith("weight")
            state[official_name(name)] = draw(*value.shape, norm=norm)
    generator = "image_encoder.prompt_generator."
    patch = vision.patch_size
    sizes = {"shared_mlp": (width, rank), "embedding_generator": (rank, width)}
    sizes["prompt_generator.proj"] = (rank, 3, patch, patch)
    sizes |= {f"lightweight_mlp_{index}.0": (rank, rank) for index in range(vision.num_hidden_layers)}
    for name, shape in sizes.items():
        state[f"{generator}{name}.weight"], state[f"{generator}{name}.bias"] = draw(*shape), draw(shape[0])
    state["pe_layer.positional_encoding_gaussian_matrix"] = 5 * draw(2, vision.num_pos_feats)
    state["no_mask_embed.weight"] = 5 * draw(1, sam.config.mask_decoder_config.hidden_size)
    return state


def cwsam_state(sam, classes=3, rank=8, hidden=8, seed=12):
    """`model_epoch_*.pth` of CWSAM: SAM-Adapter's, three adapters a block, the class head, the loss's weights."""
    draw, state = Draw(seed), sam_adapter_state(sam, rank, seed)
    width, decoder = sam.config.vision_config.hidden_size, sam.config.mask_decoder_config.hidden_size
    for index in range(sam.config.vision_config.num_hidden_layers):
        for adapter in ("Space_Adapter", "MLP_Adapter", "Depth_Adapter"):
            prefix = f"image_encoder.blocks.{index}.{adapter}"
            for layer, (out, inputs) in {"D_fc1": (hidden, width), "D_fc2": (width, hidden)}.items():
                state[f"{prefix}.{layer}.weight"], state[f"{prefix}.{layer}.bias"] = draw(out, inputs), draw(out)
    both = decoder // 4  # the upscaled maps of two passes
    head = "mask_decoder.cls_upscaling."
    state |= {f"{head}0.weight": draw(both, both, 2, 2), f"{head}0.bias": draw(both)}
    state |= {f"{head}1.weight": draw(both, norm=True), f"{head}1.bias": draw(both)}
    out = decoder * classes // 8
    state |= {f"{head}3.weight": draw(out, both, 7, 7), f"{head}3.bias": draw(out)}
    return state | {"criterionBCE.weight": torch.ones(classes)}


def hq_state(sam, seed=13):
    """`adapter_<domain>.pth` of CoSAM: SAM's frozen decoder and HQ-SAM's five modules."""
    draw = Draw(seed)
    width, c = sam.config.vision_config.hidden_size, sam.config.mask_decoder_config.hidden_size
    state = {official_name(name): value.clone() for name, value in sam.mask_decoder.state_dict().items()}
    state["hf_token.weight"] = draw(1, c)
    for layer, (out, inputs) in {0: (c, c), 1: (c, c), 2: (c // 8, c)}.items():
        state |= {f"hf_mlp.layers.{layer}.weight": draw(out, inputs), f"hf_mlp.layers.{layer}.bias": draw(out)}
    convolutions = {
        "compress_vit_feat": ((width, c, 2, 2), c, (c, c // 8, 2, 2)),
        "embedding_encoder": ((c, c // 4, 2, 2), c // 4, (c // 4, c // 8, 2, 2)),
        "embedding_maskfeature": ((c // 4, c // 8, 3, 3), c // 4, (c // 8, c // 4, 3, 3)),
    }
    for name, (first, middle, last) in convolutions.items():
        state |= {f"{name}.0.weight": draw(*first), f"{name}.0.bias": draw(middle)}
        state |= {f"{name}.1.weight": draw(middle, norm=True), f"{name}.1.bias": draw(middle)}
        state |= {f"{name}.3.weight": draw(*last), f"{name}.3.bias": draw(c // 8)}
    return state


def classifier_state(sam, domains, tokens=4, seed=14):
    """`task_classifier_after_<n>th_*.pth` of CoSAM."""
    draw, width = Draw(seed, 1.0), sam.config.vision_config.hidden_size
    layer = {"layers.0.weight": draw(domains, width), "layers.0.bias": draw(domains)}
    return {"cls_token": draw(1, tokens, width), **layer}
