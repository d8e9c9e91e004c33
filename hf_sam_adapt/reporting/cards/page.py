"""What the cards of runs and of pools have in common."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ...config.recipe import Recipe
from ...sam.families import SAM
from .base import base_family, license_sentence, local_base
from .public import public_recipe
from .tables import settings_table


# How a reader of a card gets this package.
INSTALL = "pip install ./hf_sam_adapt  # the folder of its source; hf-sam-adapt is on no package index yet"
HOW = {
    "none": "without any prompt",
    "box": "given a tight box around each object",
    "point": "given one point in each object",
    "mask": "given a rough mask of each object",
}
TINY_LIMIT = "`tiny` is small and was itself trained on a few thousand images; real work wants a real SAM."
_PROMPT_FLAGS = {"box": " --box 40 60 200 180", "point": " --point 120 130"}
_IMAGE = "image.jpg"
_PICTURES = ("samples", "curve", "confusion", "experts", "f_measure", "matrix", "curves")
_NOT_SHOWN = ("output_dir", "resume_from_checkpoint", "push_to_hub", "hub_model_id")


def render(template: str, data: ModelCardData, folder: Path, recipe: Recipe, name: str, **fields: Any) -> ModelCard:
    """A card with the sections that every card has.

    Args:
        template: file of the sections before the settings.
        data: the YAML block.
        folder: where the pictures are.
        recipe: of the run, with paths.
        name: what the reader loads.
        fields: of the template, beside those of all cards.
    """
    here, public, model = Path(__file__).parent, public_recipe(recipe), base_of(recipe)
    corrected = recipe.method in ("lora", "peft", "full") and base_family(model) is not SAM
    taken = _processor_of(folder)
    return ModelCard.from_template(
        data,
        template_str="".join((here / file).read_text(encoding="utf-8") for file in (template, "end.md")),
        name=name,
        install=INSTALL,
        local_base=local_base(model),
        use=use_lines(name, bool(fields.get("classes")), taken, corrected) if "none" in recipe.prompts else None,
        image=_example_file(taken),
        corrected=base_family(model).title if corrected else None,
        prompt=_PROMPT_FLAGS.get(recipe.prompts[0], ""),
        pictures={one for one in _PICTURES if (folder / f"{one}.png").is_file()},
        settings=settings_table(changed_settings(public)),
        recipe=public.to_yaml().strip(),
        seed=recipe.seed,
        license=license_sentence(model),
        **fields,
    )


def use_lines(name: str, classes: bool, processor: dict[str, Any], corrected: bool) -> list[str] | None:
    """Python that segments an image without a prompt; None of volumes, which the command takes.

    Args:
        processor: what `preprocessor_config.json` says.
        corrected: the mask needs what this package corrects of the family's own model.
    """
    file = _example_file(processor)
    if processor.get("slices"):
        return None
    if corrected or processor.get("tiling") or file != _IMAGE:
        options = "".join(f", {key}={value!r}" for key, value in (processor.get("tiling") or {}).items())
        return [
            f'predictor = hf_sam_adapt.SamAdaptPredictor.from_pretrained("{name}")',
            f'mask = predictor.predict("{file}"{options})[0].mask  # (height, width)',
        ]
    end = ".argmax(0)  # (height, width)" if classes else "[0] > 0  # (height, width)"
    one = "" if classes else ", multimask_output=False"  # a plain SAM would give its three masks
    return [
        "from PIL import Image",
        "",
        f'inputs = processor(Image.open("{_IMAGE}"))',
        f'logits = model(pixel_values=inputs.pop("pixel_values"){one}).pred_masks[:, 0]',
        f"mask = processor.post_process_masks(logits, **inputs)[0]{end}",
    ]


def _processor_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))


def _example_file(processor: dict[str, Any]) -> str:
    """A name of a file as the processor takes it."""
    if processor.get("slices"):
        return "volume.nii.gz"
    return _IMAGE if processor.get("channels") in (None, 3) else "image.tif"


def base_of(recipe: Recipe) -> str:
    """The base model's name; a recipe that was never resolved names an adapter in its place."""
    return recipe.model or str(recipe.adapter)


def versions_fact(environment: dict[str, Any] | None) -> list[str]:
    """A list item with the versions, none for a run that did not record them."""
    versions = environment["versions"] if environment else {}
    return ["Versions: " + ", ".join(f"{name} {found}" for name, found in versions.items())] if versions else []


def input_facts(folder: Path) -> list[str]:
    """What the processor does with an image, as list items."""
    processor = _processor_of(folder)
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
    if processor.get("tiling"):
        tiling = processor["tiling"]
        facts.append(f"Tiles: images are cut into tiles of {tiling['tile']} pixels, which share {tiling['overlap']}")
    if processor.get("slices"):
        cut = ", ".join(f"{key} {value}" for key, value in processor["slices"].items() if value is not None)
        facts.append(f"Volumes: cut into slices ({cut})")
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
