"""`hf-sam-adapt convert`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import UserError
from . import convert_official_checkpoint


def _key(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class ConvertArguments:
    """Arguments of `hf-sam-adapt convert`."""

    checkpoint: str | None = _key(None, "The official checkpoint; only its tensors are read.")
    format: Literal["sam-adapter", "conv-lora", "cwsam", "cosam"] | None = _key(
        None,
        "What wrote the checkpoint, also spelled --from: conv-lora is AutoGluon's model.ckpt, cosam also a folder.",
    )
    out: str | None = _key(None, "Folder to create for the adapter.")
    decoder: Literal["full", "none"] = _key("full", "Convert the checkpoint's mask decoder, or leave it out.")
    base: str | None = _key(
        None, "The SAM that was adapted: tiny, folder or Hub id; the frozen weights are compared with it."
    )
    lora_alpha: int | float | None = _key(None, "Of conv-lora: scaling times r; unset = the official 32.")
    image_size: int | None = _key(
        None, "Side of the input where neither the checkpoint nor a base tells; unset = 1024."
    )
    domains: list[str] | None = _key(
        None, "Of a cosam folder: its domains in the order of their training; unset = CoSAM's."
    )


def convert_command(args: ConvertArguments) -> None:
    """Converts, and prints what was left out or compared.

    Raises:
        UserError: as `convert_official_checkpoint`, and for what is not given.
    """
    for name, flag in (("checkpoint", "the checkpoint's file"), ("format", "--from"), ("out", "--out")):
        if getattr(args, name) is None:
            raise UserError(f"convert needs {flag}, as in: hf-sam-adapt convert --from conv-lora CKPT --out DIR")
    done = convert_official_checkpoint(
        str(args.format),
        str(args.checkpoint),
        str(args.out),
        lora_alpha=args.lora_alpha,
        decoder="none" if args.decoder == "none" else None,
        base=args.base,
        image_size=args.image_size,
        domains=args.domains,
    )
    for note in done.notes:
        print(note)
    print(f"Saved to {done.folder}.")
