"""Publishing: a run, an adapter, a pool of domains or a model folder becomes a repository in one commit."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..config.arguments import from_file, option, read_yaml
from ..config.continual_recipe import ContinualRecipe
from ..config.paths import FILE
from ..config.recipe import Recipe
from ..errors import UserError
from ..reporting.cards import public_recipe, write_card
from ..reporting.cards.pool_card import FILES
from ..reporting.report import hide_names
from ..upload import PUSHED_SUFFIXES, upload_folder


@dataclass
class PushArguments:
    """Arguments of `push`."""

    folder: str | None = option(None, "Run, adapter, pool or model folder to publish.", path=FILE)
    repo: str | None = option(None, "Repository, owner/name; unset = the folder's name, in your account.")
    public: bool = option(False, "Create a public repository; otherwise it is private.")
    revision: str | None = option(None, "Branch, created if needed; unset = main.")
    repo_type: Literal["model", "space"] = option(
        "model", "space: a folder with app.py, pushed with the wheel of its checkout."
    )


def push_command(args: PushArguments) -> None:
    """Publish a folder, and print where."""
    if args.folder is None:
        raise UserError("push needs the folder to publish, such as a run's output_dir")
    if args.repo_type == "space":
        from .space import push_space

        push_space(args.folder, args.repo, private=not args.public, revision=args.revision)
        return
    push_folder(args.folder, args.repo, private=not args.public, revision=args.revision)


def push_folder(
    folder: str | Path,
    repo: str | None = None,
    *,
    private: bool = True,
    revision: str | None = None,
    token: str | None = None,
    again: str | None = None,
) -> str:
    """Publish the safetensors, JSON, YAML, Markdown and PNG files of a run, an adapter, a pool or a model folder.

    Nothing is written locally. Everything that can be wrong with the folder is found before the first request.

    Args:
        folder: only its top level, `.eval_results/` and, for a pool, the folders of its domains are looked at;
            `splits.json`, which names the images, stays at home.
        repo: `owner/name`; `name` is in the account of the token, None is the folder's name there.
        private: of a repository that is created; one that exists stays as it is.
        revision: branch, created from `main` if it does not exist.
        token: None = the one that is logged in.
        again: how to try again, said when the push fails; None = the `push` command.

    Returns:
        Address of the commit.

    Raises:
        UserError: nothing to publish, a damaged file, or the Hub refused it or could not be reached.
    """
    return upload_folder(
        folder,
        repo,
        texts=lambda files, name, stage: _public_texts(Path(folder), files, name, stage),
        private=private,
        revision=revision,
        token=token,
        again=again,
    )


def _public_texts(folder: Path, files: dict[str, Path], name: str, stage: Path) -> dict[str, Path]:
    """The recipe without the user's paths, pictures without the names of images, and the run's card as one of `name`.

    A card that was edited stays as it is.

    Args:
        folder, files: what is published; left as it is.
        stage: an empty folder for the copies.

    Returns:
        Path in the repository -> file, to be put in place of the originals.
    """
    copy = stage / folder.resolve().name  # which a card names
    for path in (folder.resolve().parent / file for file in FILES):
        if path.is_file():  # a pool's card is made of these
            shutil.copy(path, stage)

    def read_recipe(file: Path) -> Recipe:
        return from_file(ContinualRecipe if "domains" in read_yaml(file) else Recipe, file)

    for inside, path in files.items():
        if path.suffix != ".safetensors":
            (copy / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy / inside)
    for picture in copy.rglob("*.png"):
        hide_names(picture)
    card, recipe_file = copy / "README.md", copy / "recipe.yaml"
    for source, target in ((folder.resolve().parent, stage), (folder, copy)):
        needed = source == folder or (source / FILES[0]).is_file()
        if needed and (source / recipe_file.name).is_file():  # its paths start at its folder
            text = read_recipe(source / recipe_file.name).to_yaml(target)
            (target / recipe_file.name).write_text(text, encoding="utf-8")
    try:
        written = card.read_bytes() if card.is_file() else None
        if written in (None, write_card(copy).read_bytes()):
            write_card(copy, repo_id=name)
        else:
            card.write_bytes(written)
    except UserError:
        if written is None:
            print(f"note: {folder} has no README.md, and is no finished run to make one of", file=sys.stderr)
    if recipe_file.is_file():
        recipe_file.write_text(public_recipe(read_recipe(recipe_file)).to_yaml(), encoding="utf-8")
    staged = {path.relative_to(copy).as_posix(): path for path in sorted(copy.rglob("*")) if path.is_file()}
    return {inside: path for inside, path in staged.items() if path.suffix in PUSHED_SUFFIXES}
