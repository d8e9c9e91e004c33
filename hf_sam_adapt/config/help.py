"""What `--help` shows: an example, then every key by group, with the type it takes and its default."""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from .hints import members, takes_many
from .paths import FILE, NAME


# The keys of recipes and of the commands that share them; any other is listed first.
GROUPS: dict[str, Sequence[str]] = {
    "data": (
        "group_by mask_suffix mask_values mask_threshold label_map num_labels id2label palette channels normalization "
        "image_size resize augment tile overlap route tile_foreground slice_axis window neighbours"
    ).split(),
    "prompts": (
        "prompts prompt_weights box_jitter points_per_object correction_rounds box point clicks prompt_sensitivity"
    ).split(),
    "scores": "metrics beta2 ber_threshold ignore_background surface_tolerance".split(),
    "optimisation": (
        "max_steps gradient_accumulation_steps learning_rate learning_rates lr_scheduler lr_min warmup weight_decay "
        "max_grad_norm loss class_weights eval_every checkpoint_every early_stopping"
    ).split(),
    "speed and memory": (
        "precision gradient_checkpointing attention compile cache_embeddings num_workers processes"
    ).split(),
    "hub and trackers": "push_to_hub hub_model_id report_to".split(),
}
_METAVARS = {int: "INT", float: "FLOAT", bool: "BOOL", dict: "MAPPING"}


def help_parser(
    cls: type,
    prog: str | None,
    description: str | None,
    *,
    positional: str | None = None,
    examples: Sequence[str] = (),
    groups: Mapping[str, Sequence[str]] = GROUPS,
) -> argparse.ArgumentParser:
    """A parser that prints the help of the dataclass `cls`; arguments are read by `parse_arguments`."""
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    inputs = "" if positional is None else f" [{positional.upper()}{' ...' if takes_many(hints[positional]) else ''}]"
    about = textwrap.fill(description or "", 79)
    if examples:
        about = "\n  ".join([f"{about}\n\nfor example:", *examples])
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"%(prog)s{inputs} [--config FILE] [--KEY VALUE ...]",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    grouped = {name for names in groups.values() for name in names}
    everyday = parser.add_argument_group("everyday")
    everyday.add_argument("-h", "--help", action="help", help="Show this.")
    everyday.add_argument("--config", metavar="PATH", help="YAML file with any of these keys; flags win over it.")
    others = sorted((name for name in fields if name not in grouped), key=lambda name: name != positional)
    for title, names in {"everyday": others, **groups}.items():
        chosen = [fields[name] for name in names if name in fields]
        group = everyday if title == "everyday" or not chosen else parser.add_argument_group(title)
        for field in chosen:
            _add(group, field, hints[field.name], is_flag=field.name != positional)
    return parser


def _add(group: Any, field: dataclasses.Field, hint: Any, is_flag: bool) -> None:
    default = field.default_factory() if callable(field.default_factory) else field.default
    shown = "unset" if default is None or default is dataclasses.MISSING else default
    if isinstance(default, list):
        shown = " ".join(map(str, default)) or "none"
    choices = [str(choice) for kind in _items(hint) for choice in typing.get_args(kind) if _is_choice(kind)]
    if choices and bool in _items(hint):
        choices = ["true", "false", *choices]
    accepted = f"one of {', '.join(choices)}; " if choices else ""
    many = takes_many(hint)
    flag = field.metadata.get("flag") or field.name
    group.add_argument(
        f"--{flag}" if is_flag else field.name,
        metavar=_metavar(field, hint) if is_flag else field.name.upper(),
        help=f"{field.metadata['help']} ({accepted}default: {shown})".replace("%", "%%"),
        nargs="*" if many else None if is_flag else "?",
    )


def _items(hint: Any) -> list[Any]:
    """The alternatives of a type, of a list those of its items."""
    alternatives = (member for member in members(hint) if member is not type(None))
    return [
        item for kind in alternatives for item in (_items(typing.get_args(kind)[0]) if takes_many(kind) else [kind])
    ]


def _is_choice(hint: Any) -> bool:
    return typing.get_origin(hint) is Literal


def _metavar(field: dataclasses.Field, hint: Any) -> str:
    """A word for each kind of value, the same in every command."""
    path = field.metadata.get("path")
    text = {None: "TEXT", NAME: "TEXT", FILE: "PATH"}.get(path, "PATH_OR_ID")
    kinds = ((kind, typing.get_origin(kind) or kind) for kind in _items(hint))
    names = ("CHOICE" if _is_choice(kind) else text if plain is str else _METAVARS[plain] for kind, plain in kinds)
    return "|".join(dict.fromkeys(names))
