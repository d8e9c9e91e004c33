"""The card of one run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from ...config.methods import METHODS, Method
from ...config.recipe import Recipe
from ...names import read_id2label
from ...sam.tiny import TINY
from ..report import empty_sentence, left_out_sentence, size_text
from .base import base_code, base_family, base_link, on_hub
from .metadata import card_data, run_results, task_of
from .page import HOW, TINY_LIMIT, base_of, input_facts, render, versions_fact
from .public import public_recipe
from .tables import class_table, fraction, score_table


SPLITS = {"test": "test", "val": "validation", "train": "training"}
FEW = 50  # images, below which a mean IoU is uncertain by several hundredths


def run_card(
    folder: Path, metrics: dict[str, Any], config: dict[str, Any] | None, recipe: Recipe, name: str
) -> ModelCard:
    """The card, rendered.

    Args:
        folder: where the pictures and the processor's file are.
        metrics, config: content of `metrics.json` and `adapter_config.json`, the latter None for a model folder.
        recipe: of the run.
        name: what the reader loads.
    """
    data = data_of(metrics, public_recipe(recipe))
    task, test = task_of(recipe.prompts), metrics["test"]
    first = next(iter(test))
    method, classes = METHODS[recipe.method].named(config), data["classes"]
    block = card_data(
        name=Path(name).name,
        method=recipe.method,
        model=base_of(recipe),
        task=task,
        datasets=[data["name"]] if data["source"] == "hub" else [],
        results=run_results(metrics, task, data),
    )
    return render(
        "run.md",
        block,
        folder,
        recipe,
        name,
        title=f"SAM adapted to {data['short']}: {method.name}",
        what=what_sentence(recipe, data, method),
        result=result_sentence(metrics, data),
        load=load_lines(recipe, name),
        method=recipe.method,
        class_name=base_family(base_of(recipe)).class_name,
        measured=measured_sentence(metrics, data),
        scores=score_table(test),
        classes=class_table(test[first], classes) if classes else None,
        measured_on=metrics.get("measured_on", "test"),
        first="no prompt" if first == "none" else f"{first} prompts",
        columns="image, truth, adapted" if classes else "image, truth, zero-shot SAM, adapted SAM",
        facts=[*training_facts(metrics, data), *input_facts(folder)],
        notes=data["notes"],
        command="train --config recipe.yaml --output_dir ../again",
        local_data="dataset" if data["source"] == "folder" else None,
        limits=limits(metrics, data, recipe, config),
        citations=[text for text in (method.citation, base_family(base_of(recipe)).citation) if text],
    )


def data_of(metrics: dict[str, Any], public: Recipe) -> dict[str, Any]:
    """Part `data` of `metrics.json`, of an old run what its recipe says; and `short` and `linked`, names to show."""
    found = metrics.get("data") or {
        "name": str(public.dataset),
        "source": "drawn" if str(public.dataset).startswith("synthetic:") else "folder",
        "revision": None,
        "images": {},
        "notes": [],
        "classes": _old_classes(metrics, public),
    }
    linked = f"`{found['name']}`"
    if found["source"] == "hub":
        linked = f"[{linked}](https://huggingface.co/datasets/{found['name']})"
    short = found["name"].removeprefix("synthetic:").split("/")[-1].replace("_", " ")
    return {**found, "short": short, "linked": linked}


def what_sentence(recipe: Recipe, data: dict[str, Any], method: Method) -> str:
    """What it is."""
    base = base_link(base_of(recipe))
    kind = (
        "A fully fine-tuned copy of" if recipe.method == "full" else f"A {method.linked} adapter ({method.what}) for"
    )
    if recipe.method == "decoder":
        kind = f"An adapter that holds {method.what}, for"
    if data["classes"]:
        named = not all(re.fullmatch(r"background|class_\d+", name) for name in data["classes"])
        target = f"gives every pixel one of {len(data['classes'])} classes"
        target += f" ({', '.join(data['classes'])})" if named else ""
    else:
        target = f"segments {_object(recipe)}"
    images = data["images"].get("train")
    learned = (
        ""
        if images is None
        else f", learned from {images} {_images(images)} with {'a mask' if images == 1 else 'masks'}"
    )
    start = "" if recipe.adapter is None else f" It started from the adapter `{public_recipe(recipe).adapter}`."
    text = f"{kind} the Segment Anything Model {base} that {target} in images like those of {_dataset(data)}{learned}."
    return text + start


def result_sentence(metrics: dict[str, Any], data: dict[str, Any]) -> str:
    """What it reaches, beside what it must beat."""
    kind, found = next(iter(metrics["test"].items()))
    classes = "miou" in found["adapted"]
    key = "miou" if classes else "iou"
    count = data["images"].get(metrics.get("measured_on", "test"))
    where = f"{'' if count is None else f'{count} '}{SPLITS[metrics.get('measured_on', 'test')]} {_images(count)}"
    if found["adapted"][key] is None:
        return (
            f"The {where} {'holds' if count == 1 else 'hold'} no labelled pixel, so nothing is known of its quality."
        )
    metric = "mean IoU of the classes" if classes else "mean IoU"
    text = f"{HOW[kind].capitalize()} it reaches a {metric} of **{fraction(found['adapted'][key])}** on {where}"
    beside = []
    if found.get("zero_shot"):
        beside.append(f"the same SAM before adaptation reaches {fraction(found['zero_shot'][key])}")
    if found.get("constant"):
        same = "one label map" if classes else "one mask"
        beside.append(f"the best that {same} for all images could do is {fraction(found['constant'][key])}")
    return f"{text}; {' and '.join(beside)}." if beside else f"{text}."


def load_lines(recipe: Recipe, name: str) -> list[str]:
    """Python that loads model and processor."""
    model = base_of(recipe)
    note = "" if recipe.method in ("full", "lora", "peft") else "  # first: it registers the methods with PEFT"
    if recipe.method == "full":
        class_name = base_family(model).class_name
        imports, loaded = [f"from transformers import {class_name}"], f'{class_name}.from_pretrained("{name}")'
    elif on_hub(model) and not base_family(model).also_prefixed:
        imports, loaded = ["from peft import AutoPeftModel"], f'AutoPeftModel.from_pretrained("{name}")'
    else:
        imports, base = base_code(model)
        imports, loaded = ["from peft import PeftModel", *imports], f'PeftModel.from_pretrained({base}, "{name}")'
    processor = f'processor = hf_sam_adapt.SamAdaptProcessor.from_pretrained("{name}")'
    return [f"import hf_sam_adapt{note}", *imports, f"model = {loaded}", processor]


def measured_sentence(metrics: dict[str, Any], data: dict[str, Any]) -> str:
    """How the table came about."""
    kinds = "; ".join(f"`{kind}`, {HOW[kind]}" for kind in metrics["test"])
    text = (
        f"Prompts: {kinds}. At each image's original size; IoU and Dice are means over the images, from 0 to 1. "
        "*Zero-shot*: the same SAM before adaptation."
    )
    if data["classes"]:
        text = (
            "At each image's original size, over all labelled pixels together, from 0 to 1; Dice is a mean over the "
            "classes. SAM before adaptation knows no classes, so there is no zero-shot score."
        )
    for sentence in filter(None, (empty_sentence(metrics), left_out_sentence(metrics))):
        text += f" {sentence}"
    constant = any("constant" in found for found in metrics["test"].values())
    if constant and data["classes"]:
        text += " *Best constant mask*: at each place the class most frequent there in the training masks."
    elif constant:
        text += (
            " *Best constant mask*: the one mask, the same for every image, that fits the training masks best; a "
            "model that does not beat it has not looked at the image."
        )
    return text


def training_facts(metrics: dict[str, Any], data: dict[str, Any]) -> list[str]:
    """Data, cost, hardware and versions, as list items."""
    train, environment = metrics["train"], metrics.get("environment")
    facts = []
    if data["images"]:
        counts = ", ".join(f"{count} {SPLITS[name]}" for name, count in data["images"].items())
        revision = f", revision `{data['revision']}`" if data["revision"] else ""
        facts.append(f"Data: {data['linked']}{revision}; {counts} images")
    facts.append(
        f"Trainable parameters: {train['trainable_parameters']:,} ({size_text(train['adapter_bytes'])} on disk)"
    )
    if train.get("best_step"):
        facts.append(
            f"Weights: step {train['best_step']}, the best on validation (IoU {fraction(train['best_val_iou'])})"
        )
    if train["images_per_second"] is not None:
        speed = f"{train['images_per_second']:.1f} images/s, peak memory {size_text(train['peak_memory_bytes'])}"
        facts.append(f"Speed: {speed}" + (f" on {environment['hardware']}" if environment else ""))
    return [*facts, *versions_fact(environment)]


def limits(metrics: dict[str, Any], data: dict[str, Any], recipe: Recipe, config: dict[str, Any] | None) -> list[str]:
    """What the numbers do not say, as list items."""
    measured_on = metrics.get("measured_on", "test")
    count = data["images"].get(measured_on)
    found = [f"Measured on images of {data['linked']} alone; other cameras, places or subjects are untested."]
    if count is not None and count < FEW:
        few, other = ("image is", "one") if count == 1 else ("images are", str(count))
        found.append(f"{count} {few} few: another {other} could give a mean that differs by several hundredths.")
    if measured_on == "val":
        found.append("There were no test images: those measured also chose the checkpoint, which flatters the result.")
    if measured_on == "train":
        found.append("There were no test images: the scores are of training images and say nothing about new ones.")
    if data["source"] == "drawn":
        found.append("The images are drawn by a program. Do not expect this adapter to work on real photographs.")
    if recipe.model == TINY:
        found.append(TINY_LIMIT)
    found += _score_limits(metrics, data["classes"])
    prompted = [kind for kind in recipe.prompts if kind != "none"]
    if prompted:
        found.append(
            f"The {' and '.join(prompted)} prompts were derived from the true masks; a person's are less exact."
        )
    if not data["classes"] and len(recipe.prompts) < len(HOW):
        others = ", ".join(kind for kind in HOW if kind not in recipe.prompts)
        found.append(f"Prompt kinds that were neither trained nor measured: {others}.")
    if not (config or {}).get("train_iou_head"):
        found.append("`iou_scores` of the output are SAM's own head on adapted features: do not rank masks by them.")
    return [*found, f"One run with seed {recipe.seed}; the spread over seeds was not measured."]


def _images(count: int | None) -> str:
    return "image" if count == 1 else "images"


def _score_limits(metrics: dict[str, Any], classes: list[str] | None) -> list[str]:
    """Where adaptation did not help."""
    found = []
    for kind, scores in metrics["test"].items():
        key = "miou" if "miou" in scores["adapted"] else "iou"
        value = scores["adapted"][key]
        for other, text in (("constant", "the best constant mask"), ("zero_shot", "SAM before adaptation")):
            beside = (scores.get(other) or {}).get(key)
            if value is not None and beside is not None and value <= beside:
                found.append(f"**{HOW[kind].capitalize()} it is not better than {text}** ({fraction(beside)}).")
        worse = [classes[int(label)] for label in _not_better(scores)] if classes else []
        if worse:
            found.append(f"**Classes on which it is not better than the best constant map: {', '.join(worse)}.**")
    return found


def _not_better(scores: dict[str, Any]) -> list[str]:
    """Classes whose IoU is not above that of the best constant map."""
    adapted, constant = (scores.get(name, {}).get("per_class", {}) for name in ("adapted", "constant"))
    pairs = [(label, adapted[label]["iou"], constant[label]["iou"]) for label in adapted if label in constant]
    return [label for label, iou, other in pairs if iou is not None and other is not None and iou <= other]


def _object(recipe: Recipe) -> str:
    name = (read_id2label(recipe.id2label) or {}).get(1)
    return "one kind of object" if name is None else f"one kind of object (`{name}`)"


def _dataset(data: dict[str, Any]) -> str:
    return f"{data['linked']}, a drawn data set of hf_sam_adapt" if data["source"] == "drawn" else data["linked"]


def _old_classes(metrics: dict[str, Any], recipe: Recipe) -> list[str] | None:
    found = next(iter(metrics["test"].values()))["adapted"].get("per_class")
    names = read_id2label(recipe.id2label) or {}
    return None if found is None else [str(names.get(int(label), label)) for label in found]
