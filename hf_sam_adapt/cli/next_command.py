"""The command that is likely to follow another, as arguments of `hf-sam-adapt`, made of those of the other.

Words in capitals are for the user to fill in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ..config.arguments import from_file
from ..config.continual_recipe import ContinualRecipe
from ..config.recipe import Recipe
from .arguments import (
    DATA_FORMATS,
    ConvertArguments,
    DoctorArguments,
    EstimateArguments,
    EvaluateArguments,
    ExportTinyArguments,
    PredictArguments,
)


def after_train(args: Recipe) -> list[str]:
    return ["predict", "IMAGES", "--adapter", args.output_dir]


def after_continual(args: ContinualRecipe) -> list[str]:
    folder = Path(args.output_dir)
    adapter = folder / "pool" if (folder / "pool").is_dir() else max((folder / "tasks").iterdir())
    return ["predict", "IMAGES", "--adapter", str(adapter)]


def after_evaluate(args: EvaluateArguments) -> list[str]:
    named = (("adapter", args.adapter), ("model", args.model), ("domain", args.domain))
    return ["predict", "IMAGES"] + [word for key, value in named if value is not None for word in (f"--{key}", value)]


def after_predict(args: PredictArguments) -> list[str]:
    return ["demo"] + ([] if args.adapter is None else [args.adapter])


def after_convert(args: ConvertArguments) -> list[str]:
    if args.format == "sam-pth":
        return ["train", "--model", str(args.out), "--dataset", "DATASET"]
    if args.format not in DATA_FORMATS:
        return ["predict", "IMAGES", "--adapter", str(args.out)] + (["--model", "MODEL"] if args.base is None else [])
    if args.out is None:
        return ["train", "--dataset", str(args.push)]
    return ["doctor", args.out, "--config", str(Path(args.out) / "recipe.yaml")]


def after_export_tiny(args: ExportTinyArguments) -> list[str]:
    return ["train", "--model", str(args.folder), "--dataset", "DATASET"]


def to_train(args: DoctorArguments | EstimateArguments, config: str | None = None) -> list[str]:
    """A training with the same keys, as far as a recipe has them; of a `config`, the file and what differs."""
    words = ["train"] if config is None else ["train", "--config", config]
    usual = Recipe() if config is None else from_file(Recipe, config)
    for field in dataclasses.fields(Recipe):
        value = getattr(args, field.name, None)
        if value in (None, getattr(usual, field.name)):
            continue
        for key, single in value.items() if isinstance(value, dict) else [("", value)]:
            flag = f"--{field.name}.{key}" if key != "" else f"--{field.name}"
            words += [flag, *(map(str, single or ["none"]) if isinstance(single, list) else [str(single)])]
    return words


def config_of(argv: Sequence[str]) -> str | None:
    """The file that `--config` names among arguments."""
    for word, following in zip(argv, [*argv[1:], ""]):
        if word == "--config":
            return following
        if word.startswith("--config="):
            return word.partition("=")[2]
    return None
