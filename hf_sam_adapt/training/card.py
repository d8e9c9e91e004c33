"""The README.md of a run: what it is, what was measured, how to load it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..recipe import Recipe


_NAMES = {
    "sam_adapter": "SAM-Adapter",
    "conv_lora": "Conv-LoRA",
    "cwsam": "CWSAM",
    "decoder": "decoder fine-tuning",
    "lora": "LoRA",
    "full": "full fine-tuning",
}
_MEASURED_ON = {
    "test": "test images",
    "val": "validation images, which also chose the checkpoint: there were no test images",
    "train": "training images: nothing was held out",
}


def model_card(recipe: Recipe, metrics: dict[str, Any], notes: list[str], classes: Sequence[str] = ()) -> str:
    """Markdown text.

    Args:
        recipe: the resolved one.
        metrics: content of `metrics.json`.
        notes: what was found in the data set.
        classes: their names in order, where there are several.
    """
    # Of a folder only its name: where it lies is nobody else's concern.
    dataset = str(recipe.dataset)
    dataset = Path(dataset).name if Path(dataset).exists() else dataset
    lines = [f"# SAM adapted to {dataset}", ""]
    lines += [f"`{recipe.model}`, adapted by {_NAMES[recipe.method]} with hf_sam_adapt.", ""]
    lines += [f"Classes: {', '.join(classes)}." if classes else "One foreground class.", ""]
    lines += ["## Load", "", "```python", *_load_lines(recipe), "```", ""]
    if recipe.method == "lora":
        lines += ["It is a plain PEFT LoRA: `PeftModel` loads it without `hf_sam_adapt` too.", ""]
    lines += ["Or, without code: `hf-sam-adapt predict --adapter <this folder> image.jpg`", ""]
    lines += _result_lines(metrics, classes)
    train = metrics["train"]
    lines += ["## Training", ""]
    lines += [
        f"- {train['trainable_parameters']:,} trainable parameters, {train['adapter_bytes'] / 1e6:.1f} MB on disk"
    ]
    if train["images_per_second"] is not None:
        lines += [
            f"- {train['images_per_second']:.2f} images/s, peak memory {train['peak_memory_bytes'] / 1e6:.0f} MB"
        ]
    lines += [f"- {note}" for note in notes]
    lines += ["- every setting: `recipe.yaml`", ""]
    return "\n".join(lines)


def _load_lines(recipe: Recipe) -> list[str]:
    processor = 'processor = hf_sam_adapt.SamAdaptProcessor.from_pretrained("<this folder>")'
    first = "import hf_sam_adapt  # first: registers the PEFT methods"
    if recipe.method == "full":
        return [
            first,
            "from transformers import SamModel",
            'model = SamModel.from_pretrained("<this folder>")',
            processor,
        ]
    base = f'SamModel.from_pretrained("{recipe.model}")'
    imports = ["from peft import PeftModel", "from transformers import SamModel"]
    if recipe.model == "tiny":
        base, imports = "hf_sam_adapt.load_tiny_sam()[0]", imports[:1]
    return [first, *imports, f'model = PeftModel.from_pretrained({base}, "<this folder>")', processor]


def _result_lines(metrics: dict[str, Any], classes: Sequence[str]) -> list[str]:
    measured_on = _MEASURED_ON[metrics["measured_on"]]
    lines = ["## Results", "", f"Mean IoU at original size over the {measured_on}.", ""]
    lines += ["| prompt | zero-shot | adapted | best constant mask |", "|---|---|---|---|"]
    for kind, scores in metrics["test"].items():
        cells = [(scores.get(name) or {}).get("iou") for name in ("zero_shot", "adapted", "constant")]
        lines += [f"| {kind} | {' | '.join(map(_number, cells))} |"]
    if classes:
        lines += ["", "| class | IoU | pixels |", "|---|---|---|"]
        found = metrics["test"]["none"]["adapted"]["per_class"]
        lines += [
            f"| {name} | {_number(found[str(label)]['iou'])} | {found[str(label)]['pixels']:,} |"
            for label, name in enumerate(classes)
        ]
    return [*lines, "", "![best, median and worst image](samples.png)", ""]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
