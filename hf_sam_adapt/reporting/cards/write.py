"""From the files of a run folder or a pool to its README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from ...config.arguments import from_file
from ...config.recipe import Recipe
from ...errors import UserError
from .metadata import write_eval_results
from .pool_card import pool_card
from .run_card import run_card


def write_card(folder: str | Path, repo_id: str | None = None, recipe: Recipe | None = None) -> Path:
    """Write README.md, and `.eval_results/` for a benchmark of the Hub, out of what the folder holds.

    Cards of runs that were made before a field existed leave out what it would say.

    Args:
        folder: a run folder (`metrics.json`, `recipe.yaml`), or a pool of a continual run: its own files, or those in
            the folder above, are copied into it.
        repo_id: where the folder is published; the card then loads from there. None: from a folder of its name.
        recipe: of the run; None: that in `recipe.yaml`.

    Returns:
        The path of README.md.

    Raises:
        UserError: the folder is neither.
    """
    folder = Path(folder)
    config = _read_json(folder / "adapter_config.json")
    if config is not None and config.get("pool"):
        return _save(pool_card(folder, name_of(folder, repo_id)), folder)
    metrics = _read_json(folder / "metrics.json")
    if metrics is None or "train" not in metrics:
        raise UserError("no metrics.json of a training, so no run folder that a card could be made of", where=folder)
    if recipe is None:
        recipe, name = from_file(Recipe, folder / "recipe.yaml"), name_of(folder, repo_id)
    else:
        name = repo_id or Path(recipe.output_dir).name
    write_eval_results(folder, metrics)
    return _save(run_card(folder, metrics, config, recipe, name), folder)


def name_of(folder: Path, repo_id: str | None) -> str:
    """What a reader loads: the repository, or a folder by its name."""
    return repo_id or folder.resolve().name


def _save(card: ModelCard, folder: Path) -> Path:
    path = folder / "README.md"
    path.write_text(str(card), encoding="utf-8")
    return path


def _read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
