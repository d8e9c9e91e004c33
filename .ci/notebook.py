"""The notebook of a page: `python .ci/notebook.py` writes notebooks/fifty_images.ipynb out of docs/fifty_images.md.

Text becomes Markdown cells, Python blocks cells, and lines of bash blocks `!` lines, so the two never differ.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
PAGE, NOTEBOOK = "docs/fifty_images.md", "notebooks/fifty_images.ipynb"
REPOSITORY = "https://github.com/hf-sam-adapt/hf-sam-adapt"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```\n?", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)]+)(?=\))")


def notebook(page: str) -> dict[str, Any]:
    """The notebook, as nbformat 4.5 has it."""
    text = (ROOT / page).read_text()
    cells, last = [], 0
    for block in BLOCK.finditer(text):
        cells += [markdown(text[last : block.start()], page), code(block[1], block[2])]
        last = block.end()
    cells = [cell for cell in [*cells, markdown(text[last:], page)] if cell["source"]]
    for index, cell in enumerate(cells):
        cell["id"] = f"cell-{index}"
    return {
        "cells": cells,
        "metadata": {
            "accelerator": "GPU",
            "colab": {"provenance": []},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def markdown(text: str, page: str) -> dict[str, Any]:
    """A cell of text, whose links lead to the repository."""

    def absolute(match: re.Match[str]) -> str:
        return f"{REPOSITORY}/blob/main/{posixpath.normpath(posixpath.join(posixpath.dirname(page), match[1]))}"

    return {"cell_type": "markdown", "metadata": {}, "source": LINK.sub(absolute, text.strip()).splitlines(True)}


def code(language: str, text: str) -> dict[str, Any]:
    """A cell of Python, or of commands."""
    if language == "bash":
        lines = [f"%{line}" if line.startswith("pip ") else f"!{line}" for line in text.strip().splitlines()]
        text = "\n".join(lines)
    source = text.strip().splitlines(True)
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": source}


def written(page: str) -> str:
    """The notebook's file."""
    return json.dumps(notebook(page), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (ROOT / NOTEBOOK).write_text(written(PAGE))
