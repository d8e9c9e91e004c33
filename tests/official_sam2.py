"""SAM2-Adapter's official computation, written down from its description on the tensors of a checkpoint, by its names.

As its code has them: prompts by group, a decoder with two mask tokens that returns the second one's mask, no point in
the place of no prompt, no embedding of no memory, and the finer maps of the last image of a batch for all.
"""

import re

import torch
import torch.nn.functional as F
from reference_families import attend, pool, windows
from reference_sam import complex_frequency_component
from torch import nn


State = dict[str, torch.Tensor]
TRUNK, GENERATOR = "image_encoder.trunk.", "image_encoder.trunk.prompt_generator."
# transformers' names and the official ones, for a state that a random Sam2Model gives.
NAMES = [
    (r"^vision_encoder\.backbone\.", TRUNK),
    (r"patch_embed\.projection\.", "patch_embed.proj."),
    (r"(blocks\.\d+|transformer\.layers\.\d+)\.layer_norm", r"\1.norm"),
    (r"(blocks\.\d+\.mlp)\.proj_in\.", r"\1.layers.0."),
    (r"(blocks\.\d+\.mlp)\.proj_out\.", r"\1.layers.1."),
    (r"^vision_encoder\.neck\.convs\.(\d+)\.", r"image_encoder.neck.convs.\1.conv."),
    (r"upscale_conv1\.", "output_upscaling.0."),
    (r"upscale_layer_norm\.", "output_upscaling.1."),
    (r"upscale_conv2\.", "output_upscaling.3."),
    (r"(mlps\.\d+|head)\.layers\.0\.", r"\1.layers.1."),
    (r"(mlps\.\d+|head)\.proj_in\.", r"\1.layers.0."),
    (r"(mlps\.\d+|head)\.proj_out\.", r"\1.layers.2."),
    (r"(transformer\.layers\.\d+\.mlp)\.proj_in\.", r"\1.lin1."),
    (r"(transformer\.layers\.\d+\.mlp)\.proj_out\.", r"\1.lin2."),
    (r"\.o_proj\.", ".out_proj."),
    (r"layer_norm_final_attn\.", "norm_final_attn."),
]


def official_state(sam: nn.Module, scale: int = 2, seed: int = 5) -> State:
    """A checkpoint of a Sam2Model's encoder with random prompts and a random decoder."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.2

    state = {}
    for name, value in sam.state_dict().items():
        if not name.startswith(("vision_encoder.", "mask_decoder.")) or "pred_obj_score_head" in name:
            continue
        if re.search(r"output_hypernetworks_mlps\.[23]\.", name):
            continue
        theirs = name
        for pattern, replacement in NAMES:
            theirs = re.sub(pattern, replacement, theirs)
        if name.startswith("mask_decoder."):
            value = value[:2] if name in ("mask_decoder.mask_tokens.weight",) else value
            norm = "norm" in name and name.endswith("weight")
            value = draw(*value.shape) + norm
        state[theirs] = value.clone()
    hidden = sam.mask_decoder.hidden_size
    state |= {"mask_decoder.pred_obj_score_head.weight": draw(1, hidden), "no_mask_embed.weight": draw(1, hidden)}
    state["mask_decoder.pred_obj_score_head.bias"] = draw(1)
    state["pe_layer.positional_encoding_gaussian_matrix"] = draw(2, hidden // 2) * 5
    config = sam.config.vision_config.backbone_config
    channels = 3
    for number, (width, depth) in enumerate(zip(config.embed_dim_per_stage, config.blocks_per_stage), 1):
        rank, size = width // scale, 7 if number == 1 else 3
        shapes = {f"handcrafted_generator{number}.proj": (rank, channels, size, size)}
        shapes |= {f"embedding_generator{number}": (rank, width), f"shared_mlp{number}": (width, rank)}
        shapes |= {f"lightweight_mlp{number}_{block}.0": (rank, rank) for block in range(depth + 1)}
        for name, shape in shapes.items():
            state |= {f"{GENERATOR}{name}.weight": draw(*shape), f"{GENERATOR}{name}.bias": draw(shape[0])}
        state[f"{GENERATOR}handcrafted_generator{number}.norm.weight"] = 1 + draw(rank)
        state[f"{GENERATOR}handcrafted_generator{number}.norm.bias"] = draw(rank)
        # Made, and never called.
        state[f"{TRUNK}patch_embed{number}.proj.weight"] = draw(width, channels, size, size)
        channels = rank
    return state


def linear(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def layer_norm(state: State, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def embeddings(state: State, config, image: torch.Tensor) -> list[torch.Tensor]:
    """The three finest maps (C, h, w) of one image (3, S, S), the finest first; `config` is of transformers' Hiera."""
    component = complex_frequency_component(image[None], 0.25, "high")
    handcrafted = []
    for group in range(1, 5):
        name = f"{GENERATOR}handcrafted_generator{group}"
        stride, padding = (4, 3) if group == 1 else (2, 1)
        maps = F.conv2d(component, state[f"{name}.proj.weight"], state[f"{name}.proj.bias"], stride, padding)
        tokens = layer_norm(state, f"{name}.norm", maps.permute(0, 2, 3, 1), 1e-5)
        component = tokens.permute(0, 3, 1, 2)
        handcrafted.append(tokens[0])

    patch = f"{TRUNK}patch_embed.proj"
    x = F.conv2d(image[None], state[f"{patch}.weight"], state[f"{patch}.bias"], 4, 3)[0].permute(1, 2, 0)
    position = F.interpolate(state[f"{TRUNK}pos_embed"], size=x.shape[:2], mode="bicubic")
    window = state[f"{TRUNK}pos_embed_window"]
    position = position + window.tile([a // b for a, b in zip(position.shape, window.shape)])
    x = x + position[0].permute(1, 2, 0)
    ends = [sum(config.blocks_per_stage[: stage + 1]) - 1 for stage in range(4)]
    # Group g: the rest of its stage, and the block that pools into the next one.
    last_of_group = [end + 1 for end in ends[:-1]] + [ends[-1]]
    group, first, stages = 0, True, []
    for index in range(ends[-1] + 1):
        if first:
            depth, first = 0, False
            guidance = linear(state, f"{GENERATOR}embedding_generator{group + 1}", x) + handcrafted[group]
        hidden = F.gelu(linear(state, f"{GENERATOR}lightweight_mlp{group + 1}_{depth}.0", guidance))
        x = x + linear(state, f"{GENERATOR}shared_mlp{group + 1}", hidden)
        x = block(state, config, index, x, pools=index - 1 in ends)
        depth += 1
        if index == last_of_group[group]:
            group, first = group + 1, True
        if index in ends:
            stages.append(x)

    coarse, levels = None, []
    for level in (3, 2, 1, 0):
        name = f"image_encoder.neck.convs.{3 - level}.conv"
        lateral = F.conv2d(stages[level].permute(2, 0, 1)[None], state[f"{name}.weight"], state[f"{name}.bias"])[0]
        if level == 2:
            lateral = lateral + F.interpolate(coarse[None], scale_factor=2.0, mode="nearest")[0]
        coarse = lateral
        levels.append(lateral)
    return levels[::-1][:3]


def block(state: State, config, index: int, x: torch.Tensor, pools: bool) -> torch.Tensor:
    name = f"{TRUNK}blocks.{index}"
    stage = sum(index > sum(config.blocks_per_stage[: s + 1]) - 1 for s in range(3))
    size = 0 if index in config.global_attention_blocks else config.window_size_per_stage[stage - pools]
    heads, stride = config.num_attention_heads_per_stage[stage], 2 if pools else 1
    normed = layer_norm(state, f"{name}.norm1", x, 1e-6)
    shortcut = pool(linear(state, f"{name}.proj", normed), 2) if pools else x

    def attention(cell: torch.Tensor) -> torch.Tensor:
        query, key, value = linear(state, f"{name}.attn.qkv", cell).chunk(3, -1)
        query = pool(query, stride)
        flat = [part.reshape(-1, part.shape[-1]) for part in (query, key, value)]
        return linear(state, f"{name}.attn.proj", attend(*flat, heads).reshape(query.shape))

    x = shortcut + windows(normed, size, attention)
    hidden = F.gelu(linear(state, f"{name}.mlp.layers.0", layer_norm(state, f"{name}.norm2", x, 1e-6)))
    return x + linear(state, f"{name}.mlp.layers.1", hidden)


def masks(state: State, config, images: torch.Tensor, heads: int) -> torch.Tensor:
    """Logits (B, 4g, 4g) of a batch."""
    maps = [embeddings(state, config, image) for image in images]
    fine, middle, _ = maps[-1]  # the last image's for all
    s0 = F.conv2d(fine[None], state["mask_decoder.conv_s0.weight"], state["mask_decoder.conv_s0.bias"])
    s1 = F.conv2d(middle[None], state["mask_decoder.conv_s1.weight"], state["mask_decoder.conv_s1.bias"])
    grid = maps[0][2].shape[-1]
    places = (torch.arange(grid) + 0.5) / grid
    y, x = torch.meshgrid(places, places, indexing="ij")
    angle = 2 * torch.pi * (2 * torch.stack([x, y], -1) - 1) @ state["pe_layer.positional_encoding_gaussian_matrix"]
    position = torch.cat([angle.sin(), angle.cos()], -1).flatten(0, 1)  # (N, C)
    results = []
    for _, _, image in maps:
        keys = (image + state["no_mask_embed.weight"][0][:, None, None]).flatten(1).T
        start = [state[f"mask_decoder.{name}.weight"] for name in ("obj_score_token", "iou_token", "mask_tokens")]
        start = torch.cat(start)
        queries = start
        for index in range(2):
            name = f"mask_decoder.transformer.layers.{index}"

            def attended(kind: str, query, key, value, name=name) -> torch.Tensor:
                return token_attention(state, f"{name}.{kind}", query, key, value, heads)

            if index == 0:
                queries = attended("self_attn", queries, queries, queries)
            else:
                queries = queries + attended("self_attn", queries + start, queries + start, queries)
            queries = layer_norm(state, f"{name}.norm1", queries, 1e-5)
            queries = queries + attended("cross_attn_token_to_image", queries + start, keys + position, keys)
            queries = layer_norm(state, f"{name}.norm2", queries, 1e-5)
            hidden = linear(state, f"{name}.mlp.lin2", F.relu(linear(state, f"{name}.mlp.lin1", queries)))
            queries = layer_norm(state, f"{name}.norm3", queries + hidden, 1e-5)
            keys = keys + attended("cross_attn_image_to_token", keys + position, queries + start, queries)
            keys = layer_norm(state, f"{name}.norm4", keys, 1e-5)
        final = "mask_decoder.transformer.final_attn_token_to_image"
        queries = queries + token_attention(state, final, queries + start, keys + position, keys, heads)
        queries = layer_norm(state, "mask_decoder.transformer.norm_final_attn", queries, 1e-5)
        up = "mask_decoder.output_upscaling"
        source = keys.T.reshape(1, -1, grid, grid)
        source = F.conv_transpose2d(source, state[f"{up}.0.weight"], state[f"{up}.0.bias"], 2) + s1
        source = F.gelu(layer_norm(state, f"{up}.1", source.permute(0, 2, 3, 1), 1e-6)).permute(0, 3, 1, 2)
        source = F.gelu(F.conv_transpose2d(source, state[f"{up}.3.weight"], state[f"{up}.3.bias"], 2) + s0)[0]
        hyper = queries[3]  # of the object's score, the IoU and mask tokens 0 and 1
        for layer in range(3):
            hyper = linear(state, f"mask_decoder.output_hypernetworks_mlps.1.layers.{layer}", hyper)
            hyper = F.relu(hyper) if layer < 2 else hyper
        results.append(torch.einsum("c,chw->hw", hyper, source))
    return torch.stack(results)


def token_attention(state: State, name: str, query, key, value, heads: int) -> torch.Tensor:
    parts = [linear(state, f"{name}.{kind}_proj", x) for kind, x in (("q", query), ("k", key), ("v", value))]
    return linear(state, f"{name}.out_proj", attend(*parts, heads))
