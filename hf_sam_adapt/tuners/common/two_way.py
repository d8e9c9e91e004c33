"""The two frozen steps of SAM's mask decoder that every other head stands on: its transformer and its upscaling."""

import torch
from torch import nn


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


def upscale(decoder: nn.Module, maps: torch.Tensor) -> torch.Tensor:
    """Image maps (R, C, g, g) -> (R, C / 8, 4g, 4g)."""
    maps = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(maps)))
    return decoder.activation(decoder.upscale_conv2(maps))
