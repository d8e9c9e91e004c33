"""mkdocs' hooks: which files of the repository are pages of the site, where their links lead, and the navigation.

A new page `docs/<task>.md` needs nothing here: it appears under "How to", by its own heading.
"""

import contextlib
import io
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import hf_sam_adapt
from hf_sam_adapt.cli.commands import COMMANDS, PROG


ROOT = Path(__file__).resolve().parents[1]
# Pages and pictures outside docs/ -> their place in the site.
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "CODE_OF_CONDUCT.md": "conduct.md",
    "benchmarks/RESULTS.md": "measurements.md",
    "hf_sam_adapt/sam/tiny_sam/README.md": "tiny.md",
    "model_cards/README.md": "cards/index.md",
}
READERS = ["fifty_images.md", "peft.md", "other_repositories.md", "cluster.md"]
LINK = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)\s#]*)(#[^)\s]*)?(?=\))")
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
# The API by subject; what `hf_sam_adapt` exports beside it must be here too.
API: dict[str, list[str]] = {
    "Methods": [name for name in hf_sam_adapt.__all__ if name.endswith(("Config", "Model"))] + ["register_feature"],
    "Prediction": ["SamAdaptPredictor", "SamAdaptProcessor", "Prompt", "load_tiny_sam"],
    "Data and losses": ["load_segmentation_dataset", "segmentation_loss", "metrics"],
    "Training": ["training.train", "evaluation.evaluate"],
    "Conversion": ["convert_official_checkpoint", "convert.annotations.convert_annotations"],
}


def place_of(path: str) -> str | None:
    """Where a file of the repository lies in the site, None if it does not."""
    if path in ELSEWHERE:
        return ELSEWHERE[path]
    folder, name = posixpath.split(path)
    if folder == "model_cards" and name.endswith(".md"):
        return f"cards/{name}"
    if path.startswith("docs/") and path.endswith((".md", ".png")):
        return path.removeprefix("docs/")
    return path if path.endswith(".png") and (ROOT / path).is_file() else None


def source_of(place: str) -> str:
    """The inverse of `place_of` for pages."""
    for path, other in ELSEWHERE.items():
        if other == place:
            return path
    return f"model_cards/{posixpath.basename(place)}" if place.startswith("cards/") else f"docs/{place}"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere, the API reference and the commands, and set the navigation."""
    pages = {**ELSEWHERE, **{f"model_cards/{path.name}": "" for path in (ROOT / "model_cards").glob("*.md")}}
    pictures = {path.relative_to(ROOT).as_posix() for path in (ROOT / "benchmarks").glob("*.png")}
    for path in [*pages, *pictures]:
        place = place_of(path)
        assert place is not None
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    made = {f"reference/{slug(title)}.md": api_page(title, names) for title, names in API.items()}
    made["commands.md"] = commands_page()
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    config.nav = navigation([file.src_uri for file in files.documentation_pages()])
    return files


def navigation(places: list[str]) -> list[dict[str, Any]]:
    """Every page under one heading; titles are those of the pages."""
    groups: dict[str, list[str]] = {
        "Start": ["index.md"],
        "Guides": READERS,
        "How to": [],
        "Methods": sorted(place for place in places if place.startswith("cards/")),
        "Reference": ["commands.md", *(f"reference/{slug(title)}.md" for title in API), "measurements.md", "tiny.md"],
        "Project": [
            *("contributing.md", "changelog.md", "security.md", "conduct.md"),
            *sorted(place for place in places if place.startswith("upstream/")),
        ],
    }
    known = {place for group in groups.values() for place in group}
    groups["How to"] = sorted(set(places) - known)
    return [{title: [place for place in group if place in places]} for title, group in groups.items()]


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead the repository's links to pages of the site, or to the repository where the site has no such page."""
    source = source_of(page.file.src_uri)
    here = posixpath.dirname(page.file.src_uri)

    def lead(match: re.Match[str]) -> str:
        path, anchor = match[1], match[2] or ""
        if not path:
            return anchor
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        place = place_of(target)
        if place is None:
            if not (ROOT / target).exists():
                return match[0]  # mkdocs warns of it
            return f"{config.extra['social'][0]['link']}/blob/main/{target}{anchor}"
        return posixpath.relpath(place, here or ".") + anchor

    return outside_code(markdown, lambda text: LINK.sub(lead, text))


def outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """`change` applied to all that is not code."""
    parts, last = [], 0
    for code in CODE.finditer(markdown):
        parts += [change(markdown[last : code.start()]), code[0]]
        last = code.end()
    return "".join([*parts, change(markdown[last:])])


def slug(title: str) -> str:
    """Name of a page."""
    return title.lower().replace(" ", "_")


def api_page(title: str, names: list[str]) -> str:
    """A page of the reference."""
    keys = "The keys of `config.recipe.Recipe` are those of [`train`](../commands.md#train)."
    about = [keys] if title == "Training" else []
    return "\n\n".join([f"# {title}", *about, *(f"::: hf_sam_adapt.{name}" for name in names)])


def commands_page() -> str:
    """What `--help` says of every command."""
    parts = ["# Commands", f"`{PROG} COMMAND --help` says the same. Every key can stand in a YAML file, `--config`."]
    for name, command in COMMANDS.items():
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            command.parse(name, ["--help"])
        parts += [f"## {name}", f"```text\n{shown.getvalue().rstrip()}\n```"]
    return "\n\n".join(parts)
