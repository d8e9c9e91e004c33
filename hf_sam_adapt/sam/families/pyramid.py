"""What SAM 2 and SAM 3's tracker have alike: three maps for the decoder, and where the input size is written."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..image_embeddings import ImageEmbeddings, SharedMaps
from .family import Runs


PARTS = ("mask_decoder.conv_s0", "mask_decoder.conv_s1", "no_memory_embedding")
# Outputs that are discarded, and what computes the maps of an image before the decoder is called.
NOT_REACHED = re.compile(
    r"iou_prediction_head\.|pred_obj_score_head\.|output_hypernetworks_mlps\.(?!0\.)|conv_s[01]\."
)
NEVER_TRAINED = ("prompt_encoder", "shared_image_embedding", "no_memory_embedding")
NO_HQ = {
    "hq": "the maps of early blocks that HQ-SAM adds to SAM's decoder are in this one's skip paths already; "
    "decoder='full' trains it"
}


def image_config(config: Any, image_class: type) -> Any:
    """The part of a video model's config that describes the model of single images, as the class of that."""
    parts = {}
    for name in ("vision_config", "prompt_encoder_config", "mask_decoder_config"):
        part = getattr(config, name).to_dict()
        # Of what sees the images there is one class; the other two have a class each for videos.
        parts[name] = part if name == "vision_config" else {k: v for k, v in part.items() if k != "model_type"}
    return image_class(**parts)


def decoder_maps(sam: nn.Module, levels: Sequence[torch.Tensor]) -> ImageEmbeddings:
    """What the decoder takes, of the neck's three maps (B, 256, n g, n g), n = 4, 2 and 1.

    The embedding that stands for "no memory of former frames" is added to the last, as Meta does; transformers adds it
    to a fourth map of SAM 3's tracker, which no one reads.
    """
    fine, middle, coarse = levels
    coarse = coarse + sam.no_memory_embedding.reshape(1, -1, 1, 1)
    return ImageEmbeddings(coarse, skips=(sam.mask_decoder.conv_s0(fine), sam.mask_decoder.conv_s1(middle)))


def encode(sam: nn.Module, pixel_values: torch.Tensor) -> ImageEmbeddings:
    levels = sam.vision_encoder(pixel_values.to(sam.dtype), return_dict=True).fpn_hidden_states
    return decoder_maps(sam, levels[:3])


def decoder_inputs(embeddings: ImageEmbeddings, owner: torch.Tensor, runs: Runs) -> dict[str, Any]:
    skips = [SharedMaps(maps, owner, runs) for maps in embeddings.skips]
    return {"image_embeddings": [*skips, embeddings.maps[owner]]}


def write_image_size(model: nn.Module, encoder: nn.Module, image_size: int, grid: int) -> None:
    """Write an input size where both families keep it; `grid` is the side of the coarsest map."""
    sizes = [[factor * grid, factor * grid] for factor in (4, 2, 1)]
    encoder.config.backbone_feature_sizes = sizes
    prompt_encoder = getattr(model, "prompt_encoder", None)
    if prompt_encoder is not None:
        prompt_encoder = getattr(prompt_encoder, "base_layer", prompt_encoder)
        prompt_encoder.image_embedding_size = (grid, grid)
        prompt_encoder.mask_input_size = (4 * grid, 4 * grid)
        prompt_encoder.input_image_size = image_size
        model.backbone_feature_sizes = model.config.vision_config.backbone_feature_sizes = sizes
        model.config.prompt_encoder_config.image_size = image_size
