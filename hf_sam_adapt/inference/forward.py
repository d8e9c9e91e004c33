"""One forward for any mixture of prompts: the images are encoded once, the objects decoded together by prompt kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import SamModel

from ..errors import UserError
from ..prompts import Prompt, corrected
from ..sam.families import SamFamily, encoder_shape, family_of
from ..sam.image_embeddings import ImageEmbeddings, SharedMaps
from ..sam.mask_choice import mask_of_token_0
from ..tuners.common.encoding import encode_images
from ..tuners.common.layer import trains_iou_head
from ..tuners.conv_lora import balance_loss
from ..tuners.l2p.layer import key_loss
from ..tuners.moda import ModaModel


def encode(model: nn.Module, pixel_values: torch.Tensor) -> ImageEmbeddings:
    """Embeddings of `pixel_values` (B, 3, S, S), with gradients, and for an active `hq` decoder the early map.

    A pool of domains encodes each image by the adapter of its domain.
    """
    pool = pool_of(model)
    if pool is not None:
        return pool.encode(pixel_values)
    return encode_images(sam_of(model), pixel_values)


def segment(
    model: nn.Module,
    pixel_values: torch.Tensor | None,
    prompts: Sequence[Prompt],
    *,
    image_embeddings: ImageEmbeddings | None = None,
    multimask_output: bool = False,
) -> list[torch.Tensor]:
    """Mask logits of every object of every image; differentiable.

    Every object is a row of its own in the decoder, beside its image's embedding. So the result of an image does not
    depend on the rest of the batch (equal to one image at a time within 1e-6), and no padding reaches the decoder.

    Args:
        model: `SamModel`, or a `PeftModel` of one.
        pixel_values: float (B, 3, S, S), from the processor; None with `image_embeddings`.
        prompts: B prompts with tensors in input coordinates, from the processor; kinds and counts may differ.
        image_embeddings: of the B images, by an earlier `encode`.
        multimask_output: SAM's three masks instead of that of mask token 0.

    Returns:
        Per image float logits (n, h, w), h = w = 4 grid; kind "none" gives n = 1, an image without objects n = 0. A
        decoder with K > 1 channels, and `multimask_output`, give (n, K, h, w), kind "none" then (K, h, w).
    """
    rows = _decode(model, pixel_values, prompts, image_embeddings, multimask_output)
    return [_logits_of(prompt, masks) for prompt, (masks, _) in zip(prompts, rows)]


def segment_scored(
    model: nn.Module,
    pixel_values: torch.Tensor | None,
    prompts: Sequence[Prompt],
    *,
    image_embeddings: ImageEmbeddings | None = None,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """`segment` with the estimates of the masks' IoU: per image ((n, h, w), (n,)); n = 1 for kind "none"."""
    rows = _decode(model, pixel_values, prompts, image_embeddings, False)
    return [(masks[:, 0], scores[:, 0]) for masks, scores in rows]


def segment_multimask(
    model: nn.Module,
    pixel_values: torch.Tensor | None,
    prompts: Sequence[Prompt],
    *,
    image_embeddings: ImageEmbeddings | None = None,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """SAM's three masks with its estimates of their IoU: per image ((n, 3, h, w), (n, 3)); n = 1 for kind "none"."""
    return _decode(model, pixel_values, prompts, image_embeddings, True)


def segment_rounds(
    model: nn.Module, prompts: Sequence[Prompt], embeddings: ImageEmbeddings
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """`segment`, and again for each column of the prompts' `draws`, every time with one more point (see `corrected`).

    Args:
        prompts: B prompts in input coordinates, those with `draws` also with `targets`.
        embeddings: of the B images; encoded once for all rounds.

    Returns:
        Per image the logits (n, h, w) of `segment`, behind them those of each round: ((1 + rounds) n, h, w). And of
        each of these masks SAM's estimate of its IoU, ((1 + rounds) n,).
    """
    logits, estimates = [[] for _ in prompts], [[] for _ in prompts]
    wrong, number, prompts = list(range(len(prompts))), 0, list(prompts)
    while wrong:
        rows = _decode(model, None, [prompts[i] for i in wrong], embeddings[wrong] if number else embeddings, False)
        for image, (masks, scores) in zip(wrong, rows):
            logits[image].append(_logits_of(prompts[image], masks))
            estimates[image].append(scores[:, 0])
        wrong = [i for i, prompt in enumerate(prompts) if len(prompt) and number < prompt.rounds]
        for image in wrong:
            prompts[image] = corrected(prompts[image], logits[image][-1], number)
        number += 1
    return [torch.cat(parts) for parts in logits], [torch.cat(parts) for parts in estimates]


class PromptedSam(nn.Module):
    """`segment` as a module: to a wrapper such as DistributedDataParallel, encoder and decoder are one forward.

    Returns the logits of `segment`, those of correction rounds behind them; the sum of the adapters' own losses; and
    the estimates of the masks' IoU, per image (n,), if an adapter trains SAM's IoU head. The latter two, None without
    any, are outputs so that the wrapper sees every parameter that they reach.

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
        image_embeddings: ImageEmbeddings | None = None,
    ) -> tuple[list[torch.Tensor], torch.Tensor | None, list[torch.Tensor] | None]:
        embeddings = encode(self.model, pixel_values) if image_embeddings is None else image_embeddings
        logits, estimates = segment_rounds(self.model, prompts, embeddings)
        own = [loss for loss in (balance_loss(self.model, keep=False), key_loss(self.model)) if loss is not None]
        return logits, torch.stack(own).sum() if own else None, estimates if trains_iou_head(self.model) else None


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join processor outputs of one or more images each: tensors along the batch, lists end to end."""
    batch: dict[str, Any] = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if isinstance(values[0], ImageEmbeddings):
            batch[name] = ImageEmbeddings.cat(values)
        else:
            tensors = isinstance(values[0], torch.Tensor)
            batch[name] = torch.cat(values) if tensors else [one for items in values for one in items]
    return batch


def _decode(
    model: nn.Module,
    pixel_values: torch.Tensor | None,
    prompts: Sequence[Prompt],
    image_embeddings: ImageEmbeddings | None,
    multimask_output: bool,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Per image the masks (n, K, h, w) and IoU estimates (n, K) of its objects."""
    sam = sam_of(model)
    embeddings = encode(model, pixel_values) if image_embeddings is None else image_embeddings
    family = check_embeddings(sam, embeddings)
    if len(prompts) != len(embeddings):
        raise ValueError(f"{len(prompts)} prompts for {len(embeddings)} images")
    groups: dict[tuple, list[int]] = {}
    for index, prompt in enumerate(prompts):
        if prompt.kind == "none" or len(prompt):
            # Objects with different numbers of points cannot share a forward: padding tokens would be attended to.
            points = 0 if prompt.points is None else prompt.points.shape[1]
            groups.setdefault((points, prompt.boxes is None, prompt.masks is None), []).append(index)

    side, device = 4 * embeddings.maps.shape[-1], embeddings.maps.device
    channels = 3 if multimask_output else 1
    empty = embeddings.maps.new_zeros((0, channels, side, side)), embeddings.maps.new_zeros((0, channels))
    results = [empty] * len(prompts)
    for images in groups.values():
        counts = [max(1, len(prompts[i])) for i in images]
        owner = torch.tensor([i for i, count in zip(images, counts) for _ in range(count)])
        owner = owner.to(device, non_blocking=True)  # made on a GPU, the host would wait for it
        inputs = _prompt_inputs([prompts[i] for i in images], device, sam.dtype)
        runs = tuple(zip(images, counts))
        inputs |= family.decoder_inputs(embeddings, owner, runs)
        # One row an object: embeddings (R, 256, grid, grid), masks (R, 1, K, h, w), scores (R, 1, K).
        if embeddings.early is not None and "intermediate_embeddings" not in inputs:
            shared = len(owner) > len(images)
            early = embeddings.early
            inputs["early_embeddings"] = SharedMaps(early, owner, runs) if shared else early[owner]
        if embeddings.domains is not None:
            inputs["domain"] = embeddings.domains[owner]
        with mask_of_token_0(sam):
            output = sam(multimask_output=multimask_output, **inputs)
        masks = output.pred_masks.squeeze(1).split(counts)
        scores = output.iou_scores.squeeze(1).split(counts)
        for index, image_masks, image_scores in zip(images, masks, scores):
            results[index] = image_masks, image_scores
    return results


def check_embeddings(sam: nn.Module, embeddings: ImageEmbeddings) -> SamFamily:
    """The family of a SAM; raises `UserError` for embeddings of another model."""
    family, shape = family_of(sam), encoder_shape(sam)
    found = tuple(embeddings.maps.shape[1:])
    wanted = (shape.output_channels, shape.grid, shape.grid)
    if found != wanted or len(embeddings.skips) != family.skips:
        raise UserError(
            f"maps of {found} and {len(embeddings.skips)} finer ones are another model's: the decoder of this "
            f"{family.title} takes {wanted} and {family.skips}",
            where="image_embeddings",
            fix="encode the images with this model",
        )
    return family


def _logits_of(prompt: Prompt, masks: torch.Tensor) -> torch.Tensor:
    """What `segment` returns of an image's masks (n, K, h, w)."""
    if prompt.kind == "none":
        return masks[0]
    return masks[:, 0] if masks.shape[1] == 1 else masks


def _prompt_inputs(prompts: list[Prompt], device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """`SamModel.forward`'s prompt arguments: the R objects of all `prompts`, which have the same fields, as rows."""
    inputs = {}
    if prompts[0].boxes is not None:
        inputs["input_boxes"] = torch.cat([p.boxes for p in prompts]).to(device)[:, None]  # (R, 1, 4)
    if prompts[0].points is not None:
        inputs["input_points"] = torch.cat([p.points for p in prompts]).to(device)[:, None]  # (R, 1, p, 2)
        inputs["input_labels"] = torch.cat([p.point_labels for p in prompts]).to(device)[:, None]  # (R, 1, p)
    if prompts[0].masks is not None:
        inputs["input_masks"] = torch.cat([p.masks for p in prompts]).to(device, dtype)[:, None]  # (R, 1, 4g, 4g)
    return inputs


def sam_of(model: nn.Module) -> SamModel:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def pool_of(model: nn.Module) -> ModaModel | None:
    """The `ModaModel` that `model` is, or that a `PeftModel` holds; None for any other model."""
    tuner = getattr(model, "base_model", None) if isinstance(model, PeftModel) else model
    return tuner if isinstance(tuner, ModaModel) else None
