"""The command `hf-sam-adapt estimate`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..config.recipe import Recipe
from ..estimate.estimate import Estimate, estimate
from ..reporting.report import size_text, write_json
from .arguments import EstimateArguments


CARDS = (8, 12, 24, 40, 80)  # gigabytes


def estimate_command(args: EstimateArguments) -> None:
    """Print what the recipe will need."""
    keys = {field.name: getattr(args, field.name) for field in dataclasses.fields(Recipe)}
    found = estimate(Recipe(**keys))
    for name, value in rows_of(found):
        print(f"{name:<30} {value}")
    if args.json is not None:
        write_json(Path(args.json), dataclasses.asdict(found))


def rows_of(found: Estimate) -> list[tuple[str, str]]:
    """The lines of the table."""
    smallest = next((f"{card} GB" for card in CARDS if found.card_bytes <= card * 1e9), "more than 80 GB")
    source = "counted from shapes" if found.device == "cpu" else "measured on this GPU"
    hours, minutes = divmod(round(found.step_seconds * found.steps / 60), 60)
    tiles = [] if found.tiles is None else [("tiles of an epoch", f"{found.tiles:,}")]
    return [
        ("trained parameters", f"{found.trained_parameters:,} of {found.total_parameters:,}"),
        ("adapter file", size_text(found.adapter_bytes)),
        ("model weights", size_text(found.weight_bytes)),
        (f"peak memory, {found.device}", size_text(found.peak_memory_bytes)),
        ("smallest GPU", f"{smallest} ({size_text(found.card_bytes)}, {source})"),
        ("optimizer step", f"{found.step_seconds:.3g} s on this {found.device}"),
        *tiles,
        ("whole training", f"{found.steps:,} steps, {hours} h {minutes:02d} min, validations apart"),
    ]
