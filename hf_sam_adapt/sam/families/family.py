"""The form in which a family of SAMs is described."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn


if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of an image encoder as it is now.

    Attributes:
        image_size: side of the square input in pixels.
        patch_size: side of a token in pixels.
        hidden_size: width of the blocks.
        num_hidden_layers: number of blocks.
        output_channels: of the map that the mask decoder takes.
        global_blocks: indices of the blocks without windows.
    """

    image_size: int
    patch_size: int
    hidden_size: int
    num_hidden_layers: int
    output_channels: int
    global_blocks: tuple[int, ...]

    @property
    def grid(self) -> int:
        """Side of the token map."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class SamFamily:
    """Where the models of a family keep what is adapted, which input they take, and what their decoder needs.

    Attributes:
        model_type: `config.model_type` of the whole model.
        encoder_type: that of its image encoder alone.
        model_path: of transformers' class, `module:name`; imported when it is asked for.
        encoder, mask_decoder, prompt_encoder: names in the model.
        blocks, patch_embedding, neck: dotted paths in the encoder.
        attention: path in a block; `qkv`, `projection`: of its linears, from the attention.
        attention_path, patch_embedding_path: of the classes of modules whose attention adds relative positions to the
            scores, as SAM does.
        not_reached: matches the names of decoder parameters that a loss on mask token 0 does not reach.
        never_trained: parts of the model, beside `not_reached`, that no method trains by itself.
        processor: fields of `SamAdaptProcessor` for a checkpoint without a processor's file.
        shape: sizes of an encoder.
        embed: the encoder and pixel values (B, C, S, S) -> the input (B, g, g, C) of the first block.
        encode: the model and pixel values (B, C, S, S) -> what the decoder takes (B, 256, g, g), with gradients.
        encode_from_block: the encoder, the input (B, g, g, C) of a block and its index -> the same.
        position_tables: of an encoder, for a token grid of the given side: name, module, attribute and wanted length
            of each table that depends on the grid; `pos_embed` is the absolute one.
        set_image_size: writes another input size into the model's and the encoder's attributes and configs.
    """

    model_type: str
    encoder_type: str
    model_path: str
    encoder: str
    mask_decoder: str
    prompt_encoder: str
    blocks: str
    patch_embedding: str
    neck: str
    attention: str
    qkv: str
    projection: str
    attention_path: str
    patch_embedding_path: str
    not_reached: re.Pattern[str]
    never_trained: tuple[str, ...]
    processor: dict[str, Any]
    shape: Callable[[nn.Module], EncoderShape]
    embed: Callable[[nn.Module, torch.Tensor], torch.Tensor]
    encode: Callable[[nn.Module, torch.Tensor], torch.Tensor]
    encode_from_block: Callable[[nn.Module, torch.Tensor, int], torch.Tensor]
    position_tables: Callable[[nn.Module, int], Iterator[tuple[str, nn.Module, str, int]]]
    set_image_size: Callable[[nn.Module, nn.Module, int], None]

    @property
    def model_class(self) -> type[PreTrainedModel]:
        return _imported(self.model_path)

    @property
    def attention_class(self) -> type[nn.Module]:
        return _imported(self.attention_path)

    @property
    def patch_embedding_class(self) -> type[nn.Module]:
        return _imported(self.patch_embedding_path)

    @property
    def model_types(self) -> tuple[str, str]:
        return self.model_type, self.encoder_type

    def reached_parameters(self, mask_decoder: nn.Module) -> list[str]:
        """Names of the decoder parameters that a loss on mask token 0 reaches: 3,506,304 values in SAM's decoder."""
        return [name for name, _ in mask_decoder.named_parameters() if not self.not_reached.match(name)]

    @property
    def qkv_names(self) -> str:
        """Regular expression of the attention linears' names in the model."""
        return rf"{self.encoder}\.{re.escape(self.blocks)}\.\d+\.{re.escape(f'{self.attention}.{self.qkv}')}"

    @property
    def norm_names(self) -> str:
        """Regular expression of the names of the blocks' own norms in the model."""
        return rf"{self.encoder}\.{re.escape(self.blocks)}\.\d+\.layer_norm\d"

    @property
    def map_names(self) -> str:
        """Regular expression of the names of patch embedding and blocks in the model."""
        return rf"{self.encoder}\.({re.escape(self.patch_embedding)}|{re.escape(self.blocks)}\.\d+)"

    def blocks_of(self, encoder: nn.Module) -> nn.ModuleList:
        return attrgetter(self.blocks)(encoder)

    def patch_embedding_of(self, encoder: nn.Module) -> nn.Module:
        """The base's own, inside what a tuner wraps around it."""
        module = attrgetter(self.patch_embedding)(encoder)
        return getattr(module, "base_layer", module)

    def is_patch_embedding(self, name: str) -> bool:
        """Whether a module of this name, in the model or in what holds it, is the patch embedding."""
        return name.rpartition(".")[2] == self.patch_embedding.rpartition(".")[2]

    def neck_of(self, encoder: nn.Module) -> nn.Module:
        return attrgetter(self.neck)(encoder)

    def attention_of(self, block: nn.Module) -> nn.Module:
        return attrgetter(self.attention)(block)

    def qkv_of(self, block: nn.Module) -> nn.Module:
        return attrgetter(self.qkv)(self.attention_of(block))

    def projection_of(self, block: nn.Module) -> nn.Module:
        return attrgetter(self.projection)(self.attention_of(block))

    def block_index(self, name: str) -> int | None:
        """Index of the block that the encoder's module of this name is or lies in, None for one outside them."""
        match = re.match(rf"{re.escape(self.blocks)}\.(\d+)(\.|$)", name)
        return None if match is None else int(match[1])


def _imported(path: str) -> Any:
    """`module:name`, imported now: a model's module costs seconds, and a description of it should not."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
