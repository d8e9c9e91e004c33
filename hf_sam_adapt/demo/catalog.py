"""The adapters that the page offers: those that come with the package, and those named at the start."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from ..config.methods import METHODS
from ..data.walk import files_below, is_leftover
from ..errors import UserError
from ..inference.loading import ADAPTER_CONFIG
from ..reporting.report import size_text
from ..repository import HubName


PLAIN = ""  # the value that stands for plain SAM
_TITLES = {
    "radar-fields": "Bright fields in radar",
    "land-cover": "Land cover, five classes",
    "three-domains": "Radar, polyps, shadows",
}
_GENERIC = ("pool", "adapter", "run", "best", "final", "output", "model")  # names that need their folder's
_METHODS = {name.upper(): method.name for name, method in METHODS.items()} | {"SAM_DECODER": METHODS["decoder"].name}


@dataclass(frozen=True)
class Choice:
    """One entry of the list.

    Attributes:
        label: what the page shows.
        value: what names it: its own name if it comes with the package, else folder or Hub id; `PLAIN` for plain SAM.
        source: folder or Hub id to load.
        pool: whether it is known to be a pool of domains.
    """

    label: str
    value: str
    source: str
    pool: bool = False

    @property
    def names(self) -> set[str]:
        """What it may be called by: its value, its label, the label without method and size, its last name."""
        return {self.value, self.label, self.label.split(" · ")[0], Path(self.value).name} - {""}


def built_in_folder() -> Path:
    """Where the adapters that come with the package are."""
    return Path(__file__).parent / "adapters"


def choices(adapters: list[str], model: str) -> list[Choice]:
    """What the page offers: plain SAM, what was named, what comes with the package.

    Args:
        adapters: run folders, pools, folders that hold such, or Hub ids.
        model: the plain SAM.

    Raises:
        UserError: a folder with nothing to load in it, a damaged one, or a path where there is none.
    """
    found = [Choice(f"Plain SAM, zero-shot ({model})", PLAIN, PLAIN)]
    for name in adapters:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            _check_hub_name(name)
            found.append(Choice(name, name, name))
            continue
        folders = (
            [folder] if _is_adapter(folder) else sorted(child for child in folder.iterdir() if _is_adapter(child))
        )
        if not folders:
            raise UserError(
                f"{name} holds neither an adapter nor folders of adapters", key="adapters", fix="name run folders"
            )
        found += [_describe(one) for one in folders]
    found += [_describe(folder) for folder in sorted(built_in_folder().iterdir()) if _is_adapter(folder)]
    labels = [choice.label for choice in found]
    return [
        replace(choice, label=f"{Path(choice.source).parent.name}/{choice.label}")
        if labels.count(choice.label) > 1 and Path(choice.source).is_dir()
        else choice
        for choice in found
    ]


def _check_hub_name(name: str) -> None:
    """Refuse what is no folder, but a path: with more parts than a Hub id, or below a folder that is there."""
    place = Path(name).expanduser()
    below = "@" not in name and len(place.parts) > 1 and Path(place.parts[0]).is_dir()
    if place.is_absolute() or name.startswith(".") or place.exists() or below:
        fix = "name a run folder" + (f", or a Hub id with its revision, {name}@main" if below else "")
        raise UserError(f"{name} is no folder", key="adapters", fix=fix)
    HubName.parse(name)


def _is_adapter(folder: Path) -> bool:
    if is_leftover(folder.name):
        return False
    return (folder / ADAPTER_CONFIG).is_file() or (folder / "config.json").is_file()


def _describe(folder: Path) -> Choice:
    files = files_below(folder, {".safetensors"})
    weights = [path for path in files if "checkpoints" not in path.relative_to(folder).parts]
    size = size_text(sum(path.stat().st_size for path in weights))
    own = folder.parent == built_in_folder()
    # A continual run's pool is in its folder `pool`, which says nothing.
    name = f"{folder.resolve().parent.name}/{folder.name}" if folder.name in _GENERIC else folder.name
    title = _TITLES.get(folder.name, folder.name) if own else name
    file = folder / ADAPTER_CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if not isinstance(config, dict):
            raise ValueError(f"a {type(config).__name__} in place of a mapping")
    except (OSError, ValueError) as error:
        raise UserError(f"not readable ({error})", where=file, fix="save the adapter again, or remove it") from error
    method = _METHODS.get(kind, kind) if (kind := config.get("peft_type")) else "whole model"
    if config.get("pool"):
        method = f"{method} pool of {len(config.get('domains', ()))} domains"
    value = folder.name if own else str(folder)
    return Choice(f"{title} · {method} · {size}", value, str(folder), bool(config.get("pool")))
