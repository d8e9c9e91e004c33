"""What the pre-training of `tiny` minimises: SAM's loss of the masks, and a dense loss of the embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from hf_sam_adapt.sam.families import family_of
from hf_sam_adapt.sam.image_embeddings import ImageEmbeddings

from .model import GRID


class DenseHead(nn.Module):
    """The auxiliary task: from an object's mean embedding find its pixels among all others.

    Args:
        width: channels of the image embedding.
    """

    def __init__(self, width: int):
        super().__init__()
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width // 8))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, decoder: nn.Module, embedding: ImageEmbeddings, cover: torch.Tensor) -> torch.Tensor:
        """Logits (B, P, 64, 64) from the embedding (B, C, 16, 16) and the masks' cover (B, P, 64, 64)."""
        fine, middle = embedding.skips or (0, 0)
        up = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(embedding.maps) + middle))
        up = decoder.activation(decoder.upscale_conv2(up) + fine).float()  # (B, C / 8, 64, 64)
        cover = F.adaptive_avg_pool2d(cover, GRID)
        mean = torch.einsum("bchw,bphw->bpc", embedding.maps.float(), cover) / cover.sum((2, 3))[..., None].clamp(
            min=1e-3
        )
        return torch.einsum("bpc,bchw->bphw", self.head(mean).float(), up) + self.bias

    @staticmethod
    def loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Balanced BCE + Dice inside the somewhat enlarged boxes; truth (B, P, 64, 64) in {0, 1}."""
        region = enlarged_box(truth > 0.5)
        positive, negative = truth * region, (1 - truth) * region
        weight = 0.5 * (_share(positive) + _share(negative))
        bce = (F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * weight).sum((2, 3))
        return (bce + _dice(logits.sigmoid() * region, positive)).mean()


def imitation_loss(embedding: ImageEmbeddings, taught: ImageEmbeddings) -> torch.Tensor:
    """Squared error of an embedding (B, C, 16, 16) as a share of the teacher's variance; 1 for a constant one."""
    truth = taught.maps.float()
    mean = truth.mean((0, 2, 3), keepdim=True)
    return (embedding.maps.float() - truth).square().mean() / (truth - mean).square().mean()


def enlarged_box(truth: torch.Tensor, margin: int = 4) -> torch.Tensor:
    """The filled bounding boxes of masks bool (B, P, h, w), enlarged by `margin` pixels: float (B, P, h, w)."""
    rows, columns = truth.any(3).float(), truth.any(2).float()
    rows, columns = (F.max_pool1d(x, 2 * margin + 1, 1, margin) for x in (_filled(rows), _filled(columns)))
    return rows[..., None] * columns[..., None, :]


def neighbourhood(truth: torch.Tensor) -> torch.Tensor:
    """The boxes of masks bool (B, P, h, w), enlarged by half their sides and 4 pixels: float (B, P, h, w)."""
    spans = []
    for profile in (truth.any(3), truth.any(2)):
        place = torch.arange(profile.shape[-1], device=truth.device)
        first = torch.where(profile, place, profile.shape[-1]).amin(-1, keepdim=True)
        last = torch.where(profile, place, -1).amax(-1, keepdim=True)
        margin = (last - first + 1).clamp(min=0) / 2 + 4
        spans.append(((place >= first - margin) & (place <= last + margin)).float())
    return spans[0][..., None] * spans[1][..., None, :]


def _filled(profile: torch.Tensor) -> torch.Tensor:
    """1 from the first 1 to the last of profiles (..., n)."""
    return torch.minimum(profile.cummax(-1).values, profile.flip(-1).cummax(-1).values.flip(-1))


def _share(weight: torch.Tensor) -> torch.Tensor:
    return weight / weight.sum((-2, -1), keepdim=True).clamp(min=1)


def _dice(probability: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    both = (probability * truth).sum((-2, -1))
    return 1 - (2 * both + 1) / ((probability + truth).sum((-2, -1)) + 1)


def embed_prompts(sam: nn.Module, prompts: dict, count: int) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Sparse (B, P, n, C) or None, and dense (B, C, 16, 16) embeddings of the prompts of `count` images, in fp32."""
    names = ("input_points", "input_labels", "input_boxes", "input_masks")
    device = sam.prompt_encoder.no_mask_embed.weight.device
    if family_of(sam).skips and not prompts.keys() & {"input_points", "input_boxes"}:  # as `Sam2Model` does
        nowhere = torch.zeros(count, 1, 1, 2, device=device)
        prompts = prompts | {"input_points": nowhere, "input_labels": -torch.ones(count, 1, 1, device=device).int()}
    # In bf16 a coordinate is off by up to a pixel, and its sine by more.
    with torch.autocast(device.type, enabled=False):
        sparse, dense = sam.prompt_encoder(**{name: prompts.get(name) for name in names})
    return sparse, dense.expand(count, -1, -1, -1)


def all_masks(
    sam: nn.Module, embedding: ImageEmbeddings, sparse: torch.Tensor | None, dense: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """All four masks (B, P, 4, 64, 64) and IoU estimates (B, P, 4) in one pass; a SAM returns one or three."""
    found = {}

    def keep(module, arguments, output):
        found["all"] = output

    decoder = sam.mask_decoder
    tokens = []
    hooks = [
        mlp.register_forward_hook(lambda m, a, out: tokens.append(out)) for mlp in decoder.output_hypernetworks_mlps
    ]
    hooks.append(decoder.upscale_conv2.register_forward_hook(keep))
    hooks.append(decoder.iou_prediction_head.register_forward_hook(lambda m, a, out: found.update(iou=out)))
    with torch.autocast(embedding.maps.device.type, enabled=False):
        position = sam.get_image_wide_positional_embeddings().repeat(len(embedding), 1, 1, 1)
    finer = {"high_resolution_features": list(embedding.skips)} if embedding.skips else {}
    decoder(
        image_embeddings=embedding.maps,
        image_positional_embeddings=position,
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
        **finer,
    )
    for hook in hooks:
        hook.remove()
    hyper = torch.stack(tokens, dim=2)  # (B, P, 4, C / 8)
    upscaled = found["all"]
    if embedding.skips:
        upscaled = upscaled + embedding.skips[0].repeat_interleave(hyper.shape[1], 0)
    up = decoder.activation(upscaled).unflatten(0, hyper.shape[:2]).flatten(3)  # (B, P, C / 8, 64 * 64)
    side = found["all"].shape[-1]
    return (hyper @ up).unflatten(3, (side, side)), found["iou"]


def prompt_loss(
    masks: torch.Tensor, estimates: torch.Tensor, truth: torch.Tensor, known: torch.Tensor, balance: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """SAM's loss: focal + Dice on mask token 0 and on the best of the other three, squared error of the IoU head.

    Args:
        masks: logits (B, P, 4, 64, 64); estimates: (B, P, 4).
        truth: covered share of each mask pixel (B, P, 64, 64).
        known: 1 on the mask pixels whose truth is known (B, P, 64, 64); the others have no part in the loss.
        balance: from 1, a BCE in which the object, all else, and what is near it have fixed shares, to 0, focal.

    Returns:
        The loss, and the mean IoU of mask token 0.
    """
    truth, known = truth[:, :, None], known[:, :, None]
    logits = masks.float()
    probability = logits.sigmoid()
    target = truth.expand_as(logits)
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    losses = _dice(probability * known, target * known)  # (B, P, 4)
    if balance > 0:
        near = enlarged_box(truth[:, :, 0] > 0.5)[:, :, None]
        rest = (1 - truth) * known
        weight = 0.5 * _share(truth * known) + 0.25 * _share(rest) + 0.25 * _share(rest * near)
        losses = losses + balance * (bce * weight).sum((-2, -1))
    if balance < 1:
        wrong = (probability + truth - 2 * probability * truth) * known
        losses = losses + (1 - balance) * 4 * (bce * wrong).sum((-2, -1)) / known.sum((-2, -1)).clamp(min=1)
    with torch.no_grad():
        predicted, true = (logits > 0) & (known > 0), (truth > 0.5) & (known > 0)
        iou = (predicted & true).sum((-2, -1)) / (predicted | true).sum((-2, -1)).clamp(min=1)
    mask_loss = losses[..., 0].mean() + 0.5 * losses[..., 1:].min(-1).values.mean()
    iou_loss = (estimates.float() - iou).square().mean()
    return mask_loss + iou_loss, iou[..., 0].mean()
