"""The form in which a family of SAMs is described."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..image_embeddings import ImageEmbeddings


if TYPE_CHECKING:
    from transformers import PreTrainedModel


MENDED = "_hf_sam_adapt_mended"
Runs = tuple[tuple[int, int], ...]  # images and the number of rows of each


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of an image encoder as it is now.

    Attributes:
        image_size: side of the square input in pixels.
        patch_size: side, in pixels, of a place in the map that the mask decoder takes.
        hidden_size: width of the blocks, of the first one where they differ.
        num_hidden_layers: number of blocks.
        output_channels: of the map that the mask decoder takes.
        global_blocks: indices of the blocks without windows.
        widths: of each block's input; the next block's is that of its output.
        grids: side of each block's input map in tokens.
    """

    image_size: int
    patch_size: int
    hidden_size: int
    num_hidden_layers: int
    output_channels: int
    global_blocks: tuple[int, ...]
    widths: tuple[int, ...]
    grids: tuple[int, ...]

    @property
    def grid(self) -> int:
        """Side of the map that the mask decoder takes."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class SamFamily:
    """Where the models of a family keep what is adapted, which input they take, and what their decoder needs.

    Attributes:
        title: what people call it.
        model_type: `config.model_type` of the whole model.
        encoder_type: that of its image encoder alone.
        also_types: those of checkpoints for videos out of which the model class loads its part.
        model_path: of transformers' class, `module:name`; imported when it is asked for.
        encoder, mask_decoder, prompt_encoder: names in the model.
        blocks, patch_embedding, neck: dotted paths in the encoder.
        encoder_config: dotted path, from the encoder, to the config of its blocks.
        attention: path in a block; `attention_linears` (queries, keys and values), `projection`: of its linears, from
            the attention.
        attention_path, sdpa_path: of the eager and the SDPA class of modules whose attention adds relative positions
            to the scores, as SAM does; None where there are none.
        patch_embedding_path: of the class of the patch embedding.
        windows_removable: whether every block can be given global attention.
        skips: number of maps, beside the encoder's output, that the decoder takes.
        keeps_early: the decoder takes the output of the first global block, too.
        embedding_parts: names of what computes them, and the output, behind the encoder; no method trains it.
        not_reached: matches the names of decoder parameters that no method trains: those that a loss on mask token 0
            does not reach, and `embedding_parts`.
        never_trained: parts of the model, beside `not_reached`, that no method trains by itself.
        refused_decoders: values of the `decoder` field that the family cannot have, each with the reason.
        processor: fields of `SamAdaptProcessor` for a checkpoint without a processor's file.
        shape: sizes of an encoder.
        size_step: of an encoder, what the side of its input has to be a multiple of, in pixels.
        embed: the encoder and pixel values (B, C, S, S) -> the input (B, g, g, C) of the first block.
        encode: the model and pixel values (B, C, S, S) -> what the decoder takes, with gradients.
        encode_from_block: the model, the input (B, g, g, C) of a block and its index -> the same; None where the
            decoder also takes what blocks before it return.
        decoder_inputs: embeddings, the image of each of R rows, int64 (R,), and the same as `Runs` -> the keywords of
            the model's forward.
        position_embedding: of an encoder, its absolute table, or None.
        position_tables: of an encoder, for a token grid of the given side: name, module, attribute and wanted length
            of each table that depends on the grid; `pos_embed` is the absolute one.
        set_image_size: writes another input size into the model's and the encoder's attributes and configs.
        also_prefixed: transformers' own `from_pretrained` of the class loses weights of those.
        video_part: the config of a checkpoint of `also_types` -> the keywords of `from_pretrained` that load the part.
        fault_hooks: of a model, hooks that take a fault of transformers off it, as an object with `remove`; None where
            nothing has to be mended.
        license: of the weights that the authors publish: the fields of a card on the Hub.
        citation: BibTeX.
    """

    title: str
    model_type: str
    encoder_type: str
    model_path: str
    blocks: str
    patch_embedding: str
    attention: str
    attention_linears: tuple[str, ...]
    projection: str
    patch_embedding_path: str
    not_reached: re.Pattern[str]
    never_trained: tuple[str, ...]
    processor: dict[str, Any]
    shape: Callable[[nn.Module], EncoderShape]
    size_step: Callable[[nn.Module], int]
    embed: Callable[[nn.Module, torch.Tensor], torch.Tensor]
    encode: Callable[[nn.Module, torch.Tensor], ImageEmbeddings]
    decoder_inputs: Callable[[ImageEmbeddings, torch.Tensor, Runs], dict[str, Any]]
    position_embedding: Callable[[nn.Module], nn.Parameter | None]
    set_image_size: Callable[[nn.Module, nn.Module, int], None]
    license: dict[str, str]
    citation: str
    encoder: str = "vision_encoder"
    mask_decoder: str = "mask_decoder"
    prompt_encoder: str = "prompt_encoder"
    neck: str = "neck"
    also_types: tuple[str, ...] = ()
    also_prefixed: bool = False
    encoder_config: str = "config"
    attention_path: str | None = None
    sdpa_path: str | None = None
    windows_removable: bool = False
    skips: int = 0
    keeps_early: bool = False
    embedding_parts: tuple[str, ...] = ()
    refused_decoders: Mapping[str, str] = field(default_factory=dict)
    encode_from_block: Callable[[nn.Module, torch.Tensor, int], ImageEmbeddings] | None = None
    position_tables: Callable[[nn.Module, int], Iterable[tuple[str, nn.Module, str, int]]] = lambda encoder, grid: ()
    video_part: Callable[[Any], dict[str, Any]] = lambda config: {}
    fault_hooks: Callable[[nn.Module], Any | None] = lambda model: None

    @property
    def class_name(self) -> str:
        """Name of transformers' class, which is not imported for it."""
        return self.model_path.rpartition(":")[2]

    @property
    def model_class(self) -> type[PreTrainedModel]:
        return _imported(self.model_path)

    @property
    def attention_class(self) -> type[nn.Module] | None:
        return None if self.attention_path is None else _imported(self.attention_path)

    @property
    def sdpa_class(self) -> type[nn.Module] | None:
        return None if self.sdpa_path is None else _imported(self.sdpa_path)

    @property
    def patch_embedding_class(self) -> type[nn.Module]:
        return _imported(self.patch_embedding_path)

    @property
    def model_types(self) -> tuple[str, str]:
        return self.model_type, self.encoder_type

    def mend(self, model: nn.Module, for_adapter: bool = False) -> None:
        """Take transformers' faults off a model, once.

        Args:
            model: of this family.
            for_adapter: what `unmend_after_adapter` undoes; else it is for as long as the model lives.
        """
        hooks, until_unload = getattr(model, MENDED, (None, for_adapter))
        hooks = self.fault_hooks(model) if hooks is None else hooks
        if hooks is not None:
            setattr(model, MENDED, (hooks, until_unload and for_adapter))

    def unmend_after_adapter(self, model: nn.Module) -> None:
        """Undo `mend(model, for_adapter=True)`."""
        hooks, for_adapter = getattr(model, MENDED, (None, False))
        if for_adapter:
            hooks.remove()
            delattr(model, MENDED)

    def reached_parameters(self, mask_decoder: nn.Module) -> list[str]:
        """Names of the decoder parameters that are trained: 3,506,304 values in SAM's decoder."""
        return [name for name, _ in mask_decoder.named_parameters() if not self.not_reached.match(name)]

    @property
    def attention_names(self) -> str:
        """Regular expression of the names, in the model, of the linears that queries, keys and values come from."""
        return self.linear_names(self.attention_linears)

    def linear_names(self, linears: tuple[str, ...]) -> str:
        """Regular expression of the names, in the model, of these linears of the attention."""
        names = "|".join(re.escape(f"{self.attention}.{linear}") for linear in linears)
        names = names if len(linears) == 1 else f"({names})"
        return rf"{self.encoder}\.{re.escape(self.blocks)}\.\d+\.{names}"

    @property
    def norm_names(self) -> str:
        """Regular expression of the names of the blocks' own norms in the model."""
        return rf"{self.encoder}\.{re.escape(self.blocks)}\.\d+\.layer_norm\d"

    @property
    def map_names(self) -> str:
        """Regular expression of the names of patch embedding and blocks in the model."""
        return rf"{self.encoder}\.({re.escape(self.patch_embedding)}|{re.escape(self.blocks)}\.\d+)"

    def targets(self, model_type: str, names: str) -> str:
        """Regular expression for PEFT's `target_modules`, in a model of this type wherever it lies.

        Args:
            model_type: the family's, or that of the encoder alone, which may be the encoder itself.
            names: as `map_names` and `linear_names` give them.
        """
        if model_type == self.model_type:
            return rf"(.*\.)?{names}"
        inside = names.removeprefix(rf"{self.encoder}\.")
        return rf"(.*\.)?({self.encoder}\.)?{inside}"

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

    def linears_of(self, block: nn.Module) -> tuple[nn.Module, ...]:
        """The linears that a block's queries, keys and values come from: one for all, or three."""
        return tuple(attrgetter(linear)(self.attention_of(block)) for linear in self.attention_linears)

    def config_of(self, encoder: nn.Module) -> Any:
        """The config of the encoder's blocks."""
        return attrgetter(self.encoder_config)(encoder)

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
