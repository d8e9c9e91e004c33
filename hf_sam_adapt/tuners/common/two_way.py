"""The two frozen steps of SAM's mask decoder that every other head stands on: its transformer and its upscaling."""

from collections.abc import Sequence

import torch
from torch import nn

from ...sam.image_embeddings import SharedMaps


def output_tokens(decoder: nn.Module) -> tuple[torch.Tensor, int]:
    """The decoder's own tokens (N, C) in its order, the mask tokens last, and the place of the IoU token.

    SAM 2 and 3 have one of the object's presence before it.
    """
    tokens = [decoder.iou_token.weight, decoder.mask_tokens.weight]
    if hasattr(decoder, "obj_score_token"):
        tokens.insert(0, decoder.obj_score_token.weight)
    return torch.cat(tokens), len(tokens) - 2


def mix_tokens(
    decoder: nn.Module,
    tokens: torch.Tensor,
    image_embeddings: torch.Tensor,
    image_positional_embeddings: torch.Tensor,
    sparse_prompt_embeddings: torch.Tensor | None,
    dense_prompt_embeddings: torch.Tensor,
    attention_similarity: torch.Tensor | None = None,
    target_embedding: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the two-way transformer of a SAM mask decoder with other output tokens than its own.

    Args:
        decoder: SAM's mask decoder.
        tokens: (N, C) for all rows, or (B, N, C).
        image_embeddings: (B, C, g, g), and its positional and dense embeddings likewise.
        sparse_prompt_embeddings: (B, P, n, C); None: P = 1 without prompts.

    Returns:
        Tokens (B, P, N + n, C), mixed image maps (B P, C, g, g), and these before mixing.
    """
    batch, prompts = image_embeddings.shape[0], 1
    if sparse_prompt_embeddings is not None:
        prompts = sparse_prompt_embeddings.shape[1]
    tokens = tokens.unsqueeze(-3).expand(batch, prompts, -1, -1)
    if sparse_prompt_embeddings is not None:
        tokens = torch.cat([tokens, sparse_prompt_embeddings.to(tokens.dtype)], dim=2)
    source = (image_embeddings + dense_prompt_embeddings).repeat_interleave(prompts, 0)  # (B P, C, g, g)
    tokens, mixed = decoder.transformer(
        point_embeddings=tokens,
        image_embeddings=source,
        image_positional_embeddings=image_positional_embeddings.repeat_interleave(prompts, 0),
        attention_similarity=attention_similarity,
        target_embedding=target_embedding,
    )
    return tokens, mixed.transpose(2, 3).reshape(source.shape), source


def upscale(
    decoder: nn.Module, maps: torch.Tensor, high_resolution: Sequence[torch.Tensor | SharedMaps] | None = None
) -> torch.Tensor:
    """Image maps (R, C, g, g) -> (R, C / 8, 4g, 4g).

    Args:
        decoder: SAM's mask decoder.
        maps: of B images, R / B rows an image.
        high_resolution: of the same images (B, C / 8, 4g, 4g) and (B, C / 4, 2g, 2g), which SAM 2 and 3 add.
    """
    fine, middle = high_resolution or (None, None)
    maps = _plus(decoder.upscale_conv1(maps), middle)
    maps = decoder.activation(decoder.upscale_layer_norm(maps))
    return decoder.activation(_plus(decoder.upscale_conv2(maps), fine))


def _plus(rows: torch.Tensor, images: torch.Tensor | SharedMaps | None) -> torch.Tensor:
    """The map of each image added to its rows, without a copy of it for each."""
    if images is None:
        return rows
    if isinstance(images, SharedMaps):
        return rows + images.repeat_interleave(len(rows) // len(images))
    batch = images.shape[0]  # not len(), which an exporter would write down
    return (rows.unflatten(0, (batch, -1)) + images[:, None]).flatten(0, 1)
