"""The command `hf-sam-adapt estimate`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..config.recipe import Recipe
from ..estimate.estimate import Estimate, estimate
from ..files import write_json
from ..reporting.report import size_text
from .arguments import EstimateArguments


CARDS = (8, 12, 24, 40, 80)  # gigabytes


def estimate_command(args: EstimateArguments) -> None:
    """Print what the recipe will need."""
    keys = {field.name: getattr(args, field.name) for field in dataclasses.fields(Recipe)}
    estimated = estimate(Recipe(**keys))
    for name, value in rows_of(estimated):
        print(f"{name:<30} {value}")
    if args.json is not None:
        write_json(Path(args.json), dataclasses.asdict(estimated))


def rows_of(estimated: Estimate) -> list[tuple[str, str]]:
    """The lines of the table."""
    smallest = next((f"{card} GB" for card in CARDS if estimated.card_bytes <= card * 1e9), "more than 80 GB")
    source = "counted from shapes" if estimated.device == "cpu" else "measured on this GPU"
    hours, minutes = divmod(round(estimated.step_seconds * estimated.steps / 60), 60)
    tiles = [] if estimated.tiles is None else [("tiles of an epoch", f"{estimated.tiles:,}")]
    return [
        ("trained parameters", f"{estimated.trained_parameters:,} of {estimated.total_parameters:,}"),
        ("adapter file", size_text(estimated.adapter_bytes)),
        ("model weights", size_text(estimated.weight_bytes)),
        (f"peak memory, {estimated.device}", size_text(estimated.peak_memory_bytes)),
        ("smallest GPU", f"{smallest} ({size_text(estimated.card_bytes)}, {source})"),
        ("optimizer step", f"{estimated.step_seconds:.3g} s on this {estimated.device}"),
        *tiles,
        ("whole training", f"{estimated.steps:,} steps, {hours} h {minutes:02d} min, validations apart"),
    ]
