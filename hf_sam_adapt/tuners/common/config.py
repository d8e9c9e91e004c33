"""The fields that every config of this package has."""

from dataclasses import dataclass, field
from typing import ClassVar

from ...errors import UserError
from ...names import read_id2label
from ...sam.base_names import located, stored


DECODERS = ("frozen", "full", "class_wise", "hq")


@dataclass
class SamConfigMixin:
    """Decoder, input size and loading behaviour, common to all methods; a base class beside a `PeftConfig`.

    Args:
        decoder: which mask decoder the adapter brings along. `"full"` (default): the decoder parameters that a loss on
            mask token 0 reaches are part of the adapter, 3,506,304 of SAM's 4,058,340; the IoU head and the
            hyper-network MLPs 1-3 stay the base model's. `"frozen"`: the base model's decoder. `"class_wise"`: the
            parameters of `"full"` and a head for `num_labels` classes; `pred_masks` are (B, P, K, h, w). `"hq"`:
            HQ-SAM's branch beside the base model's decoder, 1,071,104 parameters for ViT-B; `pred_masks` are
            (B, P, 1, h, w). A model without SAM's mask decoder resolves None to `"frozen"`.
        early_layer: the block whose output an `"hq"` decoder sees beside the image embedding; None: the first global
            one. Checkpoints of CoSAM's code have 0.
        num_labels: K, background included, for `decoder="class_wise"`; None is binary.
        id2label: names of all classes: a mapping, or a list in their order.
        train_iou_head: the IoU head is part of the adapter, too, and trained as SAM was (SAM, appendix A): by the
            squared error of its estimate to the mask's IoU. Without it SAM's own head rates masks that it never saw.
        train_no_mask_embed: SAM's `no_mask_embed`, which stands for "no mask prompt", is part of the adapter.
        faithful: reproduce the official computation with its mistakes, for converted checkpoints and parity tests. The
            whole decoder and `no_mask_embed` are trained then, so DDP needs `find_unused_parameters=True`.
        init_weights: True leaves the base model's output unchanged at the start (an `"hq"` decoder starts near it),
            False draws random weights, `"paper"` initialises as the publication does.
        num_mask_tokens: None: SAM's four. 1, with a `"full"` decoder: pruned to mask token 0, so it returns one mask
            whatever the caller's `multimask_output`, and before any training not SAM's own. N, with a
            `"class_wise"` one: N queries, each with a class, in place of CWSAM's head; trained per pixel
            like it, no query is matched to an object.
        image_size: side of the network input in pixels; None keeps the base model's. Another multiple of the patch
            size resizes the base model at injection.
        global_attention: every block of the encoder attends to the whole image, without SAM's windows, as in CoSAM's
            code; the base model is changed at injection.
        in_channels: channels of the images; None keeps the base model's three. Another number inflates its patch
            embedding at injection.
        train_patch_embed: the patch embedding is trained, as part of the adapter.
        multimask_output: what a `SamModel` with the adapter active returns when the caller names nothing. False = mask
            token 0, the one that is trained and evaluated.
        strict_load: False leaves missing and unexpected keys of an adapter file to PEFT's warning.
        base_fingerprint: shape and 64 values of the base model, written at injection and compared on loading.
    """

    decoder: str | None = field(
        default=None,
        metadata={
            "help": f"The mask decoder in the adapter, one of {', '.join(DECODERS)}; null: the method's default."
        },
    )
    early_layer: int | None = field(
        default=None, metadata={"help": "Block that an 'hq' decoder sees; null: the first global one."}
    )
    train_iou_head: bool = field(default=False, metadata={"help": "Train SAM's IoU head as part of the adapter."})
    train_no_mask_embed: bool = field(
        default=False, metadata={"help": "Train SAM's no_mask_embed as part of the adapter."}
    )
    faithful: bool = field(
        default=False, metadata={"help": "Reproduce the official computation, its mistakes included."}
    )
    init_weights: bool | str = field(
        default=True, metadata={"help": "True: output unchanged at the start; False: random; 'paper': as published."}
    )
    num_labels: int | None = field(
        default=None, metadata={"help": "Classes of a 'class_wise' decoder, background included; null: binary."}
    )
    id2label: dict[int, str] | None = field(default=None, metadata={"help": "Names of the classes."})
    num_mask_tokens: int | None = field(
        default=None,
        metadata={"help": "null: SAM's four; 1: a 'full' decoder pruned to the first; N: queries of 'class_wise'."},
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Side of the network input in pixels; None: the base model's."}
    )
    global_attention: bool = field(
        default=False, metadata={"help": "No attention windows in the encoder's blocks, as in CoSAM's code."}
    )
    in_channels: int | None = field(default=None, metadata={"help": "Channels of the images; null: the base's three."})
    train_patch_embed: bool = field(
        default=False, metadata={"help": "Train the patch embedding as part of the adapter."}
    )
    multimask_output: bool = field(
        default=False, metadata={"help": "What SamModel returns when the caller names nothing: False = mask token 0."}
    )
    strict_load: bool = field(
        default=True, metadata={"help": "Missing or unexpected keys of an adapter file are an error."}
    )
    base_fingerprint: dict | None = field(
        default=None, metadata={"help": "Identity of the base model, written at injection."}
    )

    default_decoder: ClassVar[str] = "full"
    target_parameters: ClassVar[None] = None  # read by PEFT's check_target_module_exists

    def __post_init__(self):
        super().__post_init__()
        self.fingerprint_is_from_file = self.base_fingerprint is not None
        if self.decoder is not None and self.decoder not in DECODERS:
            raise UserError(f"decoder={self.decoder!r} is unknown", fix=f"use one of {', '.join(DECODERS)}")
        if self.num_mask_tokens is not None and self.num_mask_tokens < 1:
            raise UserError(f"num_mask_tokens={self.num_mask_tokens!r}: use null (SAM's four) or a positive number")
        if self.in_channels is not None and self.in_channels < 1:
            raise UserError(f"in_channels={self.in_channels!r} must be a positive number or null")
        if self.num_labels is not None and self.num_labels < 2:
            raise UserError(f"num_labels={self.num_labels!r}: use null (binary) or at least 2, background included")
        self.base_model_name_or_path = located(self.base_model_name_or_path)
        self.id2label = read_id2label(self.id2label)  # JSON has text keys
        if self.init_weights not in (True, False, "paper") or not isinstance(self.init_weights, (bool, str)):
            raise UserError(f"init_weights={self.init_weights!r} is unknown", fix="use true, false or 'paper'")
        if self.image_size is not None and (not isinstance(self.image_size, int) or self.image_size <= 0):
            raise UserError(f"image_size={self.image_size!r} must be a positive number of pixels or null")

    def to_dict(self) -> dict:
        """The config as plain JSON: sets become sorted lists."""
        plain = super().to_dict()
        plain["base_model_name_or_path"] = stored(plain["base_model_name_or_path"])
        return {key: sorted(value) if isinstance(value, set) else value for key, value in plain.items()}
