"""Which files an export has: the parts of a model, with examples of their inputs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from peft import PeftModel
from torch import nn

from ...errors import UserError
from ...files import BASE
from ...inference.forward import pool_of, sam_of
from ...sam.families import encoder_shape, family_of, vision_encoder
from ...sam.input_channels import input_channels
from ...sam.processing import SamAdaptProcessor
from ...tuners.moda import ModaModel
from ...tuners.moda.encode import first_adapted_block
from .graphs import (
    Active,
    Decoder,
    Encoder,
    Normalise,
    Promptless,
    PromptlessHead,
    PyramidDecoder,
    PyramidPromptlessHead,
    Router,
    embedding_names,
)


_ROWS, _POINTS = 2, 3  # of the examples; neither 1, which an exporter takes for a constant


@dataclass(frozen=True)
class Part:
    """A file to write.

    Attributes:
        name: its path in the folder without the ending, `encoder` or `polyp/decoder`.
        module: takes `inputs` by name.
        inputs: an example of each tensor.
        dynamic: by input and axis, the name of each size that is free.
        outputs: names of what it returns, in order.
        largest: of free sizes, where they have a limit.
        defaults: values of inputs that a user of the ONNX file may leave out.
    """

    name: str
    module: nn.Module
    inputs: dict[str, torch.Tensor]
    dynamic: dict[str, dict[int, str]]
    outputs: tuple[str, ...]
    largest: dict[str, int] = field(default_factory=dict)
    defaults: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """`encoder`, `decoder`, `promptless` or `router`."""
        return self.name.rpartition("/")[2]


def merged(model: nn.Module) -> nn.Module:
    """A plain SAM with the adapter in its weights; `model` itself is left as it is, or is that SAM.

    Raises:
        NotImplementedError: no weight can hold what the adapter does; the text says why.
    """
    if isinstance(model, ModaModel):
        model.merge_adapter()
    if not isinstance(model, PeftModel):
        return model
    return copy.deepcopy(model).merge_and_unload().eval()


def check_encoder_input(processor: SamAdaptProcessor, encoder_input: str) -> None:
    """Raise `UserError` for images that no annotator hands over."""
    if encoder_input == "image" and (processor.channels is not None or processor.normalization is not None):
        raise UserError(
            "image is for RGB photographs normalised by one mean and deviation",
            key="encoder_input",
            fix="use pixels, and normalise as config.json says",
        )


def parts_of(
    model: nn.Module, processor: SamAdaptProcessor, *, classes: bool, promptless: bool, encoder_input: str = "pixels"
) -> list[Part]:
    """The files of a model.

    A pool of domains has a router, whose encoder is plain SAM's, and a folder for each domain: its own encoder where
    the adapters reach that, its decoder, and a promptless head that takes the embeddings, so that what the domains
    share is written once.

    Args:
        model: on the CPU, in `eval()`, merged where it can be.
        classes: whether it segments classes, without prompts.
        promptless: whether it was trained without prompts.
        encoder_input: "pixels", the network's input, or "image", see `Normalise`.
    """
    normalise = Normalise(processor) if encoder_input == "image" else None
    image = _image(model, encoder_input)
    sam, pool = sam_of(model), pool_of(model)
    if pool is None:
        encoder = Encoder(sam, normalise)
        parts = [] if classes else [_encoder("encoder", encoder, image), _decoder("decoder", sam, processor)]
        if promptless or classes:
            whole = Promptless(encoder, _promptless(sam))
            parts.append(_part("promptless", whole, {"image": image}, ("logits",)))
        return parts
    router = Router(pool, normalise)
    parts = [_part("router", router, {"image": image}, router.outputs)]
    adapted = first_adapted_block(vision_encoder(sam)) is not None
    for domain in [*pool.domains, *([BASE] if pool.router.reject else [])]:
        active = partial(pool.activated, domain)
        if adapted and domain != BASE:
            parts.append(_encoder(f"{domain}/encoder", Encoder(sam, normalise, active), image))
        if not classes:
            parts.append(_decoder(f"{domain}/decoder", sam, processor, active))
        if promptless or classes:
            head = _promptless(sam, active)
            parts.append(_part(f"{domain}/promptless", head, _embedded(sam, head.takes_early), ("logits",)))
    return parts


def _image(model: nn.Module, encoder_input: str) -> torch.Tensor:
    size = encoder_shape(model).image_size
    if encoder_input == "image":
        return 255 * torch.rand(size // 2, size - 1, 3)
    return torch.randn(_ROWS, input_channels(vision_encoder(model)), size, size)


def _encoder(name: str, encoder: Encoder, image: torch.Tensor) -> Part:
    return _part(name, encoder, {"image": image}, encoder.outputs)


def _promptless(sam: nn.Module, active: Active = nullcontext) -> PromptlessHead:
    return (PyramidPromptlessHead if family_of(sam).skips else PromptlessHead)(sam, active)


def _embedded(sam: nn.Module, early: bool) -> dict[str, torch.Tensor]:
    """Embeddings to try a decoder or promptless head on, by name."""
    shape = encoder_shape(sam)
    channels, grid = shape.output_channels, shape.grid
    sizes = {
        "image_embeddings": (_ROWS, channels, grid, grid),
        "image_embed": (_ROWS, channels, grid, grid),
        "high_res_feats_0": (_ROWS, channels // 8, 4 * grid, 4 * grid),
        "high_res_feats_1": (_ROWS, channels // 4, 2 * grid, 2 * grid),
        "interm_embeddings": (1, _ROWS, grid, grid, shape.hidden_size),
    }
    names = embedding_names(sam, early)
    return {name: torch.randn(size) for name, size in sizes.items() if name in names}


def _decoder(name: str, sam: nn.Module, processor: SamAdaptProcessor, active: Active = nullcontext) -> Part:
    decoder = (PyramidDecoder if family_of(sam).skips else Decoder)(sam, processor, active)
    inputs = _embedded(sam, decoder.takes_early) | {
        "point_coords": processor.image_size * torch.rand(_ROWS, _POINTS, 2),
        "point_labels": torch.tensor([[1.0, 0.0, -1.0], [2.0, 3.0, -1.0]]),
        "mask_input": torch.randn(_ROWS, 1, processor.mask_size, processor.mask_size),
        "has_mask_input": torch.ones(1),
        "orig_im_size": torch.tensor([0.8 * processor.image_size, 1.2 * processor.image_size]).round(),
    }
    # samexporter's decoder has no such input: its users bring the masks to their size themselves.
    defaults = {"orig_im_size": torch.full((2,), float(processor.image_size))} if decoder.pads else {}
    return _part(name, decoder, inputs, ("masks", "iou_predictions", "low_res_masks"), defaults)


def _part(
    name: str,
    module: nn.Module,
    inputs: dict[str, torch.Tensor],
    outputs: Sequence[str],
    defaults: dict[str, torch.Tensor] | None = None,
) -> Part:
    dynamic: dict[str, dict[int, str]] = {}
    largest: dict[str, int] = {}
    for key, value in inputs.items():
        if key == "image" and value.ndim == 3:
            dynamic[key] = {0: "image_height", 1: "image_width"}
            largest = dict.fromkeys(dynamic[key].values(), encoder_shape(module).image_size)
        elif key == "interm_embeddings":
            dynamic[key] = {1: "batch"}
        elif key not in ("has_mask_input", "orig_im_size"):
            dynamic[key] = {0: "batch"} | ({1: "points"} if key.startswith("point_") else {})
    return Part(name, module.eval().requires_grad_(False), inputs, dynamic, tuple(outputs), largest, defaults or {})
