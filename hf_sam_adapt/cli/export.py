"""`hf-sam-adapt export`."""

from __future__ import annotations

from ..convert.export import Export, export
from ..errors import UserError
from ..reporting.report import size_text
from .arguments import ExportArguments


def export_command(args: ExportArguments) -> None:
    """Export, and print what was written and how it compares with PyTorch.

    Raises:
        UserError: as `export`, and for what is not given.
    """
    if args.run is None:
        raise UserError("export needs what to write: a run folder, an adapter, a pool, or a SAM")
    if args.output_dir is None:
        raise UserError("not given", key="output_dir", fix="name a folder to create")
    chosen = {key: value for key, value in vars(args).items() if key not in ("run", "output_dir")}
    print_export(export(args.run, args.output_dir, **chosen))


def print_export(done: Export) -> None:
    """Files, differences and scores."""
    print(f"{done.folder}: " + ", ".join(f"{name} {size_text(size)}" for name, size in done.files.items()))
    print(f"Beside PyTorch on {done.tested}:")
    for one in done.comparisons:
        scores = ""
        if one.iou is not None and one.exported_iou is not None:
            loss = one.iou - one.exported_iou
            scores = f"IoU {one.iou:.4f} in PyTorch, {one.exported_iou:.4f} exported (loss {loss:+.4f}), "
        print(
            f"  {one.kind:<6} {scores}largest difference {one.difference:.1e} (allowed {done.bound:.0e}), "
            f"{100 * one.pixels:.4f} % of the pixels differ"
        )
    if done.same_domain is not None:
        print(f"  {100 * done.same_domain:.0f} % of the images are sent to the same domain")
    for note in done.notes:
        print(note)
