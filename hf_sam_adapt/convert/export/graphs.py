"""What is exported: the parts of an adapted SAM as small modules of tensors, in segment-anything's names.

Each calls the layers of the adapted model itself, so that a graph computes what the model does, adapters included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from ...files import BASE
from ...sam.families import family_of, vision_encoder
from ...sam.image_embeddings import ImageEmbeddings
from ...sam.mask_choice import mask_of_token_0
from ...sam.processing import SamAdaptProcessor
from ...tuners.common.encoding import encode_images
from ...tuners.common.hq import live_early_map
from ...tuners.moda import ModaModel
from ...tuners.moda.encode import first_adapted_block
from ...tuners.moda.tokens import TokenProbe


Active = Callable[[], AbstractContextManager]


class Normalise(nn.Module):
    """An RGB image as annotators hand it over, float (H, W, 3) of 0..255, to the network's input (1, 3, S, S).

    Args:
        processor: with `image_mean` and `image_std`.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, processor: SamAdaptProcessor) -> None:
        super().__init__()
        self.size = processor.image_size
        self.register_buffer("mean", 255 * torch.tensor(processor.image_mean))
        self.register_buffer("std", 255 * torch.tensor(processor.image_std))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        values = ((image - self.mean) / self.std).permute(2, 0, 1)[None]  # (1, 3, H, W)
        height, width = values.shape[-2:]
        return F.pad(values, (0, self.size - width, 0, self.size - height))


_OF_SAM = "image_embeddings", "interm_embeddings"
_OF_PYRAMIDS = "high_res_feats_0", "high_res_feats_1", "image_embed"
EMBEDDINGS = frozenset((*_OF_SAM, *_OF_PYRAMIDS))


def embedding_names(sam: nn.Module, early: bool) -> tuple[str, ...]:
    """What `as_outputs` gives: of SAM in segment-anything's names, of SAM 2 and 3 in samexporter's.

    Args:
        early: whether the decoder takes the map of an early block.
    """
    return _OF_PYRAMIDS if family_of(sam).skips else _OF_SAM[: 1 + early]


def as_outputs(embeddings: ImageEmbeddings) -> tuple[torch.Tensor, ...]:
    """Finer maps, then the coarsest (B, 256, g, g), then the early map as HQ-SAM has it, (1, B, g, g, V)."""
    early = () if embeddings.early is None else (embeddings.early[None],)
    return (*embeddings.skips, embeddings.maps, *early)


def takes_early_map(sam: nn.Module) -> bool:
    """Whether the decoder of a SAM, with the adapters that are active in it, takes the map of an early block."""
    return family_of(sam).keeps_early or live_early_map(sam) is not None


@contextmanager
def _without_positions(encoder: nn.Module) -> Iterator[None]:
    """Without the neck's position encodings, which serve videos.

    transformers keeps them by the size of the batch: a trace would find those of an earlier call, and fix the size.
    """
    positions = getattr(family_of(encoder).neck_of(encoder), "position_encoding", None)
    if positions is None:
        yield
        return
    vars(positions)["forward"] = lambda shape, device, dtype: torch.zeros((), device=device, dtype=dtype)
    try:
        yield
    finally:
        del vars(positions)["forward"]


class Encoder(nn.Module):
    """Image (B, C, S, S) -> embeddings, see `embedding_names`.

    Args:
        sam: with adapters in it or without.
        normalise: what the image goes through first.
        active: makes the adapters active that are exported; for a pool of domains.
    """

    sam: Any

    def __init__(self, sam: nn.Module, normalise: nn.Module | None = None, active: Active = nullcontext) -> None:
        super().__init__()
        self.normalise, self.active = normalise, active
        self.vision_encoder = vision_encoder(sam)
        self.__dict__["sam"] = sam  # not a child: its other parts are not the encoder's
        with active():
            self.outputs = embedding_names(sam, takes_early_map(sam))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with self.active(), _without_positions(self.vision_encoder):
            return as_outputs(encode_images(self.sam, image if self.normalise is None else self.normalise(image)))


class _MaskHead(nn.Module):
    """The mask decoder with embedded prompts: masks of token 0, or of all classes."""

    sam: Any
    mask_decoder: Any
    positions: torch.Tensor
    no_mask: torch.Tensor
    no_prompt: torch.Tensor | None

    def __init__(self, sam: Any, active: Active = nullcontext) -> None:
        super().__init__()
        self.active, self.family = active, family_of(sam)
        self.__dict__["sam"] = sam
        self.mask_decoder = getattr(sam, self.family.mask_decoder)
        points = labels = None
        if self.family.skips:  # these have tokens for "no prompt", (1, 1, 2, 256), where SAM has none
            points, labels = torch.zeros(1, 1, 1, 2), -torch.ones(1, 1, 1, dtype=torch.int)
        with torch.no_grad(), active():
            self.early_map, self.takes_early = live_early_map(sam), takes_early_map(sam)
            self.register_buffer("positions", sam.get_image_wide_positional_embeddings())  # (1, 256, g, g)
            no_prompt, no_mask = getattr(sam, self.family.prompt_encoder)(
                input_points=points, input_labels=labels, input_boxes=None, input_masks=None
            )
            self.register_buffer("no_prompt", no_prompt)
            self.register_buffer("no_mask", no_mask[..., :1, :1].clone())  # (1, 256, 1, 1)

    def decode(
        self, embeddings: ImageEmbeddings, sparse: torch.Tensor | None, dense: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (R, K, 4g, 4g) and estimates of their IoU (R, K)."""
        shape = embeddings.maps.shape
        further: dict[str, Any] = {}
        if embeddings.skips:
            further["high_resolution_features"] = [*embeddings.skips]
        if self.family.keeps_early:
            further |= {"intermediate_embeddings": [embeddings.early], "hq_token_only": False}
        with self.active(), mask_of_token_0(self.sam):
            if self.early_map is not None:
                self.early_map.receive(self, (), {"early_embeddings": embeddings.early})
            masks, scores, *_ = self.mask_decoder(
                image_embeddings=embeddings.maps,
                image_positional_embeddings=self.positions.expand(shape),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense.expand(shape),
                multimask_output=False,
                **further,
            )
        return masks[:, 0], scores[:, 0]


class PromptlessHead(_MaskHead):
    """Embeddings -> logits (B, K, 4g, 4g) without a prompt."""

    def forward(self, image_embeddings: torch.Tensor, interm_embeddings: torch.Tensor | None = None) -> torch.Tensor:
        return self.segment(_embeddings(image_embeddings, interm_embeddings))

    def segment(self, embeddings: ImageEmbeddings) -> torch.Tensor:
        sparse = None if self.no_prompt is None else self.no_prompt.expand(embeddings.maps.shape[0], -1, -1, -1)
        return self.decode(embeddings, sparse, self.no_mask)[0]


class PyramidPromptlessHead(PromptlessHead):
    """That of SAM 2 and 3."""

    def forward(  # type: ignore[override]
        self, high_res_feats_0: torch.Tensor, high_res_feats_1: torch.Tensor, image_embed: torch.Tensor
    ) -> torch.Tensor:
        return self.segment(ImageEmbeddings(image_embed, skips=(high_res_feats_0, high_res_feats_1)))


def _embeddings(maps: torch.Tensor, interm_embeddings: torch.Tensor | None) -> ImageEmbeddings:
    return ImageEmbeddings(maps, None if interm_embeddings is None else interm_embeddings[0])


class Promptless(nn.Module):
    """Image (B, C, S, S) -> logits (B, K, 4g, 4g) without a prompt; K = 1, or the classes."""

    def __init__(self, encoder: Encoder, head: PromptlessHead) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(*self.encoder(image))


class Decoder(_MaskHead):
    """The decoder with segment-anything's inputs and outputs, a row an object; its masks are those of mask token 0.

    Args:
        sam: as for `Encoder`.
        processor: says how images were resized.
        active: as for `Encoder`.

    Attributes:
        pads: whether it adds the point that is none to every prompt; else that is its caller's.
    """

    pads: ClassVar[bool] = False
    mask_embed: nn.Module
    upscaling: torch.Tensor

    def __init__(self, sam: nn.Module, processor: SamAdaptProcessor, active: Active = nullcontext) -> None:
        super().__init__(sam, active)
        prompts = getattr(sam, family_of(sam).prompt_encoder)
        self.size, self.squash = processor.image_size, processor.resize == "squash"
        self.shared_embedding, self.mask_embed = prompts.shared_embedding, prompts.mask_embed
        self.point_embed, self.not_a_point_embed = prompts.point_embed, prompts.not_a_point_embed
        # What bilinear interpolation to S pixels makes of the mask's rows, (S, 4g).
        each = torch.eye(processor.mask_size)[None]
        self.register_buffer("upscaling", F.interpolate(each, size=self.size, mode="linear")[0].T.contiguous())

    def forward(
        self,
        image_embeddings: torch.Tensor,
        point_coords: torch.Tensor,
        point_labels: torch.Tensor,
        mask_input: torch.Tensor,
        has_mask_input: torch.Tensor,
        orig_im_size: torch.Tensor,
        interm_embeddings: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As segment-anything's `SamOnnxModel`.

        Args:
            image_embeddings: (R, 256, g, g), of each object's image.
            point_coords: (R, N, 2), x and y in pixels of the network's input.
            point_labels: (R, N): 1 on the object, 0 off it, 2 and 3 the corners of a box, -1 padding.
            mask_input: (R, 1, 4g, 4g) logits of an earlier round.
            has_mask_input: (1,), 0 where there is none.
            orig_im_size: (2,), height and width of the image.
            interm_embeddings: (1, R, g, g, V), where the decoder takes the map of an early block.

        Returns:
            Logits (R, 1, H, W) at the image's size, SAM's estimates of their IoU (R, 1), and logits (R, 1, 4g, 4g).
        """
        embeddings = _embeddings(image_embeddings, interm_embeddings)
        return self.segment(embeddings, point_coords, point_labels, mask_input, has_mask_input, orig_im_size)

    def segment(
        self,
        embeddings: ImageEmbeddings,
        coords: torch.Tensor,
        labels: torch.Tensor,
        mask: torch.Tensor,
        has_mask: torch.Tensor,
        size: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`forward` in the names of no one."""
        dense = has_mask * self.mask_embed(mask) + (1 - has_mask) * self.no_mask
        sparse = self._embed_points(coords, labels)[:, None]  # (R, 1, N, 256)
        low_res, scores = self.decode(embeddings, sparse, dense)
        rows, columns = self._resampling(size, 0), self._resampling(size, 1)
        return rows @ low_res @ columns.T, scores, low_res

    def _embed_points(self, coords: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        embedded = self.shared_embedding((coords + 0.5)[:, None] / self.size)[:, 0]  # (R, N, 256)
        labels = labels[..., None]
        embedded = torch.where(labels == -1, self.not_a_point_embed.weight, embedded)
        own = self.point_embed  # of SAM a module each, of SAM 2 and 3 rows of one
        for label, weight in enumerate(own.weight if isinstance(own, nn.Embedding) else [each.weight for each in own]):
            embedded = embedded + (labels == label) * weight
        return embedded

    def _resampling(self, size: torch.Tensor, axis: int) -> torch.Tensor:
        """The processor's way back as a matrix (H, 4g): to S pixels, without the padding, to the image's size.

        `F.interpolate` would need sizes that are numbers; this needs the tensor's values alone.
        """
        size = size.double()
        length, inside = size[axis], torch.full_like(size[axis], self.size)
        if not self.squash:
            inside = torch.floor(length * (self.size * 1.0 / size.max()) + 0.5).clamp(min=1)
        place = torch.arange(length.long().item(), dtype=torch.float32, device=size.device)
        source = ((place + 0.5) * (inside / length).float() - 0.5).clamp(min=0)
        below = source.floor()
        share, last = (source - below)[:, None], inside.long() - 1
        lower, upper = torch.minimum(below.long(), last), torch.minimum(below.long() + 1, last)
        return self.upscaling[lower] * (1 - share) + self.upscaling[upper] * share


class PyramidDecoder(Decoder):
    """That of SAM 2 and 3, with samexporter's inputs in their order, and one more for the size of the image."""

    pads = True

    def forward(  # type: ignore[override]
        self,
        image_embed: torch.Tensor,
        high_res_feats_0: torch.Tensor,
        high_res_feats_1: torch.Tensor,
        point_coords: torch.Tensor,
        point_labels: torch.Tensor,
        mask_input: torch.Tensor,
        has_mask_input: torch.Tensor,
        orig_im_size: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `Decoder`, but that the point (0, 0) with label -1 is added to every prompt, as their training had it.

        Args:
            image_embed: (R, 256, g, g), of each object's image.
            high_res_feats_0: (R, 32, 4g, 4g).
            high_res_feats_1: (R, 64, 2g, 2g).
        """
        embeddings = ImageEmbeddings(image_embed, skips=(high_res_feats_0, high_res_feats_1))
        coords, labels = F.pad(point_coords, (0, 0, 0, 1)), F.pad(point_labels, (0, 1), value=-1.0)
        return self.segment(embeddings, coords, labels, mask_input, has_mask_input, orig_im_size)


class Router(nn.Module):
    """A pool's frozen encoder with its router: image -> embeddings of plain SAM, domain and scores.

    `domain` int64 (B,) is a place in the pool, -1 for plain SAM; `scores` float32 (B, T) the probability of each
    domain. The embeddings are those that `Encoder` gives; where no adapter of the pool is in the encoder, of all
    domains.
    """

    pool: ModaModel
    labels: torch.Tensor

    def __init__(self, pool: ModaModel, normalise: nn.Module | None = None) -> None:
        super().__init__()
        self.normalise, self.router, self.vision_encoder = normalise, pool.router, vision_encoder(pool.model)
        self.register_buffer("labels", pool.router.kept_labels)
        self.__dict__["pool"] = pool
        # An adapter in the decoder does not reach the encoder, but one has to be active for the early map.
        shared = first_adapted_block(self.vision_encoder) is None and len(pool.domains) > 0
        self.active = pool.domains[0] if shared else BASE
        with pool.activated(self.active):
            self.outputs = (*embedding_names(pool.model, takes_early_map(pool.model)), "domain", "scores")

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pool, encoder = self.pool, self.vision_encoder
        pixel_values = image if self.normalise is None else self.normalise(image)
        with pool.activated(self.active), _without_positions(encoder):
            if self.router.mode == "probe":
                with TokenProbe(encoder, self.router.tokens) as probe:
                    embeddings = encode_images(pool.model, pixel_values)
                features = self.router.read(probe)
            else:
                embeddings = encode_images(pool.model, pixel_values)
                features = pool.router_features(pixel_values)
        return (*as_outputs(embeddings), self.router.route(features, self.labels), self.router.scores(features))
