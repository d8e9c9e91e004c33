"""HQ-SAM's mask branch (arXiv 2306.01567) on the frozen decoder of `SamModel`: the inner method of MoDA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...errors import UserError
from ...sam.families import family_of, find_mask_decoder, find_vision_encoder
from ...sam.image_embeddings import SharedMaps
from ...sam.per_thread import PerThread
from .two_way import mix_tokens, upscale


HQ_MODULES = ("hq_token", "hq_mask_mlp", "compress_vit_feat", "embedding_encoder", "embedding_maskfeature")

Assignment = Sequence[tuple[str, torch.Tensor]]  # (adapter, indices of its images): each image of the batch once


EarlyMaps = torch.Tensor | SharedMaps


class HqHead(nn.Module):
    """The five modules of one adapter: 1,071,104 parameters for ViT-B.

    Args:
        mask_decoder: SAM's, for its sizes (C = 256, c = C / 8).
        early_channels: V, width of the encoder's blocks.
    """

    def __init__(self, mask_decoder: nn.Module, early_channels: int):
        super().__init__()
        wide = mask_decoder.hidden_size
        middle, narrow = wide // 4, wide // 8
        self.hq_token = nn.Embedding(1, wide)
        # The classes of the decoder's own parts: importing them costs more than all of this package.
        norm = type(mask_decoder.upscale_layer_norm)
        self.hq_mask_mlp = type(mask_decoder.output_hypernetworks_mlps[0])(wide, wide, narrow, 3)
        self.compress_vit_feat = _upscaling(norm, early_channels, wide, narrow)
        self.embedding_encoder = _upscaling(norm, wide, middle, narrow)
        self.embedding_maskfeature = nn.Sequential(
            nn.Conv2d(narrow, middle, kernel_size=3, padding=1),
            norm(middle, data_format="channels_first"),
            nn.GELU(),
            nn.Conv2d(middle, narrow, kernel_size=3, padding=1),
        )

    def start_near(self, decoder: nn.Module) -> None:
        """Start from SAM's mask 0: its token, its hyper-network, and its upscaled maps, normalised in each pixel.

        With GELU(x) - GELU(-x) = x, the two convolutions of `embedding_maskfeature` pass on what its LayerNorm makes
        of [x, -x]: x over its root mean square, which leaves the sign of a logit as it is. So up to what one more
        token changes in the transformer the masks are SAM's, and their logits about as large.
        """
        if decoder.mask_tokens.weight.is_meta:  # without values to start from; a file will bring the head's own
            return
        with torch.no_grad():
            self.hq_token.weight.copy_(decoder.mask_tokens.weight[:1])
            for name, value in decoder.output_hypernetworks_mlps[0].named_parameters():
                self.hq_mask_mlp.get_parameter(name).copy_(value)
            for branch in (self.compress_vit_feat, self.embedding_encoder):
                nn.init.zeros_(branch[-1].weight)
                nn.init.zeros_(branch[-1].bias)
            first, last = self.embedding_maskfeature[0], self.embedding_maskfeature[-1]
            for conv in (first, last):
                nn.init.zeros_(conv.weight)
                nn.init.zeros_(conv.bias)
            unit = torch.eye(first.in_channels, device=first.weight.device)
            first.weight[:, :, 1, 1] = torch.cat([unit, -unit])
            last.weight[:, :, 1, 1] = torch.cat([unit, -unit], dim=1) * _typical_size(decoder).to(unit.device)

    def forward(
        self, tokens: torch.Tensor, upscaled: torch.Tensor, image_embeddings: torch.Tensor, early: EarlyMaps
    ) -> torch.Tensor:
        """Mask logits (b, P, 1, 4g, 4g).

        Args:
            tokens: HQ tokens behind the transformer (b, P, C).
            upscaled: SAM's upscaled maps (b, P, c, 4g, 4g).
            image_embeddings: (b, C, g, g), without the dense prompt.
            early: output of the early block (b, g, g, V).
        """
        detail = self._detail(image_embeddings, early)
        maps = self.embedding_maskfeature(upscaled.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        maps = maps + detail[:, None]  # (b, P, c, 4g, 4g)
        masks = self.hq_mask_mlp(tokens).unsqueeze(2) @ maps.flatten(3)  # (b, P, 1, 16 g g)
        return masks.unflatten(3, maps.shape[3:])

    def _detail(self, image_embeddings: torch.Tensor, early: EarlyMaps) -> torch.Tensor:
        """What the head sees of the images, (b, c, 4g, 4g)."""
        if isinstance(early, SharedMaps):
            if early.runs is None:
                images, place = early.owner.unique(return_inverse=True)
                any_row = torch.empty_like(images).scatter_(0, place, torch.arange(len(place), device=place.device))
            else:  # without a look at the values, for which a GPU would wait
                counts = [count for _, count in early.runs]
                starts = [0, *accumulate(counts)][:-1]
                owners = [index for index, count in enumerate(counts) for _ in range(count)]
                known = [image for image, _ in early.runs], owners, starts
                images, place, any_row = (_indices(one, early.owner.device) for one in known)
            return self._detail(image_embeddings[any_row], early.maps[images])[place]
        return self.embedding_encoder(image_embeddings) + self.compress_vit_feat(early.permute(0, 3, 1, 2))


def _indices(rows: list[int], device: torch.device) -> torch.Tensor:
    """int64 on a device, without a wait for it."""
    return torch.tensor(rows).to(device, non_blocking=True)


def _upscaling(norm: type[nn.Module], channels: int, middle: int, narrow: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(channels, middle, kernel_size=2, stride=2),
        norm(middle, data_format="channels_first"),
        nn.GELU(),
        nn.ConvTranspose2d(middle, narrow, kernel_size=2, stride=2),
    )


def _typical_size(decoder: nn.Module) -> torch.Tensor:
    """Root mean square of SAM's upscaled maps if what their normalisation gives were noise; a scalar tensor."""
    norm, conv = decoder.upscale_layer_norm, decoder.upscale_conv2
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4096, len(norm.weight), generator=generator, device="cpu", dtype=torch.float32)
    hidden = F.gelu(noise.to(norm.weight.device) * norm.weight.float() + norm.bias.float())
    maps = torch.einsum("nc,cdij->nijd", hidden, conv.weight.float()) + conv.bias.float()
    return F.gelu(maps).square().mean().sqrt()


class _Carried(PerThread):
    map: EarlyMaps | None = None
    assignment: Assignment | None = None
    expected = False


class EarlyMap:
    """Carries what the decoder's call has no argument for, within one forward of a `SamModel`: see `receive`.

    Its methods are the hooks: bound methods instead of closures, so that a model with them can be copied and pickled.
    A map is captured only after `expect`, and `take` forgets it: neither a later forward nor the recomputation of a
    gradient checkpoint can leave one behind that belongs to other images. Each thread has its own.

    Args:
        model: the `SamModel`.
        layer: index of the block whose output is the early map.
    """

    def __init__(self, model: nn.Module, layer: int):
        self.layer, self._carried = layer, _Carried()
        # The base's own block: what tuners wrap around it acts on its input, or inside it.
        block = family_of(model).blocks_of(find_vision_encoder(model))[layer]
        while hasattr(block, "base_layer"):
            block = block.base_layer
        self._handles = [
            model.register_forward_pre_hook(self.receive, with_kwargs=True),
            block.register_forward_hook(self.capture),
        ]

    def receive(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Pre-hook of the `SamModel`: takes the keywords `early_embeddings` (B, g, g, V) or `SharedMaps`, which has to
        come beside `image_embeddings`, and `hq_assignment`, the images of each adapter."""
        self.expect()
        self._carried.map = kwargs.get("early_embeddings")
        self._carried.assignment = kwargs.get("hq_assignment")
        return args, {key: value for key, value in kwargs.items() if key not in ("early_embeddings", "hq_assignment")}

    def capture(self, block: nn.Module, args: tuple, output: torch.Tensor) -> None:
        """Forward hook of the early block."""
        if self._carried.expected:
            self._carried.map = output

    def expect(self) -> None:
        """Keep the map of the encoder pass that follows."""
        self._forget()
        self._carried.expected = True

    def take(self) -> tuple[EarlyMaps | None, Assignment | None]:
        """The early map (B, g, g, V) and the assignment of this forward, once."""
        taken = self._carried.map, self._carried.assignment
        self._forget()
        return taken

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def _forget(self) -> None:
        self._carried.map = self._carried.assignment = None
        self._carried.expected = False


def live_early_map(sam: nn.Module) -> EarlyMap | None:
    """The early map that the mask decoder of this `SamModel` waits for; None without an active HQ decoder."""
    decoder = find_mask_decoder(sam)
    return decoder.early_map if getattr(decoder, "hq_is_live", False) else None


def decode_hq(
    decoder: nn.Module,
    heads: Mapping[str, HqHead],
    assignment: Assignment | None,
    early: EarlyMaps | None,
    image_embeddings: torch.Tensor,
    image_positional_embeddings: torch.Tensor,
    sparse_prompt_embeddings: torch.Tensor | None,
    dense_prompt_embeddings: torch.Tensor,
    multimask_output: bool = False,
    attention_similarity: torch.Tensor | None = None,
    target_embedding: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """HQ masks (B, P, 1, h, w) and SAM's IoU tokens (B, P, C), whatever `multimask_output` says.

    The frozen transformer runs once for all images, with each image's own HQ token and in SAM's dtype; the heads run
    on their images alone, in theirs.

    Args:
        decoder: SAM's mask decoder.
        heads: by adapter.
        assignment: the images of each adapter; None: all are those of the only head.
        early: (B, g, g, V).

    Raises:
        UserError: without an early map or with one of other images; an assignment that misses or repeats an image.
    """
    batch = image_embeddings.shape[0]  # not len(), which an exporter would write down
    _check_early(early, image_embeddings)
    place = None
    if assignment is None:
        assignment = [(next(iter(heads)), torch.arange(batch, device=image_embeddings.device))]
    else:
        place = _places(assignment, batch)
    shared = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])  # (N, C)
    own = torch.cat([heads[name].hq_token.weight.expand(rows.shape[0], -1) for name, rows in assignment])
    own = own if place is None else own[place]
    tokens, mixed, _ = mix_tokens(
        decoder,
        torch.cat([shared.expand(batch, -1, -1), own[:, None].to(shared.dtype)], dim=1),  # (B, N + 1, C)
        image_embeddings,
        image_positional_embeddings,
        sparse_prompt_embeddings,
        dense_prompt_embeddings,
        attention_similarity,
        target_embedding,
    )
    upscaled = upscale(decoder, mixed).unflatten(0, tokens.shape[:2])  # (B, P, c, 4g, 4g)
    inputs = tokens[:, :, len(shared)], upscaled, image_embeddings, early
    masks, start = [], 0
    for name, rows in assignment:
        # Images in the assignment's order are taken as views, without a copy of their maps.
        rows = slice(start, start := start + rows.shape[0]) if place is None else rows
        masks.append(_run(heads[name], shared.dtype, *(value[rows] for value in inputs)))
    return torch.cat(masks) if place is None else torch.cat(masks)[place], tokens[:, :, 0]


def _run(head: HqHead, base_dtype: torch.dtype, *inputs: EarlyMaps) -> torch.Tensor:
    dtype = head.hq_token.weight.dtype
    if dtype == base_dtype:  # under autocast, too
        return head(*inputs)
    return head(*(value.to(dtype) for value in inputs)).to(base_dtype)


def _check_early(early: EarlyMaps | None, image_embeddings: torch.Tensor) -> None:
    if early is None:
        raise UserError(
            "decoder='hq' needs the output of an early block: call the model with pixel_values, or pass "
            "early_embeddings beside image_embeddings (hf_sam_adapt.inference.forward.encode returns both)"
        )
    batch, _, *grid = image_embeddings.shape
    shape = (len(early), *early.maps.shape[1:]) if isinstance(early, SharedMaps) else tuple(early.shape)
    if len(shape) != 4 or [*shape[:3]] != [batch, *grid]:
        raise UserError(
            f"early_embeddings of shape {shape} do not belong to image_embeddings of shape "
            f"{tuple(image_embeddings.shape)}: they are (batch, grid, grid, width of the encoder)"
        )


def _places(assignment: Assignment, batch: int) -> torch.Tensor | None:
    """Where each image of the batch stands among the adapters' images, end to end; None if in that order."""
    owned = torch.cat([rows for _, rows in assignment])
    images, place = torch.arange(batch, device=owned.device), owned.argsort()
    if not torch.equal(owned[place], images):
        raise UserError(
            f"hq_assignment names the images {owned.tolist()}", fix=f"each of the {batch} must be there once"
        )
    return None if torch.equal(owned, images) else place
