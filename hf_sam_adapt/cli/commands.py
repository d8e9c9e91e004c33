"""The command `hf-sam-adapt`: each sub-command parses its arguments and calls one function of the package."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ..config.arguments import option, parse_arguments
from ..config.paths import FILE
from ..config.recipe import Recipe
from ..errors import UserError, exit_status


PROG = "hf-sam-adapt"


@dataclass
class ExportTinyArguments:
    """Arguments of `export-tiny`."""

    folder: str | None = option(None, "Folder to create.", path=FILE)


def main(argv: list[str] | None = None) -> int:
    """Run one sub-command.

    Args:
        argv: arguments without the program's name, `sys.argv[1:]` when None.

    Returns:
        Exit status: 0, 1 if `doctor` found an error or `predict` an unreadable image, 2 after bad input (one line on
        stderr), 130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    return exit_status(lambda: _run(argv[0], argv[1:]))


@dataclass(frozen=True)
class Command:
    """A sub-command; what it needs is imported when it is called.

    Attributes:
        summary: a line of `hf-sam-adapt --help`.
        arguments, function: `module:name` of its dataclass and of what is called with one.
        description: of its own help; unset = the summary.
        positional: field that takes the arguments without a flag.
        reads_recipe: its `--config` may be a run's recipe, of which it takes the keys that it knows.
        extra: of the package that `function` needs.
    """

    summary: str
    arguments: str
    function: str
    description: str | None = None
    positional: str | None = None
    reads_recipe: bool = False
    extra: str | None = None

    def __call__(self, name: str, argv: list[str]) -> object:
        args = parse_arguments(
            _imported(self.arguments),
            argv,
            prog=f"{PROG} {name}",
            description=self.description or self.summary,
            positional=self.positional,
            also_in_config=Recipe if self.reads_recipe else None,
        )
        try:
            function = _imported(self.function)
        except ModuleNotFoundError as error:
            if self.extra is None:
                raise
            raise UserError(
                f"the package {error.name} is not installed",
                where=name,
                fix=f"run pip install 'hf-sam-adapt[{self.extra}]'",
            ) from None
        return function(args)


def _imported(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module, __package__), name)


def export_tiny_command(args: ExportTinyArguments) -> None:
    """Write the embedded model as an ordinary model folder."""
    if args.folder is None:
        raise UserError("export-tiny needs the folder to create")
    from ..sam.tiny import export_tiny

    export_tiny(args.folder)
    print(f"Saved to {args.folder}.")


_COMMANDS = {
    "train": Command(
        "Train by a recipe.",
        "..config.recipe:Recipe",
        "..training:train",
        description="Adapt SAM to a folder of images and masks.",
    ),
    "continual": Command(
        "Learn one domain after the other.",
        "..config.continual_recipe:ContinualRecipe",
        "..continual.run:continual",
        description="Adapt SAM to one domain after the other, and score all of them.",
    ),
    "evaluate": Command(
        "Measure an adapter beside zero-shot SAM.",
        ".evaluate:EvaluateArguments",
        ".evaluate:evaluate_command",
        description="Measure an adapter, and zero-shot SAM beside it, on the test images of a data set.",
        positional="adapter",
        reads_recipe=True,
    ),
    "predict": Command(
        "Segment images.",
        ".predict:PredictArguments",
        ".predict:predict_command",
        description="Segment files, folders or globs: masks at original size, overlays, predictions.json.",
        positional="inputs",
        reads_recipe=True,
    ),
    "convert": Command(
        "Turn an official checkpoint into an adapter, or annotations into a data set.",
        ".convert:ConvertArguments",
        ".convert:convert_command",
        description="Turn a checkpoint of a method's official implementation into an adapter folder, or the "
        "annotations of labelme, COCO, YOLO or CVAT into a folder of images and masks.",
        positional="source",
    ),
    "estimate": Command(
        "Say what a recipe will need before it runs.",
        ".estimate:EstimateArguments",
        ".estimate:estimate_command",
        description="Parameters, peak memory and time of a training, by its recipe, its data and this machine.",
    ),
    "doctor": Command(
        "Find what is wrong with a data set.",
        ".doctor:DoctorArguments",
        ".doctor:doctor_command",
        description="Read all of a data set as a training would, and say what is wrong: a line for each finding, "
        "with its fix. Exit status 1 if one is an error.",
        positional="dataset",
        reads_recipe=True,
    ),
    "push": Command(
        "Publish a run, an adapter, a pool or a model folder on the Hub.",
        "..hub.push:PushArguments",
        "..hub.push:push_command",
        description="Publish a run, an adapter, a pool or a model folder on the Hub, in one commit.",
        positional="folder",
    ),
    "demo": Command(
        "Open a page to segment, route and adapt in the browser.",
        "..demo.settings:DemoArguments",
        "..demo.page:serve",
        description="Serve a page to segment, route and adapt in the browser, offline.",
        positional="adapters",
        extra="demo",
    ),
    "export-tiny": Command(
        "Write the embedded model as an ordinary model folder.",
        ".commands:ExportTinyArguments",
        ".commands:export_tiny_command",
        positional="folder",
    ),
}


def _run(name: str, argv: list[str]) -> object:
    if name not in _COMMANDS:
        raise UserError(f"unknown command '{name}'", fix=f"use one of {', '.join(_COMMANDS)}")
    if name == "convert":  # `from` is a keyword of Python, which no field can be named
        argv = [re.sub(r"^--from(?==|$)", "--format", token) for token in argv]
    return _COMMANDS[name](name, argv)


def _usage() -> str:
    commands = "\n".join(f"  {name:<13}{command.summary}" for name, command in _COMMANDS.items())
    return (
        f"usage: {PROG} COMMAND [--help] ...\n\nAdapt the Segment Anything Model to a domain.\n\ncommands:\n{commands}"
    )
