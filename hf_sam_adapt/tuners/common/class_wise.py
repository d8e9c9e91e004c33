"""Mask decoders that give one logit map per class: CWSAM's (arXiv 2401.02326) and one of queries."""

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ...sam.image_embeddings import SharedMaps
from .two_way import mix_tokens, output_tokens, upscale


# Matches the names of the decoder's parameters that `decode_classes` reads for its masks: not those of an HQ branch.
READ = re.compile(r"transformer\.|(iou|mask|obj_score)_tokens?\.|upscale_|output_hypernetworks_mlps\.0\.")


class ClassHead(nn.Module):
    """CWSAM's head: K groups of feature maps, each dotted with the hyper-vector of mask token 0.

    On SAM 2 and 3 the maps include their paths from the encoder's finer levels.

    Args:
        channels: c of the decoder's upscaled maps, 32 in SAM.
        num_labels: K, background included.
    """

    def __init__(self, channels: int, num_labels: int):
        super().__init__()
        self.channels, self.num_labels = channels, num_labels
        self.up = nn.ConvTranspose2d(2 * channels, 2 * channels, kernel_size=2, stride=2)
        self.norm = nn.LayerNorm(2 * channels, eps=1e-6)
        self.conv = nn.Conv2d(2 * channels, channels * num_labels, kernel_size=7, stride=2, padding=3)
        nn.init.normal_(self.conv.weight, std=(2 / (49 * channels * num_labels)) ** 0.5)
        nn.init.zeros_(self.conv.bias)

    def forward(self, upscaled: torch.Tensor, hyper: torch.Tensor) -> torch.Tensor:
        """Logits (R, K, h, w) from maps (R, 2c, h, w) and hyper-vectors (R, c)."""
        maps = self.up(upscaled).permute(0, 2, 3, 1)  # (R, 2h, 2w, 2c)
        maps = F.gelu(self.norm(maps)).permute(0, 3, 1, 2)
        maps = F.gelu(self.conv(maps)).unflatten(1, (self.channels, self.num_labels))  # feature-major
        return torch.einsum("rc,rckhw->rkhw", hyper, maps)


class QueryHead(nn.Module):
    """A class for each of N mask tokens (MaskFormer): a pixel's class is what the masks that cover it vote for.

    The loss is that of the pixels, as for `ClassHead`; no query is matched to an object (MaskFormer's Hungarian loss).

    Args:
        hidden_size: width of the decoder.
        num_labels: K, background included.
    """

    def __init__(self, hidden_size: int, num_labels: int):
        super().__init__()
        self.classifier = nn.Linear(hidden_size, num_labels + 1)  # the last: no object

    def forward(self, tokens: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Log scores (R, K, h, w) from tokens (R, N, C) and mask logits (R, N, h, w)."""
        classes = self.classifier(tokens).float().softmax(-1)[..., :-1]
        # Not `sigmoid`: onnxruntime's is off by 1e-7, which the logarithm of a score near 1e-6 would show.
        covered = F.softplus(-masks.float()).neg().exp()
        scores = torch.einsum("rnk,rnhw->rkhw", classes, covered)
        return scores.clamp(min=1e-6).log().to(masks.dtype)


def decode_classes(
    decoder: nn.Module,
    head: nn.Module,
    num_mask_tokens: int,
    image_embeddings: torch.Tensor,
    image_positional_embeddings: torch.Tensor,
    sparse_prompt_embeddings: torch.Tensor | None,
    dense_prompt_embeddings: torch.Tensor,
    multimask_output: bool = False,
    attention_similarity: torch.Tensor | None = None,
    target_embedding: torch.Tensor | None = None,
    high_resolution_features: Sequence[torch.Tensor | SharedMaps] | None = None,
    hq_token_only: bool = False,
    intermediate_embeddings: Sequence[torch.Tensor] = (),
) -> tuple[torch.Tensor, ...]:
    """Run SAM's mask decoder with a class head in place of its last product; takes the decoder's arguments.

    Logits (B, P, K, h, w) and SAM's IoU estimate (B, P, 1), whatever `multimask_output` says. Of SAM 2 and 3, which
    take `high_resolution_features`, also the mask token (B, P, 1, C) and the object's score (B, P, 1). The last two
    arguments are of SAM-HQ's own branch, which this decoder does without.

    Args:
        decoder: SAM's mask decoder.
        head: `ClassHead` or `QueryHead`.
        num_mask_tokens: of the decoder, those that the head takes.
    """
    own, iou = output_tokens(decoder)
    tokens, mixed, source = mix_tokens(
        decoder,
        own,
        image_embeddings,
        image_positional_embeddings,
        sparse_prompt_embeddings,
        dense_prompt_embeddings,
        attention_similarity,
        target_embedding,
    )
    masks = tokens[:, :, iou + 1 : iou + 1 + num_mask_tokens].flatten(0, 1)  # (B P, N, C)
    hyper = decoder.output_hypernetworks_mlps[0](masks)  # (B P, N, c)
    upscaled = upscale(decoder, mixed, high_resolution_features)  # (B P, c, 4g, 4g)
    if isinstance(head, QueryHead):
        logits = head(masks, torch.einsum("rnc,rchw->rnhw", hyper, upscaled))
    else:
        first = upscale(decoder, source, high_resolution_features)
        logits = head(torch.cat([upscaled, first], dim=1), hyper[:, 0])
    scores = decoder.iou_prediction_head(tokens[:, :, iou])[:, :, :1]
    outputs = logits.unflatten(0, tokens.shape[:2]), scores
    if high_resolution_features is None:
        return outputs
    return *outputs, tokens[:, :, iou + 1 : iou + 2], decoder.pred_obj_score_head(tokens[:, :, 0])


def build_head(mask_decoder: nn.Module, num_labels: int, num_mask_tokens: int | None, random_init: bool) -> nn.Module:
    """The head for `num_labels` classes: of queries where their number is given, else CWSAM's.

    Args:
        mask_decoder: the base's, for its sizes.
        random_init: draw every tensor, so that tests see a head that acts.
    """
    if num_mask_tokens is not None:
        head: nn.Module = QueryHead(mask_decoder.hidden_size, num_labels)
    else:
        head = ClassHead(mask_decoder.upscale_conv2.out_channels, num_labels)
    if random_init:
        for parameter in head.parameters():
            nn.init.normal_(parameter, std=0.3)
    return head
