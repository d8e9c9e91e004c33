"""What a card says of the base model: its link, its licence, and the code that loads it."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import ModelCard

from ...errors import UserError
from ...repository import HubName, find_file, is_local
from ...sam.families import SAM, SamFamily, family_of_type
from ...sam.tiny import TINY, tiny_folder


_LICENSE = ("license", "license_name", "license_link")


def on_hub(model: str) -> HubName | None:
    """The repository of a base model, with its revision; None for `tiny` and folders."""
    return None if model == TINY or is_local(model) else HubName.parse(model)


def base_link(model: str) -> str:
    """The base model in Markdown, linked where it is on the Hub."""
    if model == TINY:
        return "`tiny` (a small one that comes with hf_sam_adapt, trained on drawn images and photographs; not Meta's)"
    hub = on_hub(model)
    if hub is None:
        return f"`{Path(model).name}`"
    return f"[`{model}`](https://huggingface.co/{hub.id}{f'/tree/{hub.revision}' if hub.revision else ''})"


def base_code(model: str) -> tuple[list[str], str]:
    """Imports, and the expression that loads the base model."""
    if model == TINY:
        return [], "hf_sam_adapt.load_tiny_sam()[0]"
    hub = on_hub(model)
    revision = f', revision="{hub.revision}"' if hub and hub.revision else ""
    name = hub.id if hub else Path(model).name
    family = base_family(model)
    if family.also_prefixed:
        pinned = f"{name}@{hub.revision}" if hub and hub.revision else name
        return ["from hf_sam_adapt.inference.loading import load_base"], f'load_base("{pinned}")[0]'
    return [
        f"from transformers import {family.class_name}"
    ], f'{family.class_name}.from_pretrained("{name}"{revision})'


def base_family(model: str) -> SamFamily:
    """The family of a base model, by its config; SAM's where that cannot be read."""
    try:
        config = None if model == TINY else find_file(model, "config.json")
    except UserError:  # no folder, and no repository that can be read
        config = None
    if config is None:
        return SAM
    return family_of_type(json.loads(config.read_text(encoding="utf-8")).get("model_type"), model)


def local_base(model: str) -> str | None:
    """The name of a base model that only its owner has."""
    return None if model == TINY or on_hub(model) else Path(model).name


def base_license(model: str) -> dict[str, str]:
    """What the base model's card says of its licence; empty where there is no card or it says nothing.

    Args:
        model: `tiny`, a folder, or a Hub id.
    """
    try:
        card = tiny_folder() / "README.md" if model == TINY else find_file(model, "README.md")
    except UserError:  # no folder, and no repository that can be read
        return {}
    if card is None:
        return {}
    data = ModelCard.load(card, ignore_metadata_errors=True).data
    return {key: data[key] for key in _LICENSE if data.get(key)}


def license_sentence(model: str) -> str:
    """Under which licence the adapter is, if the base model says one."""
    found = base_license(model)
    named = found.get("license_name") or found.get("license")
    if named is None:
        family = base_family(model)
        published = family.license.get("license_name") or family.license["license"]
        return (
            "No licence is named: the base model's card could not be read or names none. The authors of "
            f"{family.title} publish its weights under `{published}`."
        )
    return f"`{named}`, the base model's."
