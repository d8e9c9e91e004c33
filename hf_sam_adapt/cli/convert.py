"""`hf-sam-adapt convert`."""

from __future__ import annotations

from ..convert.checkpoints import convert_official_checkpoint
from ..errors import UserError, require_extra
from .arguments import DATA_FORMATS, OF_CHECKPOINTS, OF_DATA, OF_VOLUMES, ConvertArguments


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
    unfit: tuple[str, ...] = (*OF_CHECKPOINTS, "decoder") if of_data else (*OF_DATA, "layout")
    unfit += ("images", "encoding") if args.format == "volumes" else OF_VOLUMES
    unfit += ("images", "encoding", "classes", "layout") if args.format == "folder" else ()
    unset = ConvertArguments()
    for name in unfit:
        if getattr(args, name) != getattr(unset, name):
            raise UserError(f"not for --from {args.format}", key=name, fix="leave it out")
    if of_data:
        _convert_data(args)
        return
    done = convert_official_checkpoint(
        str(args.format),
        str(args.source),
        str(args.out),
        decoder="none" if args.decoder == "none" else None,
        classes=args.classes,
        **{name: getattr(args, name) for name in OF_CHECKPOINTS},
    )
    for note in done.notes:
        print(note)
    print(f"Saved to {done.folder}.")


def _convert_data(args: ConvertArguments) -> None:
    from ..convert.annotations import convert_annotations

    require_extra("train", f"convert --from {args.format}")
    notes = convert_annotations(
        str(args.format),
        str(args.source),
        args.out,
        classes=args.classes,
        layout=args.layout,
        slices={name: getattr(args, name) for name in OF_VOLUMES},
        **{name: getattr(args, name) for name in OF_DATA},
    )
    for note in notes:
        print(note)
    if args.out is not None:
        print(f"Saved to {args.out}.")
