"""The command `hf-sam-adapt`: each sub-command parses its arguments and calls one function of the package."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from .arguments import parse_arguments
from .errors import UserError
from .recipe import Recipe, parse_recipe


PROG = "hf-sam-adapt"


@dataclass
class ExportTinyArguments:
    """Arguments of `export-tiny`."""

    folder: str | None = field(default=None, metadata={"help": "Folder to create."})


def main(argv: list[str] | None = None) -> int:
    """Run one sub-command.

    Args:
        argv: arguments without the program's name, `sys.argv[1:]` when None.

    Returns:
        Exit status: 0, 1 if `doctor` found an error, 2 after bad input (one line on stderr), 130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    return run_guarded(lambda: _run(argv[0], argv[1:]))


def run_guarded(action: Callable[[], object]) -> int:
    """Exit status of `action`, its `UserError` printed as one line; `recipes/train.py` ends the same way.

    An action that returns a number sets the status itself.
    """
    try:
        result = action()
    except UserError as error:
        # One that a DataLoader's worker raised arrives with the worker's traceback before its message.
        message = str(error).rsplit("UserError: ", 1)[-1]
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return result if isinstance(result, int) else 0


def train_command(argv: list[str]) -> None:
    """Train by a recipe."""
    recipe = parse_recipe(argv, prog=f"{PROG} train")
    from .training import train

    train(recipe)


def continual_command(argv: list[str]) -> None:
    """Learn one domain after the other."""
    from .continual.recipe import parse_continual_recipe

    recipe = parse_continual_recipe(argv, prog=f"{PROG} continual")
    from .continual.run import continual

    continual(recipe)


def evaluate_command(argv: list[str]) -> None:
    """Measure an adapter beside zero-shot SAM."""
    from .evaluation import EvaluateArguments, evaluate_command

    evaluate_command(
        parse_arguments(
            EvaluateArguments,
            argv,
            prog=f"{PROG} evaluate",
            description="Measure an adapter, and zero-shot SAM beside it, on the test images of a data set.",
            positional="adapter",
            also_in_config=Recipe,
        )
    )


def predict_command(argv: list[str]) -> None:
    """Segment images."""
    from .predict import PredictArguments, predict_command

    predict_command(
        parse_arguments(
            PredictArguments,
            argv,
            prog=f"{PROG} predict",
            description="Segment files, folders or globs: masks at original size, overlays, predictions.json.",
            positional="inputs",
            also_in_config=Recipe,
        )
    )


def doctor_command(argv: list[str]) -> int:
    """Find what is wrong with a data set."""
    from .doctor.command import DoctorArguments, doctor_command

    return doctor_command(
        parse_arguments(
            DoctorArguments,
            argv,
            prog=f"{PROG} doctor",
            description="Read all of a data set as a training would, and say what is wrong: a line for each finding, "
            "with its mend. Exit status 1 if one is an error.",
            positional="dataset",
            also_in_config=Recipe,
        )
    )


def estimate_command(argv: list[str]) -> None:
    """Say what a recipe will need before it runs."""
    from .estimate.command import EstimateArguments, estimate_command

    estimate_command(
        parse_arguments(
            EstimateArguments,
            argv,
            prog=f"{PROG} estimate",
            description="Parameters, peak memory and time of a training, by its recipe, its data and this machine.",
        )
    )


def export_tiny_command(argv: list[str]) -> None:
    """Write the embedded model as an ordinary model folder."""
    args = parse_arguments(
        ExportTinyArguments,
        argv,
        prog=f"{PROG} export-tiny",
        description="Write the embedded model `tiny` as an ordinary model folder.",
        positional="folder",
    )
    if args.folder is None:
        raise UserError("export-tiny needs the folder to create.")
    from .tiny import export_tiny

    export_tiny(args.folder)
    print(f"Saved to {args.folder}.")


def convert_command(argv: list[str]) -> None:
    """Turn an official checkpoint into an adapter, or annotations into a data set."""
    from .convert.command import ConvertArguments, convert_command

    # `from` is a keyword of Python, which no field can be named.
    argv = [re.sub(r"^--from(?==|$)", "--format", token) for token in argv]
    convert_command(
        parse_arguments(
            ConvertArguments,
            argv,
            prog=f"{PROG} convert",
            description="Turn a checkpoint of a method's official implementation into an adapter folder, or the "
            "annotations of labelme, COCO, YOLO or CVAT into a folder of images and masks.",
            positional="source",
        )
    )


def push_command(argv: list[str]) -> None:
    """Publish a run, an adapter, a pool or a model folder on the Hub."""
    from .hub import PushArguments, push_command

    push_command(
        parse_arguments(
            PushArguments,
            argv,
            prog=f"{PROG} push",
            description="Publish a run, an adapter, a pool or a model folder on the Hub, in one commit.",
            positional="folder",
        )
    )


def demo_command(argv: list[str]) -> None:
    """Open a page to segment, route and adapt in the browser."""
    from .demo.settings import DemoArguments

    args = parse_arguments(
        DemoArguments,
        argv,
        prog=f"{PROG} demo",
        description="Serve a page to segment, route and adapt in the browser, offline.",
        positional="adapters",
    )
    try:
        from .demo.page import serve
    except ModuleNotFoundError as error:
        raise UserError(
            f"demo: the package {error.name} is not installed; run pip install 'hf-sam-adapt[demo]'"
        ) from None
    serve(args)


_COMMANDS = {
    "train": train_command,
    "continual": continual_command,
    "evaluate": evaluate_command,
    "predict": predict_command,
    "convert": convert_command,
    "estimate": estimate_command,
    "doctor": doctor_command,
    "push": push_command,
    "demo": demo_command,
    "export-tiny": export_tiny_command,
}


def _run(name: str, argv: list[str]) -> object:
    if name not in _COMMANDS:
        raise UserError(f"unknown command '{name}'; use one of {', '.join(_COMMANDS)}.")
    return _COMMANDS[name](argv)


def _usage() -> str:
    commands = "\n".join(f"  {name:<13}{command.__doc__}" for name, command in _COMMANDS.items())
    return (
        f"usage: {PROG} COMMAND [--help] ...\n\nAdapt the Segment Anything Model to a domain.\n\ncommands:\n{commands}"
    )


if __name__ == "__main__":
    sys.exit(main())
