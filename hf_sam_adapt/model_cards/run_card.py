"""The card of one run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from ..recipe import Recipe
from ..report import size_text
from ..tiny import TINY
from .metadata import base_license, card_data, run_results, task_of
from .methods import METHODS, SAM_CITATION
from .public import is_local
from .tables import class_table, number, score_table, settings_table


TEMPLATE = Path(__file__).with_name("run.md")
HOW = {
    "none": "without any prompt",
    "box": "given a tight box around each object",
    "point": "given one point in each object",
    "mask": "given a rough mask of each object",
}
PROMPT_FLAGS = {"box": "--box 40 60 200 180", "point": "--point 120 130"}
SPLITS = {"test": "test", "val": "validation", "train": "training"}
_NOT_SHOWN = ("output_dir", "resume_from_checkpoint", "push_to_hub", "hub_model_id")
FEW = 50  # images, below which a mean IoU is uncertain by several hundredths


def run_card(
    folder: Path,
    metrics: dict[str, Any],
    config: dict[str, Any] | None,
    recipe: Recipe,
    public: Recipe,
    name: str,
    install: str,
) -> ModelCard:
    """The card, rendered.

    Args:
        folder: where the pictures and the processor's file are.
        metrics, config: content of `metrics.json` and `adapter_config.json`, the latter None for a model folder.
        recipe, public: the recipe, and the one to be shown.
        name: what the reader loads.
        install: the command that installs this package.
    """
    data = data_of(metrics, public)
    task, test, model = task_of(recipe.prompts), metrics["test"], base_of(recipe)
    first = next(iter(test))
    method = METHODS[recipe.method]
    hub = [data["name"]] if data["source"] == "hub" else []
    return ModelCard.from_template(
        card_data(
            name=Path(name).name,
            method=recipe.method,
            model=model,
            task=task,
            datasets=hub,
            results=run_results(metrics, task, data),
        ),
        template_path=str(TEMPLATE),
        title=f"SAM adapted to {data['short']}: {method.name}",
        what=what_sentence(recipe, data, config),
        result=result_sentence(metrics, data),
        install=install,
        load=load_lines(recipe, name),
        use=use_lines(bool(data["classes"])) if "none" in recipe.prompts else None,
        prompt="".join(f" {PROMPT_FLAGS[kind]}" for kind in recipe.prompts[:1] if kind in PROMPT_FLAGS),
        name=name,
        local_base=local_base(model),
        method=recipe.method,
        measured=measured_sentence(metrics, data),
        scores=score_table(test),
        classes=class_table(test[first], data["classes"]) if data["classes"] else None,
        pictures={name for name in ("samples", "curve", "confusion", "experts") if (folder / f"{name}.png").is_file()},
        measured_on=metrics.get("measured_on", "test"),
        first="no prompt" if first == "none" else f"{first} prompts",
        columns="image, truth, adapted" if data["classes"] else "image, truth, zero-shot SAM, adapted SAM",
        facts=training_facts(metrics, data),
        input=input_facts(folder),
        notes=data["notes"],
        settings=settings_table(changed_settings(public)),
        recipe=public.to_yaml().strip(),
        seed=recipe.seed,
        limits=limits(metrics, data, recipe, config),
        license=license_sentence(model),
        citations=[text for text in (method.citation, SAM_CITATION) if text],
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


def what_sentence(recipe: Recipe, data: dict[str, Any], config: dict[str, Any] | None) -> str:
    """What it is."""
    method, base = METHODS[recipe.method], base_link(base_of(recipe))
    kind = (
        "A fully fine-tuned copy of" if recipe.method == "full" else f"A {method.linked} adapter ({method.what}) for"
    )
    if recipe.method == "decoder":
        kind = f"An adapter that holds {method.what}, for"
    if data["classes"]:
        names = ", ".join(data["classes"])
        target = f"gives every pixel one of {len(data['classes'])} classes ({names})"
    else:
        target = f"segments {_object(recipe)}"
    images = data["images"].get("train")
    learned = "" if images is None else f", learned from {images} images with masks"
    return f"{kind} {base} that {target} in images like those of {_dataset(data)}{learned}."


def result_sentence(metrics: dict[str, Any], data: dict[str, Any]) -> str:
    """What it reaches, beside what it must beat."""
    kind, found = next(iter(metrics["test"].items()))
    classes = "miou" in found["adapted"]
    key = "miou" if classes else "iou"
    count = data["images"].get(metrics.get("measured_on", "test"))
    where = f"{'' if count is None else f'{count} '}{SPLITS[metrics.get('measured_on', 'test')]} images"
    if found["adapted"][key] is None:
        return f"The {where} hold no labelled pixel, so nothing is known of its quality."
    metric = "mean IoU of the classes" if classes else "mean IoU"
    text = f"{HOW[kind].capitalize()} it reaches a {metric} of **{number(found['adapted'][key])}** on {where}"
    beside = []
    if found.get("zero_shot"):
        beside.append(f"the same SAM before adaptation reaches {number(found['zero_shot'][key])}")
    if found.get("constant"):
        same = "one label map" if classes else "one mask"
        beside.append(f"the best that {same} for all images could do is {number(found['constant'][key])}")
    return f"{text}; {' and '.join(beside)}." if beside else f"{text}."


def load_lines(recipe: Recipe, name: str) -> list[str]:
    """Python that loads model and processor."""
    base_name = base_of(recipe)
    note = "" if recipe.method in ("full", "lora") else "  # first: it registers the methods with PEFT"
    first = f"import hf_sam_adapt{note}"
    processor = f'processor = hf_sam_adapt.SamAdaptProcessor.from_pretrained("{name}")'
    if recipe.method == "full":
        return [first, "from transformers import SamModel", f'model = SamModel.from_pretrained("{name}")', processor]
    if base_name == TINY:
        model = f'model = PeftModel.from_pretrained(hf_sam_adapt.load_tiny_sam()[0], "{name}")'
        return [first, "from peft import PeftModel", model, processor]
    if is_local(base_name):
        base = f'SamModel.from_pretrained("{Path(base_name).name}")'
        model = f'model = PeftModel.from_pretrained({base}, "{name}")'
        return [first, "from peft import PeftModel", "from transformers import SamModel", model, processor]
    return [first, "from peft import AutoPeftModel", f'model = AutoPeftModel.from_pretrained("{name}")', processor]


def use_lines(classes: bool) -> list[str]:
    """Python that segments an image without a prompt."""
    end = ".argmax(0)  # (height, width)" if classes else "[0] > 0  # (height, width)"
    return [
        "from PIL import Image",
        "",
        'inputs = processor(Image.open("image.jpg"))',
        'logits = model(pixel_values=inputs.pop("pixel_values")).pred_masks[:, 0]',
        f"mask = processor.post_process_masks(logits, **inputs)[0]{end}",
    ]


def base_of(recipe: Recipe) -> str:
    """The base model's name; a recipe that was never resolved names an adapter in its place."""
    return recipe.model or str(recipe.adapter)


def base_link(model: str) -> str:
    """The base model in Markdown, linked where it is on the Hub."""
    if model == TINY:
        return "`tiny` (the small SAM inside hf_sam_adapt, trained on drawn images; not Meta's)"
    return f"`{Path(model).name}`" if is_local(model) else f"[`{model}`](https://huggingface.co/{model})"


def local_base(model: str) -> str | None:
    """The name of a base model that only its owner has."""
    return Path(model).name if model != TINY and is_local(model) else None


def license_sentence(model: str) -> str:
    """Under which licence the adapter is, if the base model says one."""
    found = base_license(model)
    named = found.get("license_name") or found.get("license")
    if named is None:
        return "No licence is named: the base model's card could not be read or names none."
    return f"`{named}`, the base model's."


def measured_sentence(metrics: dict[str, Any], data: dict[str, Any]) -> str:
    """How the table came about."""
    text = "At each image's original size; IoU and Dice are means over the images, from 0 to 1."
    if data["classes"]:
        text = (
            "At each image's original size, over all labelled pixels together, from 0 to 1; Dice is a mean over the "
            "classes. SAM before adaptation knows no classes, so there is no zero-shot score."
        )
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
        facts.append(f"Weights: step {train['best_step']}, the best on validation ({number(train['best_val_iou'])})")
    if train["images_per_second"] is not None:
        speed = f"{train['images_per_second']:.1f} images/s, peak memory {size_text(train['peak_memory_bytes'])}"
        facts.append(f"Speed: {speed}" + (f" on {environment['hardware']}" if environment else ""))
    return [*facts, *versions_fact(environment)]


def versions_fact(environment: dict[str, Any] | None) -> list[str]:
    """A list item with the versions, none for a run that did not record them."""
    versions = environment["versions"] if environment else {}
    return ["Versions: " + ", ".join(f"{name} {found}" for name, found in versions.items())] if versions else []


def input_facts(folder: Path) -> list[str]:
    """What the processor does with an image, as list items."""
    processor = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    size, mode = processor["image_size"], processor.get("resize_mode", "pad")
    how = "longest side scaled to it, padded right and below" if mode == "pad" else "stretched to it"
    facts = [f"Input: {size} x {size} pixels; {how}"]
    normalization = processor.get("normalization")
    if normalization is None:
        mean, std = (" ".join(f"{value:.3f}" for value in processor[key]) for key in ("image_mean", "image_std"))
        facts.append(f"Normalisation: RGB in 0..1, mean {mean}, standard deviation {std}")
    else:
        channels = processor.get("channels") or 3
        facts.append(
            f"Normalisation: `{normalization['kind']}` of {channels} channels, fitted to the training images and "
            "stored in `preprocessor_config.json`"
        )
    return facts


def changed_settings(recipe: Recipe) -> dict[str, Any]:
    """Every key that is not at its default, as resolved; where the run lies is left out."""
    changed = {}
    for field in dataclasses.fields(recipe):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = getattr(recipe, field.name)
        if value != default and field.name not in _NOT_SHOWN:
            changed[field.name] = value
    return changed


def limits(metrics: dict[str, Any], data: dict[str, Any], recipe: Recipe, config: dict[str, Any] | None) -> list[str]:
    """What the numbers do not say, as list items."""
    measured_on = metrics.get("measured_on", "test")
    count = data["images"].get(measured_on)
    found = [f"Measured on images of {data['linked']} alone; other cameras, places or subjects are untested."]
    if count is not None and count < FEW:
        found.append(f"{count} images are few: another {count} could give a mean that differs by several hundredths.")
    if measured_on == "val":
        found.append("There were no test images: those measured also chose the checkpoint, which flatters the result.")
    if measured_on == "train":
        found.append("There were no test images: the scores are of training images and say nothing about new ones.")
    if data["source"] == "drawn":
        found.append("The images are drawn by a program. Do not expect this adapter to work on real photographs.")
    if recipe.model == TINY:
        found.append("`tiny` is small and was itself trained on drawn images; real work wants a real SAM.")
    found += _score_limits(metrics, data["classes"])
    prompted = [kind for kind in recipe.prompts if kind != "none"]
    if prompted:
        found.append(
            f"The {' and '.join(prompted)} prompts were derived from the true masks; a person's are less exact."
        )
    if not data["classes"] and len(recipe.prompts) < len(HOW):
        others = ", ".join(kind for kind in HOW if kind not in recipe.prompts)
        found.append(f"Prompt kinds that were neither trained nor measured: {others}.")
    if not (config or {}).get("train_iou_head") and recipe.method not in ("full", "lora"):
        found.append("`iou_scores` of the output are SAM's own head on adapted features: do not rank masks by them.")
    return [*found, f"One run with seed {recipe.seed}; the spread over seeds was not measured."]


def _score_limits(metrics: dict[str, Any], classes: list[str] | None) -> list[str]:
    """Where adaptation did not help."""
    found = []
    for kind, scores in metrics["test"].items():
        key = "miou" if "miou" in scores["adapted"] else "iou"
        value = scores["adapted"][key]
        for other, text in (("constant", "the best constant mask"), ("zero_shot", "SAM before adaptation")):
            beside = (scores.get(other) or {}).get(key)
            if value is not None and beside is not None and value <= beside:
                found.append(f"**{HOW[kind].capitalize()} it is not better than {text}** ({number(beside)}).")
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
    name = (recipe.id2label or {}).get(1)
    return "one kind of object" if name is None else f"one kind of object (`{name}`)"


def _dataset(data: dict[str, Any]) -> str:
    return f"{data['linked']}, a drawn data set of hf_sam_adapt" if data["source"] == "drawn" else data["linked"]


def _old_classes(metrics: dict[str, Any], recipe: Recipe) -> list[str] | None:
    found = next(iter(metrics["test"].values()))["adapted"].get("per_class")
    return None if found is None else [str((recipe.id2label or {}).get(int(label), label)) for label in found]
