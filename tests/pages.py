"""A model card as a reader sees it."""

from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Page:
    """A card as a reader sees it.

    Attributes:
        data: the YAML block.
        text: the Markdown after it.
        links, pictures: addresses, in order.
        tables: per table its rows of cells, the header first.
        code: language to its blocks.
        headings, items: texts of headings and of list items.
    """

    data: dict
    text: str
    links: list[str]
    pictures: list[str]
    tables: list[list[list[str]]]
    code: dict[str, list[str]]
    headings: list[str]
    items: list[str]


def read_page(folder: Path) -> Page:
    """Parse the README.md of a folder: YAML, then CommonMark with tables."""
    import yaml
    from huggingface_hub import ModelCard

    markdown = pytest.importorskip("markdown_it")
    card = ModelCard.load(folder / "README.md")
    block = (folder / "README.md").read_text().split("---\n")[1]
    assert yaml.safe_load(block) == card.data.to_dict()
    page = Page(yaml.safe_load(block), card.text, [], [], [], {}, [], [])
    opened = None
    for token in markdown.MarkdownIt("commonmark").enable("table").parse(card.text):
        if token.type == "fence":
            page.code.setdefault(token.info, []).append(token.content)
        elif token.type == "table_open":
            page.tables.append([])
        elif token.type == "tr_open":
            page.tables[-1].append([])
        elif token.type in ("th_open", "td_open", "heading_open", "list_item_open"):
            opened = token.type
        elif token.type == "inline":
            words = "".join(child.content for child in token.children if child.type in ("text", "code_inline"))
            if opened in ("th_open", "td_open"):
                page.tables[-1][-1].append(words)
            elif opened is not None:
                (page.headings if opened == "heading_open" else page.items).append(words)
            page.links += [child.attrs["href"] for child in token.children if child.type == "link_open"]
            page.pictures += [child.attrs["src"] for child in token.children if child.type == "image"]
            opened = None
    return page
