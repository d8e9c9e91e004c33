"""Markdown tables of scores and settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from ...metrics.stream import TITLES
from ..report import fraction


# Names of the keys of scores; others are shown as they are.
METRICS = {
    "iou": "IoU",
    "dice": "Dice",
    "biou": "boundary IoU",
    "miou": "mean IoU of the classes",
    "oa": "overall accuracy",
    "fwiou": "frequency-weighted IoU",
    **TITLES,
}
LOWER_IS_BETTER = {"mae", "ber", "ber_pooled", "foreground_error", "background_error"}
VARIANTS = {"zero_shot": "zero-shot", "adapted": "adapted", "constant": "best constant mask"}


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; all but the first `left` columns are right-aligned."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in (header, rule, *rows))


def marked(values: Sequence[float | None], lower: bool = False) -> list[str]:
    """The values as `number` has them, the one that is better than all others in bold."""
    known = [value for value in values if value is not None]
    best = min(known, default=None) if lower else max(known, default=None)
    alone = len(known) > 1 and sum(value == best for value in known) == 1
    return [f"**{fraction(value)}**" if alone and value == best else fraction(value) for value in values]


def scalars(scores: dict[str, Any] | None) -> dict[str, float | None]:
    """The plain numbers among the scores, in their order."""
    return {
        key: value
        for key, value in (scores or {}).items()
        if isinstance(value, (int, float, type(None))) and not isinstance(value, bool) and key != "ignore_background"
    }


def score_table(test: dict[str, dict[str, Any]]) -> str:
    """A row per prompt kind and metric; zero-shot, adapted and constant beside each other, if measured.

    Args:
        test: part `test` of a `metrics.json`.
    """
    variants = [name for name in VARIANTS if any(found.get(name) for found in test.values())]
    rows = []
    for kind, found in test.items():
        for key in _shown(found["adapted"]):
            lower = key in LOWER_IS_BETTER
            values = [(found.get(name) or {}).get(key) for name in variants]
            title = METRICS.get(key, key) + (" (lower is better)" if lower else "")
            rows.append([kind, title, *marked(values, lower)])
        if "zero_shot_best_of_3" in found:
            best = {"zero_shot": found["zero_shot_best_of_3"]["iou"]}
            rows.append([f"{kind}, best of 3 masks", METRICS["iou"], *(fraction(best.get(name)) for name in variants)])
    return table(["prompt", "metric", *(VARIANTS[name] for name in variants)], rows, left=2)


def class_table(scores: dict[str, Any], classes: Sequence[str]) -> str:
    """A row per class, over all pixels.

    Args:
        scores: of one prompt kind, with `per_class` in `adapted`.
    """
    adapted = scores["adapted"]["per_class"]
    constant = (scores.get("constant") or {}).get("per_class") or {}
    rows = []
    for label, name in enumerate(classes):
        if str(label) not in adapted:  # the background, left out
            continue
        one, other = adapted[str(label)], constant.get(str(label), {})
        parts = [fraction(one.get(key)) for key in ("precision", "recall")]
        rows.append([name, *marked([one.get("iou"), other.get("iou")]), *parts, f"{one['pixels']:,}"])
    return table(["class", "IoU", "IoU, best constant map", "precision", "recall", "test pixels"], rows)


def settings_table(settings: dict[str, Any]) -> str:
    """A row per key, values as in YAML."""
    return table(["key", "value"], [[f"`{key}`", f"`{_plain(value)}`"] for key, value in settings.items()], left=2)


def _shown(scores: dict[str, Any]) -> list[str]:
    """Keys of the plain numbers; with classes `iou` is `miou` by another name."""
    return [key for key in scalars(scores) if key != "iou" or "miou" not in scores]


def _plain(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip("'")


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
