"""Runs of a few steps whose cards are read: one class, several classes, a pool of domains."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_sam_adapt.continual.recipe import ContinualRecipe
from hf_sam_adapt.continual.run import continual
from hf_sam_adapt.recipe import Recipe
from hf_sam_adapt.training import train


SHORT = {"max_steps": 4, "batch_size": 2, "eval_every": 2, "learning_rate": 1e-3}


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
    """Parse README.md: YAML, then CommonMark with tables."""
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


@pytest.fixture(scope="session")
def page():
    """`read_page`."""
    return read_page


def write_data(folder: Path, rng: np.random.Generator, classes: int = 2, counts=(6, 2, 4)) -> str:
    """Noise with a bar per class but the first, a brightness each; returns the folder's name."""
    for split, count in zip(("train", "val", "test"), counts):
        for index in range(count):
            mask = np.zeros((40, 56), np.uint8)
            for label in range(1, classes):
                left = 4 + 16 * (label - 1) + int(rng.integers(0, 4))
                mask[int(rng.integers(0, 12)) :, left : left + 10] = label
            image = rng.normal(60 + 60 * mask[..., None], 10, (40, 56, 3)).clip(0, 255).astype(np.uint8)
            stored = mask * 255 if classes == 2 else mask
            for kind, array in (("images", image), ("masks", stored)):
                path = folder / split / kind / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return str(folder)


@pytest.fixture(scope="session")
def binary_run(sam_folder, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("binary")
    data = write_data(place / "bright_bars", np.random.default_rng())
    keys = {"model": sam_folder, "dataset": data, "output_dir": str(place / "run"), "prompts": ["none", "box"]}
    return train(Recipe(**keys, **SHORT))


@pytest.fixture(scope="session")
def class_run(sam_folder, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("classes")
    data = write_data(place / "bars", np.random.default_rng(), classes=3)
    names = {0: "ground", 1: "grey | dull", 2: "bright"}
    keys = {"model": sam_folder, "dataset": data, "output_dir": str(place / "run"), "method": "cwsam"}
    return train(Recipe(**keys, num_labels=3, id2label=names, mask_values="index", **SHORT))


@pytest.fixture(scope="session")
def pool_run(sam_folder, tmp_path_factory) -> Path:
    """A continual run; its pool is in `pool/`."""
    place = tmp_path_factory.mktemp("continual")
    domains = [{name: write_data(place / name, np.random.default_rng())} for name in ("first", "second")]
    keys = {"model": sam_folder, "domains": domains, "output_dir": str(place / "run"), "method": "decoder"}
    return continual(ContinualRecipe(**keys, **SHORT))


@pytest.fixture
def read_json():
    return lambda path: json.loads(Path(path).read_text())
