"""SAM 3's model of points, boxes and masks on single images (arXiv 2511.16719): `Sam3TrackerModel`.

SAM 2's decoder behind another encoder.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

from .. import citations
from ..image_embeddings import ImageEmbeddings
from . import pyramid
from .family import EncoderShape
from .sam2 import SAM2


LEVELS = 3  # of the neck's maps, those that the decoder takes


def _side(value: int | list[int] | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[0]


def _shape(encoder: nn.Module) -> EncoderShape:
    config = encoder.config.backbone_config
    image_size, patch_size = _side(config.image_size), _side(config.patch_size)
    return EncoderShape(
        image_size=image_size,
        patch_size=patch_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        output_channels=encoder.config.fpn_hidden_size,
        global_blocks=tuple(config.global_attn_indexes),
        widths=(config.hidden_size,) * config.num_hidden_layers,
        grids=(image_size // patch_size,) * config.num_hidden_layers,
    )


def _size_step(encoder: nn.Module) -> int:
    """Its windows pad a grid that they do not divide."""
    return _side(encoder.config.backbone_config.patch_size)


def _embed(encoder: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    patches = encoder.backbone.embeddings(pixel_values)  # (B, g g, C)
    grid = pixel_values.shape[-1] // _size_step(encoder)
    return encoder.backbone.layer_norm(patches.unflatten(1, (grid, grid)))


def _encode_from_block(sam: nn.Module, hidden: torch.Tensor, block: int) -> ImageEmbeddings:
    encoder = sam.vision_encoder
    for layer in encoder.backbone.layers[block:]:
        hidden = layer(hidden)
    levels, _ = encoder.neck(hidden.permute(0, 3, 1, 2))
    return pyramid.decoder_maps(sam, levels[:LEVELS])


def _set_image_size(model: nn.Module, encoder: nn.Module, image_size: int) -> None:
    config = encoder.config.backbone_config
    config.image_size = image_size
    for layer in encoder.backbone.layers:
        layer = getattr(layer, "base_layer", layer)
        # The positions of global blocks span the grid; those of windows stay as they are.
        places = layer.precompute_positions(config, layer.window_size)
        layer.position_ids = places.to(device=layer.position_ids.device, dtype=layer.position_ids.dtype)
    pyramid.write_image_size(model, encoder, image_size, image_size // _size_step(encoder))


def _video_part(config: Any) -> dict[str, Any]:
    """transformers leaves the prefix of the tracker's own weights, and then draws those of the decoder at random."""
    part = pyramid.image_config(config.tracker_config, SAM3_TRACKER.model_class.config_class)
    return {"config": part, "key_mapping": {r"^tracker_model\.": ""}}


class UsedLevels:
    """Forward hook of the encoder: the maps that the decoder takes, without the fourth.

    transformers adds `no_memory_embedding` to the last map that there is; Meta adds it to the last that is used.
    """

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> Any:
        output.fpn_hidden_states = output.fpn_hidden_states[:LEVELS]
        output.fpn_position_encoding = output.fpn_position_encoding[:LEVELS]
        return output


def _fault_hooks(model: nn.Module) -> RemovableHandle | None:
    if not hasattr(model, "no_memory_embedding"):  # the encoder alone
        return None
    return model.vision_encoder.register_forward_hook(UsedLevels())


SAM3_TRACKER = replace(
    SAM2,
    title="SAM 3",
    model_type="sam3_tracker",
    encoder_type="sam3_vision_model",
    also_types=("sam3_video",),
    also_prefixed=True,
    model_path="transformers:Sam3TrackerModel",
    video_part=_video_part,
    blocks="backbone.layers",
    patch_embedding="backbone.embeddings.patch_embeddings",
    attention="attention",
    attention_linears=("q_proj", "k_proj", "v_proj"),
    projection="o_proj",
    patch_embedding_path="transformers.models.sam3.modeling_sam3:Sam3ViTPatchEmbeddings",
    # The fourth level of the neck is for SAM 3's detector.
    never_trained=(*pyramid.NEVER_TRAINED, "vision_encoder.neck.fpn_layers.3"),
    processor=SAM2.processor | {"image_mean": IMAGENET_STANDARD_MEAN, "image_std": IMAGENET_STANDARD_STD},
    shape=_shape,
    size_step=_size_step,
    embed=_embed,
    encode_from_block=_encode_from_block,
    # Its table is tiled over any grid in the forward.
    position_embedding=lambda encoder: encoder.backbone.embeddings.position_embeddings,
    set_image_size=_set_image_size,
    fault_hooks=_fault_hooks,
    license={
        "license": "other",
        "license_name": "sam-license",
        "license_link": "https://huggingface.co/facebook/sam3/blob/main/LICENSE",
    },
    citation=citations.SAM3,
)
