"""Peak memory of a training step from shapes alone: the step is run on tensors that have no content."""

from __future__ import annotations

import copy
import dataclasses
import weakref
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..config.recipe import Recipe
from ..inference.forward import PromptedSam, encode, sam_of
from ..prompts import Prompt
from ..sam.constants import forget_constants
from ..sam.families import encoder_shape, find_mask_decoder
from ..sam.image_embeddings import ImageEmbeddings
from ..training.loop import batch_loss


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors made within that are alive, and the most there were at a time (`peak`)."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return output

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._seen:
            self._seen.add(storage)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.live -= size


def step_bytes(model: nn.Module, recipe: Recipe, batch_size: int, objects: int) -> int:
    """The most bytes that the tensors of an optimizer step take at a time, beside the model's weights.

    Activations, gradients, the optimizer's two moments and the batch; on the device type of the model, whose attention
    and autocast it runs with. Nothing is computed, so that any size takes seconds.

    Args:
        model: as it is trained; left as it is.
        recipe: names loss, prompts, precision, correction rounds and whether embeddings come from a cache.
        batch_size: images of a micro-step.
        objects: prompts of an image; ignored for kind "none".
    """
    moments = 2 * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    peaks = []
    for kind in recipe.prompts:
        # A round of corrections decodes the objects of an image once more.
        rows = objects * (1 + recipe.correction_rounds) if kind != "none" else 1
        peaks.append(_step_of_kind(model, recipe, batch_size, rows, kind))
    return moments + max(peaks)


def _step_of_kind(model: nn.Module, recipe: Recipe, batch_size: int, objects: int, kind: str) -> int:
    if objects == 1 or not _is_hq(model):
        return _forward_backward(model, recipe, batch_size, objects, kind)
    # An HQ head looks which rows are of one image, which takes their content. So the rows that one image more than
    # once has are counted as if each had an image of its own, whose embedding is there.
    decoding = dataclasses.replace(recipe, cache_embeddings=True, augment=[])
    more = [_forward_backward(model, decoding, count, 1, kind) for count in (batch_size, batch_size * objects)]
    return _forward_backward(model, recipe, batch_size, 1, kind) + more[1] - more[0]


def _is_hq(model: nn.Module) -> bool:
    return getattr(find_mask_decoder(sam_of(model)), "hq_is_live", False)


def _forward_backward(model: nn.Module, recipe: Recipe, batch_size: int, objects: int, kind: str) -> int:
    forget_constants()
    try:
        return _without_computing(model, recipe, batch_size, objects, kind)
    finally:
        forget_constants()


def _without_computing(model: nn.Module, recipe: Recipe, batch_size: int, objects: int, kind: str) -> int:
    device = next(model.parameters()).device
    fake = FakeTensorMode()
    model = _without_content(model, fake).train()
    shape = encoder_shape(model)
    side, grid = shape.image_size, shape.grid
    precision = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[recipe.precision]
    kept = {}
    if recipe.cache_embeddings:
        with fake, torch.no_grad():
            one = encode(model, torch.empty(1, recipe.channels or 3, side, side, device=device))
        kept = {name: value.shape[1:] for name, value in one.named.items()}
    with fake, LiveBytes() as bytes_:
        channels = recipe.channels or 3
        pixels = embeddings = None
        if recipe.cache_embeddings:
            embeddings = ImageEmbeddings.of_named(
                {name: torch.empty(batch_size, *sizes, device=device) for name, sizes in kept.items()}
            )
        else:
            pixels = torch.empty(batch_size, channels, side, side, device=device)
        prompts = [_prompt(kind, objects, side, grid, device) for _ in range(batch_size)]
        labels = torch.empty(batch_size, side, side, dtype=torch.uint8, device=device)
        batch = {"labels": labels, "prompts": prompts, "weight": torch.empty(batch_size, device=device)}
        with torch.autocast(device.type, precision or torch.bfloat16, enabled=precision is not None):
            logits, own, estimates = PromptedSam(model)(pixels, prompts, embeddings)
        loss, _ = batch_loss([one.float() for one in logits], batch, str(recipe.loss), estimates=estimates)
        (loss if own is None else loss + own).backward()
        return bytes_.peak


def _without_content(model: nn.Module, fake: FakeTensorMode) -> nn.Module:
    """A copy of a model whose parameters and buffers are fake."""
    memo: dict[int, torch.Tensor] = {id(b): fake.from_tensor(b) for b in model.buffers()}
    memo |= {id(p): nn.Parameter(fake.from_tensor(p.detach()), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo)


def _prompt(kind: str, objects: int, side: int, grid: int, device: torch.device) -> Prompt:
    """Prompts as the processor returns them, without content."""
    if kind == "none":
        return Prompt("none")
    targets = torch.empty(objects, side, side, dtype=torch.uint8, device=device)
    if kind == "box":
        return Prompt("box", boxes=torch.empty(objects, 4, device=device), targets=targets)
    if kind == "point":
        points = torch.empty(objects, 1, 2, device=device)
        point_labels = torch.ones(objects, 1, dtype=torch.int64, device=device)
        return Prompt("point", points=points, point_labels=point_labels, targets=targets)
    return Prompt("mask", masks=torch.empty(objects, 4 * grid, 4 * grid, device=device), targets=targets)
