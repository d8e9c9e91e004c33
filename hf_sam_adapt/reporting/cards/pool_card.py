"""The card of a pool of domain adapters, out of a continual run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from ...config.arguments import from_file
from ...config.continual_recipe import ContinualRecipe
from ...config.methods import METHODS
from ...errors import UserError
from ...sam.tiny import TINY
from ..report import size_text
from .base import base_code, base_family, base_link
from .metadata import card_data, task_of
from .page import HOW, TINY_LIMIT, base_of, input_facts, render, versions_fact
from .public import public_recipe
from .tables import METRICS, fraction, marked, table


FILES = ("continual.json", "matrix.png", "curves.png")


def pool_card(folder: Path, name: str) -> ModelCard:
    """The card, rendered; what it needs of the continual run is copied into the folder.

    Args:
        folder: of the pool; the run's is the one above unless the files are here already.
        name: what the reader loads.

    Raises:
        UserError: no continual run has scored the pool.
    """
    for file in FILES:
        if (folder.parent / file).is_file():
            shutil.copyfile(folder.parent / file, folder / file)
    if (folder.parent / FILES[0]).is_file():  # the paths in a recipe start at its folder
        recipe = from_file(ContinualRecipe, folder.parent / "recipe.yaml")
        (folder / "recipe.yaml").write_text(recipe.to_yaml(folder), encoding="utf-8")
    for file in ("continual.json", "recipe.yaml"):
        if not (folder / file).is_file():
            raise UserError(
                f"no {file} here or in the folder above",
                where=folder,
                fix="finish the run first, a pool's card tells its results",
            )
    results = json.loads((folder / "continual.json").read_text(encoding="utf-8"))
    recipe = from_file(ContinualRecipe, folder / "recipe.yaml")
    inner = METHODS[results.get("method", recipe.method)]
    task, model = task_of(recipe.prompts), results.get("model") or base_of(recipe)
    domains, known = results["domains"], [*results.get("earlier", []), *results["domains"]]
    found = [data_of(results, domain) for domain in domains]
    block = card_data(
        name=Path(name).name,
        method="moda",
        model=model,
        task=task,
        datasets=[one["name"] for one in found if one.get("source") == "hub"],
        results=pool_results(results, task),
    )
    return render(
        "pool.md",
        block,
        folder,
        recipe,
        name,
        title=f"SAM for {len(known)} domains: a MoDA pool of {inner.name} adapters",
        what=what_sentence(results, recipe, model),
        result=result_sentence(results),
        load=load_lines(model, name),
        example=domains[0],
        alone=f'PeftModel.from_pretrained({base_code(model)[1]}, "{name}", subfolder="{domains[0]}")',
        domains=domain_table(results, public_recipe(recipe)),
        matrix=matrix_table(results),
        summary=summary_table(results),
        routing=routing_table(results),
        accuracy=fraction(results.get("routing_accuracy")),
        facts=[*task_facts(results.get("tasks", {})), *input_facts(folder)],
        command="continual --config recipe.yaml --output_dir ../../again",
        local_data="domains" if any(one.get("source") == "folder" for one in found) else None,
        limits=limits(results, recipe, model),
        citations=[text for text in (METHODS["moda"].citation, inner.citation, base_family(model).citation) if text],
    )


def data_of(results: dict[str, Any], domain: str) -> dict[str, Any]:
    """Part `data` of the `metrics.json` of a domain's training; empty for a run that did not record it."""
    return results.get("tasks", {}).get(domain, {}).get("data") or {}


def what_sentence(results: dict[str, Any], recipe: ContinualRecipe, model: str) -> str:
    """What it is."""
    names = [f"`{name}`" for name in [*results.get("earlier", []), *results["domains"]]]
    listed = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    inner = METHODS[results.get("method", recipe.method)]
    return (
        f"One {inner.linked} adapter for the Segment Anything Model {base_link(model)} per domain ({listed}), learned "
        f"one after the other, and a router that looks at an image and picks the adapter ({METHODS['moda'].linked})."
    )


def result_sentence(results: dict[str, Any]) -> str:
    """What it reaches."""
    zero = sum(results["zero_shot_iou"]) / len(results["zero_shot_iou"])
    text = (
        f"{HOW[results['prompt']].capitalize()} it reaches a mean IoU of **{fraction(results['last_iou'])}** over the "
        f"domains' test images, SAM before adaptation {fraction(zero)}"
    )
    if results.get("routing_accuracy") is not None:
        text += f"; the router sends {results['routing_accuracy']:.1%} of the images to their own domain"
    return f"{text}."


def load_lines(model: str, name: str) -> list[str]:
    """Python that loads pool and processor."""
    imports, base = base_code(model)
    return [
        "import hf_sam_adapt",
        *imports,
        f'model = hf_sam_adapt.ModaModel.from_pretrained({base}, "{name}")',
        f'processor = hf_sam_adapt.SamAdaptProcessor.from_pretrained("{name}")',
    ]


def domain_table(results: dict[str, Any], recipe: ContinualRecipe) -> str:
    """A row per domain: its data, and IoU zero-shot, routed and with its own adapter."""
    rows = []
    for index, (name, domain) in enumerate(zip(results["domains"], recipe.read_domains(), strict=True)):
        found = data_of(results, name)
        images = found["images"] if found else {}
        counts = [str(images[split]) if split in images else fraction(None) for split in ("train", "test")]
        source = found["name"] if found else domain.dataset
        own = results["oracle_iou"][index] if "oracle_iou" in results else None
        scores = marked([results["zero_shot_iou"][index], results["matrix_iou"][-1][index]])
        rows.append([f"[`{name}`]({name}/adapter_config.json)", f"`{source}`", *counts, *scores, fraction(own)])
    header = ["domain", "data", "training images", "test images", "zero-shot IoU", "routed IoU", "IoU, domain named"]
    return table(header, rows, left=2)


def matrix_table(results: dict[str, Any]) -> str:
    """IoU of every test set after every domain; a column read downwards shows forgetting."""
    natural = "natural_iou" in results
    header = ["after", *results["domains"], *(["natural"] if natural else [])]
    rows = [["zero-shot", *map(fraction, results["zero_shot_iou"])]]
    rows += [[name, *map(fraction, row)] for name, row in zip(results["domains"], results["matrix_iou"], strict=True)]
    if natural:
        column = [results["natural_zero_shot_iou"], *results["natural_curve_iou"]]
        rows = [[*row, fraction(cell)] for row, cell in zip(rows, column, strict=True)]
    return table(header, rows)


def summary_table(results: dict[str, Any]) -> str:
    """Last, average and forgetting, for IoU and boundary IoU."""
    names = {
        "last": "after all domains",
        "avg": "average over the steps",
        "ff": "forgetting",
        "oracle_last": "after all, domains named",
        "natural": "natural images",
    }
    shown = {key: name for key, name in names.items() if f"{key}_iou" in results}
    rows = [
        [METRICS[metric], *(fraction(results[f"{key}_{metric}"]) for key in shown)]
        for metric in ("iou", "biou")
        if f"last_{metric}" in results
    ]
    return table(["", *shown.values()], rows)


def routing_table(results: dict[str, Any]) -> str | None:
    """Images of each test set by where the router sent them; None where it was not measured."""
    if "confusion" not in results:
        return None
    header = ["test images of", *results["confusion_columns"]]
    return table(header, [[name, *map(str, row)] for name, row in results["confusion"].items()])


def pool_results(results: dict[str, Any], task: str) -> list[EvalResult]:
    """For `model-index`: the routed pool after its last domain, an entry per domain."""
    return [
        EvalResult(
            task_type=task,
            dataset_type=data.get("name", name),
            dataset_name=name,
            dataset_revision=data.get("revision"),
            dataset_split="test",
            metric_type=metric,
            metric_name=f"{METRICS[metric]}, routed",
            metric_value=round(results[f"matrix_{metric}"][-1][index], 4),
            metric_args={"prompt": results["prompt"]},
        )
        for index, name in enumerate(results["domains"])
        for data in [data_of(results, name)]
        for metric in ("iou", "biou")
    ]


def task_facts(tasks: dict[str, Any]) -> list[str]:
    """What the trainings of the domains cost, as list items."""
    if not tasks:
        return []
    costs = [task["train"] for task in tasks.values()]
    parameters, sizes = ({cost[key] for cost in costs} for key in ("trainable_parameters", "adapter_bytes"))
    facts = [f"Per domain: {max(parameters):,} trainable parameters, {size_text(max(sizes))} on disk"]
    environment = next(iter(tasks.values())).get("environment")
    speeds = [cost["images_per_second"] for cost in costs]
    if None not in speeds:
        memory = size_text(max(cost["peak_memory_bytes"] for cost in costs))
        machine = f" on {environment['hardware']}" if environment else ""
        facts.append(f"Speed: {min(speeds):.1f} to {max(speeds):.1f} images/s, peak memory {memory}{machine}")
    return [*facts, *versions_fact(environment)]


def limits(results: dict[str, Any], recipe: ContinualRecipe, model: str) -> list[str]:
    """What the numbers do not say, as list items."""
    found = [
        "Measured on test images of these domains alone. An image of another kind is sent to one of them or to SAM."
    ]
    for name, zero, row in zip(results["domains"], results["zero_shot_iou"], results["matrix_iou"][-1], strict=True):
        if row <= zero:
            found.append(f"**On `{name}` the pool is not better than SAM before adaptation** ({fraction(zero)}).")
    if results.get("earlier"):
        earlier = ", ".join(f"`{name}`" for name in results["earlier"])
        found.append(
            f"{earlier}: learned before, in `{public_recipe(recipe).adapter}`, whose adapters are here unchanged; how "
            "many of their images the router now sends to the new domains was not measured."
        )
    if any(str(domain.dataset).startswith("synthetic:") for domain in recipe.read_domains()):
        found.append("Images of `synthetic:` domains are drawn by a program and say nothing about real photographs.")
    if model == TINY:
        found.append(TINY_LIMIT)
    if results["prompt"] != "none":
        found.append(f"The {results['prompt']} prompts were derived from the true masks; a person's are less exact.")
    return [*found, f"One run with seed {recipe.seed} in one order of the domains; the spread was not measured."]
