"""The command `hf-sam-adapt`: each sub-command parses its arguments and calls one function of the package."""

from __future__ import annotations

import os
import select
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from .. import __version__
from ..config.arguments import parse_arguments
from ..config.help import GROUPS
from ..config.recipe import Recipe
from ..errors import UserError, exit_status, require_extra
from . import next_command
from .arguments import OF_CHECKPOINTS, OF_DATA, OF_INSTANCES, OF_RESULTS, OF_VOLUMES
from .quiet import quiet_libraries


PROG = "hf-sam-adapt"
BROKEN_PIPE = 141  # what a shell reports of a program whose reader has gone


def main(argv: list[str] | None = None) -> int:
    """Run one sub-command.

    Args:
        argv: arguments without the program's name, `sys.argv[1:]` when None.

    Returns:
        Exit status: 0, 1 if `doctor` found an error or `predict` an unreadable image, 2 after bad input (one line on
        stderr), 130 after Ctrl-C, 141 where the reader of a pipe has gone.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        try:
            return _main(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still flushes at exit
        return BROKEN_PIPE


def _reader_has_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"{PROG} {__version__}")
        return 0
    return exit_status(lambda: _run(argv[0], argv[1:]))


@dataclass(frozen=True)
class Command:
    """A sub-command; what it needs is imported when it is called.

    Attributes:
        summary: a line of `hf-sam-adapt --help`.
        examples: arguments that its own help begins with.
        arguments, function: `module:name` of its dataclass and of what is called with one.
        description: of its own help; unset = the summary.
        positional: field that takes the arguments without a flag.
        reads_recipe: its `--config` may be a run's recipe, of which it takes the keys that it knows.
        extra: of the package, without which it does nothing.
        groups: headings of its help.
        next: its arguments -> the command to type after it.
    """

    summary: str
    examples: tuple[str, ...]
    arguments: str
    function: str
    description: str | None = None
    positional: str | None = None
    reads_recipe: bool = False
    extra: str | None = None
    groups: Mapping[str, Sequence[str]] | None = None
    next: Callable[[Any], list[str]] | None = None

    def __call__(self, name: str, argv: list[str]) -> object:
        args = self.parse(name, argv)
        if self.extra is not None:
            require_extra(self.extra, name)
        quiet_libraries()
        result = imported(self.function)(args)
        if self.next is not None and (not isinstance(result, int) or result == 0) and _is_main_process():
            config = next_command.config_of(argv) if self.next is next_command.to_train else None
            words = self.next(args) if config is None else next_command.to_train(args, config)
            print(f"Next: {PROG} {shlex.join(words)}")
        return result

    def parse(self, name: str, argv: list[str]) -> Any:
        """The dataclass of the arguments."""
        return parse_arguments(
            imported(self.arguments),
            argv,
            prog=f"{PROG} {name}",
            description=self.description or self.summary,
            positional=self.positional,
            also_in_config=Recipe if self.reads_recipe else None,
            examples=[f"{PROG} {name} {example}" for example in self.examples],
            groups=self.groups or GROUPS,
        )


def imported(place: str) -> Any:
    """What `module:name` is, the module as seen from this package."""
    module, _, name = place.partition(":")
    return getattr(import_module(module, __package__), name)


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def export_tiny_command(args: Any) -> None:
    """Write the embedded model as an ordinary model folder."""
    if args.folder is None:
        raise UserError("export-tiny needs the folder to create")
    from ..sam.tiny import export_tiny

    export_tiny(args.folder)
    print(f"Saved to {args.folder}.")


COMMANDS = {
    "train": Command(
        "Train by a recipe.",
        ("--dataset my_polyps --method conv_lora --output_dir runs/polyps",),
        "..config.recipe:Recipe",
        "..training:train",
        description="Adapt SAM to a folder of images and masks.",
        extra="train",
        next=next_command.after_train,
    ),
    "continual": Command(
        "Learn one domain after the other.",
        ("--domains synthetic:polyp synthetic:shadow --epochs 2 --output_dir runs/two",),
        "..config.continual_recipe:ContinualRecipe",
        "..continual.run:continual",
        description="Adapt SAM to one domain after the other, and score all of them.",
        extra="train",
        next=next_command.after_continual,
    ),
    "evaluate": Command(
        "Measure an adapter beside zero-shot SAM.",
        ("runs/polyps --prompts none box",),
        ".arguments:EvaluateArguments",
        ".evaluate:evaluate_command",
        description="Measure an adapter, and zero-shot SAM beside it, on the test images of a data set.",
        positional="adapter",
        reads_recipe=True,
        extra="train",
        next=next_command.after_evaluate,
    ),
    "predict": Command(
        "Segment images.",
        ("photos/*.jpg --adapter runs/polyps --output_dir masks",),
        ".arguments:PredictArguments",
        ".predict:predict_command",
        description="Segment files, folders or globs: masks at original size, overlays, predictions.json.",
        positional="inputs",
        reads_recipe=True,
        groups={**GROUPS, "results": OF_RESULTS, "instances": OF_INSTANCES},
        next=next_command.after_predict,
    ),
    "convert": Command(
        "Turn an official checkpoint into an adapter, or annotations into a data set.",
        (
            "--from labelme photos --out my_polyps",
            "--from conv-lora model.ckpt --out adapter --base facebook/sam-vit-huge",
        ),
        ".arguments:ConvertArguments",
        ".convert:convert_command",
        description="Turn a checkpoint of a method's official implementation into an adapter folder, or the "
        "annotations of labelme, COCO, YOLO, CVAT or GeoJSON into a folder of images and masks.",
        positional="source",
        groups={"of a checkpoint": (*OF_CHECKPOINTS, "decoder"), "of annotations": (*OF_DATA, "layout", *OF_VOLUMES)},
        next=next_command.after_convert,
    ),
    "estimate": Command(
        "Say what a recipe will need before it runs.",
        ("--dataset my_polyps --method conv_lora --preset 8gb",),
        ".arguments:EstimateArguments",
        ".estimate:estimate_command",
        description="Parameters, peak memory and time of a training, by its recipe, its data and this machine.",
        extra="train",
        next=next_command.to_train,
    ),
    "doctor": Command(
        "Find what is wrong with a data set.",
        ("my_polyps --contact_sheet sheet.png",),
        ".arguments:DoctorArguments",
        ".doctor:doctor_command",
        description="Read all of a data set as a training would, and say what is wrong: a line for each cause, "
        "with its fix. Exit status 1 if one is an error.",
        positional="dataset",
        reads_recipe=True,
        extra="train",
        next=next_command.to_train,
    ),
    "push": Command(
        "Publish a run, an adapter, a pool or a model folder on the Hub.",
        ("runs/polyps --repo me/polyps",),
        ".arguments:PushArguments",
        ".push:push_command",
        description="Publish a run, an adapter, a pool or a model folder on the Hub, in one commit.",
        positional="folder",
    ),
    "demo": Command(
        "Open a page to segment, route and adapt in the browser.",
        ("runs/polyps runs/leaves",),
        "..demo.settings:DemoArguments",
        "..demo.page:serve",
        description="Serve a page to segment, route and adapt in the browser, offline.",
        positional="adapters",
        extra="demo",
    ),
    "export": Command(
        "Write a model for other programs: ONNX, torch.export, segment-anything, transformers.",
        ("runs/polyps --format onnx --output_dir polyps_onnx",),
        ".arguments:ExportArguments",
        ".export:export_command",
        description="Write a model for annotators and other programs, and run what was written beside PyTorch on the "
        "run's test images.",
        positional="run",
    ),
    "export-tiny": Command(
        "Write the embedded model as an ordinary model folder.",
        ("tiny_sam",),
        ".arguments:ExportTinyArguments",
        ".commands:export_tiny_command",
        positional="folder",
        next=next_command.after_export_tiny,
    ),
}


def _run(name: str, argv: list[str]) -> object:
    if name not in COMMANDS:
        raise UserError(f"unknown command '{name}'", fix=f"use one of {', '.join(COMMANDS)}")
    return COMMANDS[name](name, argv)


def _usage() -> str:
    commands = "\n".join(f"  {name:<13}{command.summary}" for name, command in COMMANDS.items())
    return f"""usage: {PROG} COMMAND [--help] ...
       {PROG} --version

Adapt the Segment Anything Model to a domain.

commands:
{commands}

example:
  {PROG} train --dataset synthetic:polyp --max_steps 60 --output_dir runs/first"""
