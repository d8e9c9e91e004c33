"""SAM-HQ (arXiv 2306.01567): SAM with a second mask branch in its decoder: `SamHQModel`."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .. import citations
from ..image_embeddings import ImageEmbeddings
from ..per_thread import PerThread
from .family import Runs
from .sam import SAM


class _Image(PerThread):
    shape: torch.Size | None = None
    maps: torch.Tensor | None = None


class AttendedImage:
    """Hooks that give the decoder's upscaling the image maps behind its transformer, as SAM-HQ does.

    transformers assigns the transformer's second output to a name that it overwrites, and upscales the maps that went
    in, their rows and columns exchanged. The object carries them within one call.
    """

    def __init__(self, decoder: nn.Module) -> None:
        self._image = _Image()
        self._handles = [
            decoder.transformer.register_forward_pre_hook(self.keep_shape, with_kwargs=True),
            decoder.transformer.register_forward_hook(self.keep),
            decoder.upscale_conv1.register_forward_pre_hook(self.replace),
        ]

    def keep_shape(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """(R, C, g, g) of the maps that go in."""
        self._image.shape = kwargs["image_embeddings"].shape

    def keep(self, module: nn.Module, args: tuple, output: tuple) -> None:
        """(R, 1, g g, C) -> (R, C, g, g)."""
        self._image.maps = output[1].transpose(2, 3).reshape(self._image.shape)

    def replace(self, module: nn.Module, args: tuple) -> tuple | None:
        """The input of the first upscaling."""
        maps, self._image.maps = self._image.maps, None
        return None if maps is None else (maps,)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def _fault_hooks(model: nn.Module) -> AttendedImage | None:
    decoder = getattr(model, "mask_decoder", None)
    return None if decoder is None else AttendedImage(getattr(decoder, "base_layer", decoder))


def _encode(sam: nn.Module, pixel_values: torch.Tensor) -> ImageEmbeddings:
    output = sam.vision_encoder(pixel_values.to(sam.dtype))
    return ImageEmbeddings(output.last_hidden_state, next(iter(output.intermediate_embeddings), None))


def _decoder_inputs(embeddings: ImageEmbeddings, owner: torch.Tensor, runs: Runs) -> dict[str, Any]:
    early = [] if embeddings.early is None else [embeddings.early[owner]]
    return {"image_embeddings": embeddings.maps[owner], "intermediate_embeddings": early}


_OWN_HEAD = "its decoder has HQ-SAM's branch already, which decoder='full' trains"

SAM_HQ = replace(
    SAM,
    title="SAM-HQ",
    model_type="sam_hq",
    encoder_type="sam_hq_vision_model",
    model_path="transformers:SamHQModel",
    attention_path="transformers.models.sam_hq.modeling_sam_hq:SamHQVisionAttention",
    sdpa_path="transformers.models.sam_hq.modeling_sam_hq:SamHQVisionSdpaAttention",
    patch_embedding_path="transformers.models.sam_hq.modeling_sam_hq:SamHQPatchEmbeddings",
    windows_removable=False,
    keeps_early=True,
    refused_decoders={"hq": _OWN_HEAD},
    encode=_encode,
    encode_from_block=None,
    decoder_inputs=_decoder_inputs,
    fault_hooks=_fault_hooks,
    citation=citations.SAM_HQ,
)
