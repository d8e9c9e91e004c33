"""`hf-sam-adapt convert`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..config.arguments import option
from ..config.paths import FILE, MODEL
from ..convert.checkpoints import convert_official_checkpoint
from ..errors import UserError


DATA_FORMATS = ("labelme", "coco", "yolo", "cvat", "folder")
OF_CHECKPOINTS = ("base", "lora_alpha", "image_size", "domains", "classifier", "method_args")
OF_DATA = ("images", "push", "group_by", "encoding")


@dataclass
class ConvertArguments:
    """Arguments of `hf-sam-adapt convert`: of a checkpoint, or of the annotations of a data set."""

    source: str | None = option(
        None,
        "The official checkpoint (only its tensors are read), or the annotations: a folder, zip archive or file.",
        path=FILE,
    )
    format: (
        Literal["sam-adapter", "conv-lora", "cwsam", "cosam", "labelme", "coco", "yolo", "cvat", "folder"] | None
    ) = option(
        None,
        "What wrote it, also spelled --from: conv-lora is AutoGluon's model.ckpt or its folder, cosam also a folder; "
        "folder is the package's own images/ and masks/, to be pushed.",
    )
    out: str | None = option(None, "Folder to create for the adapter or the data set.", path=FILE)
    decoder: Literal["full", "none"] = option("full", "Convert the checkpoint's mask decoder, or leave it out.")
    base: str | None = option(
        None,
        "The SAM that was adapted: tiny, folder or Hub id; the frozen weights are compared with it.",
        path=MODEL,
    )
    lora_alpha: int | float | None = option(None, "Of conv-lora: scaling times r; unset = the official 32.")
    image_size: int | None = option(
        None, "Side of the input where neither the checkpoint nor a base tells; unset = 1024."
    )
    domains: list[str] | None = option(
        None, "Of a cosam folder: its domains in the order of their training; unset = CoSAM's."
    )
    classifier: str | None = option(
        None, "Of a cosam folder: the router's file in it, where several are of the last task."
    )
    method_args: dict | None = option(
        None,
        "Of a checkpoint: fields of the adapter's config that no tensor tells, e.g. --method_args.features embedding "
        "high; unset = as published.",
    )
    images: str | None = option(
        None, "Of annotations: folder of the images, where they are not beside them.", path=FILE
    )
    classes: list[str] | None = option(
        None,
        "Names of the classes 1, 2, ... (of a checkpoint also 0, 1, ...); unset = the annotations' order, or by name.",
    )
    layout: Literal["folder", "datasets"] = option(
        "folder", "Of annotations: images/ and masks/, or what datasets.load_from_disk reads."
    )
    push: str | None = option(None, "Of annotations: private data set of the Hub to publish them in, owner/name.")
    group_by: str | None = option(
        None, "Of annotations: regular expression; images whose match is equal stay in one split where they are drawn."
    )
    encoding: str | None = option(
        None, "Of annotations: encoding of texts that are not Unicode, such as gbk or shift_jis; unset = guessed."
    )


def convert_command(args: ConvertArguments) -> None:
    """Converts, and prints what was left out or compared.

    Raises:
        UserError: as `convert_official_checkpoint` and `convert_annotations`, and for what is not given, or does not
            fit the format.
    """
    needed = [("source", "the checkpoint's file or the annotations"), ("format", "--from")]
    if args.format not in DATA_FORMATS:
        needed.append(("out", "--out"))
    for name, flag in needed:
        if getattr(args, name) is None:
            raise UserError(f"convert needs {flag}, as in: hf-sam-adapt convert --from conv-lora CKPT --out DIR")
    of_data = args.format in DATA_FORMATS
    for name in OF_CHECKPOINTS if of_data else OF_DATA:
        if getattr(args, name) is not None:
            raise UserError(f"not for --from {args.format}", key=name, fix="leave it out")
    if of_data:
        _convert_data(args)
        return
    done = convert_official_checkpoint(
        str(args.format),
        str(args.source),
        str(args.out),
        lora_alpha=args.lora_alpha,
        decoder="none" if args.decoder == "none" else None,
        base=args.base,
        image_size=args.image_size,
        domains=args.domains,
        classifier=args.classifier,
        classes=args.classes,
        method_args=args.method_args,
    )
    for note in done.notes:
        print(note)
    print(f"Saved to {done.folder}.")


def _convert_data(args: ConvertArguments) -> None:
    from ..convert.annotations import convert_annotations

    notes = convert_annotations(
        str(args.format),
        str(args.source),
        args.out,
        images=args.images,
        classes=args.classes,
        layout=args.layout,
        push=args.push,
        group_by=args.group_by,
        encoding=args.encoding,
    )
    for note in notes:
        print(note)
    if args.out is not None:
        print(f"Saved to {args.out}. Next: hf-sam-adapt doctor {args.out} --config {args.out}/recipe.yaml")
