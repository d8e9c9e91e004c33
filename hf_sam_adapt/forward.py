"""One forward for any mixture of prompts: the images are encoded once, the objects decoded together by prompt kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import SamModel

from .prompts import Prompt
from .tuners.conv_lora import balance_loss


def encode(model: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """Image embeddings (B, 256, grid, grid) of `pixel_values` (B, 3, S, S), with gradients.

    `SamModel.get_image_embeddings` cannot be used for training: it runs under `no_grad`.
    """
    sam = _sam(model)
    return sam.vision_encoder(pixel_values.to(sam.dtype)).last_hidden_state


def segment(
    model: nn.Module,
    pixel_values: torch.Tensor | None,
    prompts: Sequence[Prompt],
    *,
    image_embeddings: torch.Tensor | None = None,
    multimask_output: bool = False,
) -> list[torch.Tensor]:
    """Mask logits of every object of every image; differentiable.

    Every object is a row of its own in the decoder, beside its image's embedding. So the result of an image does not
    depend on the rest of the batch (equal to one image at a time within 1e-6), and no padding reaches the decoder.

    Args:
        model: `SamModel`, or a `PeftModel` of one.
        pixel_values: float (B, 3, S, S), from the processor; None with `image_embeddings`.
        prompts: B prompts with tensors in input coordinates, from the processor; kinds and counts may differ.
        image_embeddings: (B, 256, grid, grid) of an earlier `encode`.
        multimask_output: SAM's three masks instead of that of mask token 0.

    Returns:
        Per image float logits (n, h, w), h = w = 4 grid; kind "none" gives n = 1, an image without objects n = 0. A
        decoder with K > 1 channels, and `multimask_output`, give (n, K, h, w), kind "none" then (K, h, w).
    """
    rows = _decode(model, pixel_values, prompts, image_embeddings, multimask_output)
    results = []
    for prompt, (masks, _) in zip(prompts, rows):  # masks (n, K, h, w)
        if prompt.kind == "none":
            results.append(masks[0])
        else:
            results.append(masks[:, 0] if masks.shape[1] == 1 else masks)
    return results


def segment_scored(
    model: nn.Module,
    pixel_values: torch.Tensor | None,
    prompts: Sequence[Prompt],
    *,
    image_embeddings: torch.Tensor | None = None,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """`segment` with the estimates of the masks' IoU: per image ((n, h, w), (n,)); n = 1 for kind "none"."""
    rows = _decode(model, pixel_values, prompts, image_embeddings, False)
    return [(masks[:, 0], scores[:, 0]) for masks, scores in rows]


def segment_multimask(
    model: nn.Module,
    pixel_values: torch.Tensor | None,
    prompts: Sequence[Prompt],
    *,
    image_embeddings: torch.Tensor | None = None,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """SAM's three masks with its estimates of their IoU: per image ((n, 3, h, w), (n, 3)); n = 1 for kind "none"."""
    return _decode(model, pixel_values, prompts, image_embeddings, True)


class PromptedSam(nn.Module):
    """`segment` as a module: to a wrapper such as DistributedDataParallel, encoder and decoder are one forward.

    Returns the logits of `segment` and the sum of the adapters' own losses, None without any: as an output, so that
    the wrapper sees every parameter that it reaches.

    Args:
        model: `SamModel`, or a `PeftModel` of one.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        pixel_values: torch.Tensor | None,
        prompts: Sequence[Prompt],
        image_embeddings: torch.Tensor | None = None,
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        logits = segment(self.model, pixel_values, prompts, image_embeddings=image_embeddings)
        return logits, balance_loss(self.model)


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join processor outputs of one or more images each: tensors along the batch, lists end to end."""
    batch: dict[str, Any] = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        batch[name] = torch.cat(values) if isinstance(values[0], torch.Tensor) else [v for vs in values for v in vs]
    return batch


def _decode(
    model: nn.Module,
    pixel_values: torch.Tensor | None,
    prompts: Sequence[Prompt],
    image_embeddings: torch.Tensor | None,
    multimask_output: bool,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Per image the masks (n, K, h, w) and IoU estimates (n, K) of its objects."""
    sam = _sam(model)
    embeddings = encode(model, pixel_values) if image_embeddings is None else image_embeddings
    if len(prompts) != len(embeddings):
        raise ValueError(f"{len(prompts)} prompts for {len(embeddings)} images")
    groups: dict[tuple, list[int]] = {}
    for index, prompt in enumerate(prompts):
        if prompt.kind == "none" or len(prompt):
            # Objects with different numbers of points cannot share a forward: padding tokens would be attended to.
            points = prompt.points.shape[1] if prompt.kind == "point" else 0
            groups.setdefault((prompt.kind, points), []).append(index)

    side = 4 * embeddings.shape[-1]
    channels = 3 if multimask_output else 1
    empty = embeddings.new_zeros((0, channels, side, side)), embeddings.new_zeros((0, channels))
    results = [empty] * len(prompts)
    for (kind, _), images in groups.items():
        counts = [max(1, len(prompts[i])) for i in images]
        owner = torch.tensor([i for i, count in zip(images, counts) for _ in range(count)], device=embeddings.device)
        inputs = _prompt_inputs(kind, [prompts[i] for i in images], embeddings.device, sam.dtype)
        # One row an object: embeddings (R, 256, grid, grid), masks (R, 1, K, h, w), scores (R, 1, K).
        output = sam(image_embeddings=embeddings[owner], multimask_output=multimask_output, **inputs)
        masks = output.pred_masks.squeeze(1).split(counts)
        scores = output.iou_scores.squeeze(1).split(counts)
        for index, image_masks, image_scores in zip(images, masks, scores):
            results[index] = image_masks, image_scores
    return results


def _prompt_inputs(
    kind: str, prompts: list[Prompt], device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """`SamModel.forward`'s prompt arguments with the R objects of all `prompts` as rows."""
    if kind == "box":
        return {"input_boxes": torch.cat([p.boxes for p in prompts]).to(device)[:, None]}  # (R, 1, 4)
    if kind == "point":
        points = torch.cat([p.points for p in prompts]).to(device)[:, None]  # (R, 1, p, 2)
        labels = torch.cat([p.point_labels for p in prompts]).to(device)[:, None]  # (R, 1, p)
        return {"input_points": points, "input_labels": labels}
    if kind == "mask":
        return {"input_masks": torch.cat([p.masks for p in prompts]).to(device, dtype)[:, None]}  # (R, 1, 4g, 4g)
    return {}


def _sam(model: nn.Module) -> SamModel:
    return model.get_base_model() if hasattr(model, "get_base_model") else model
