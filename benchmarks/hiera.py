"""SAM 2 with random weights of the published shapes, and what its encoder computes."""

from __future__ import annotations

from transformers import Sam2Config, Sam2Model

from hf_sam_adapt.sam.families import SAM2, find_vision_encoder


# Width, blocks and heads of the stages, blocks with global attention, windows, side of the position table.
HIERAS = {
    "hiera_t": (96, [1, 2, 7, 2], [1, 2, 4, 8], [5, 7, 9], [8, 4, 14, 7], 7),
    "hiera_s": (96, [1, 2, 11, 2], [1, 2, 4, 8], [7, 10, 13], [8, 4, 14, 7], 7),
    "hiera_b+": (112, [2, 3, 16, 3], [2, 4, 8, 16], [12, 16, 20], [8, 4, 14, 7], 14),
    "hiera_l": (144, [2, 6, 36, 4], [2, 4, 8, 16], [23, 33, 43], [8, 4, 16, 8], 7),
}


def build_hiera(name: str, size: int) -> Sam2Model:
    """One of `HIERAS` for inputs of `size` pixels a side."""
    width, blocks, heads, global_blocks, windows, background = HIERAS[name]
    widths, grid = [width, 2 * width, 4 * width, 8 * width], size // 16
    config = Sam2Config(
        vision_config={
            "model_type": "sam2_vision_model",
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": width,
                "num_attention_heads": heads[0],
                "blocks_per_stage": blocks,
                "embed_dim_per_stage": widths,
                "num_attention_heads_per_stage": heads,
                "window_size_per_stage": windows,
                "global_attention_blocks": global_blocks,
                "window_positional_embedding_background_size": [background, background],
                "image_size": [size, size],
            },
            "backbone_channel_list": widths[::-1],
            "backbone_feature_sizes": [[factor * grid] * 2 for factor in (4, 2, 1)],
        },
        prompt_encoder_config={"image_size": size},
    )
    return Sam2Model(config)


def hiera_operations(model: Sam2Model) -> tuple[float, float]:
    """Operations of an image's forward through the blocks: of the linear layers, and of the attention."""
    encoder = find_vision_encoder(model)
    shape, linear, attention = SAM2.shape(encoder), 0.0, 0.0
    for block, grid in zip(SAM2.blocks_of(encoder), shape.grids):
        side = block.window_size or grid
        windows, pooling = (-(-grid // side)) ** 2, 4 if block.query_stride else 1
        tokens = windows * side**2  # with padding
        behind = grid**2 // pooling
        linear += 2 * tokens * block.dim * 3 * block.dim_out + 2 * tokens / pooling * block.dim_out**2
        linear += 2 * behind * 8 * block.dim_out**2
        linear += 2 * grid**2 * block.dim * block.dim_out if block.dim != block.dim_out else 0
        attention += 4 * windows * side**4 / pooling * block.dim_out
    return linear, attention
