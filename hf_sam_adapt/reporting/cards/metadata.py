"""The card's YAML block and `.eval_results/`: what the Hub reads of a run, nothing that the run does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

from .base import base_license, on_hub
from .tables import METRICS, scalars


LIBRARY = "hf-sam-adapt"


def card_data(
    *, name: str, method: str, model: str, task: str, datasets: list[str], results: list[EvalResult]
) -> ModelCardData:
    """The YAML block.

    Args:
        name: of the adapter, for `model-index`.
        method: of the recipe.
        model: the base model; only one on the Hub is linked, for which a revision has no place here.
        task: the Hub's name of the task.
        datasets: ids on the Hub.
        results: for `model-index`.
    """
    fields: dict[str, Any] = dict(base_license(model))
    if hub := on_hub(model):
        fields |= {"base_model": hub.id, "base_model_relation": "finetune" if method == "full" else "adapter"}
    tags = ["sam", "segment-anything", "hf-sam-adapt", method.replace("_", "-")]
    if results:
        fields |= {"model_name": name, "eval_results": results}
    return ModelCardData(
        library_name=LIBRARY,
        pipeline_tag=task,
        datasets=datasets or None,
        tags=[*tags, *([] if method == "full" else ["peft"])],
        **fields,
    )


def task_of(prompts: list[str]) -> str:
    """`image-segmentation` for what finds its objects itself, `mask-generation` for what must be prompted."""
    return "image-segmentation" if "none" in prompts else "mask-generation"


def run_results(metrics: dict[str, Any], task: str, dataset: dict[str, Any]) -> list[EvalResult]:
    """The adapted model's scores, one entry per prompt kind and metric.

    Args:
        metrics: content of `metrics.json`.
        dataset: part `data` of it.
    """
    about = {
        "task_type": task,
        "dataset_type": dataset["name"],
        "dataset_name": dataset["name"],
        "dataset_split": metrics.get("measured_on", "test"),
        "dataset_revision": dataset.get("revision"),
    }
    return [
        EvalResult(
            **about,
            metric_type=key,
            metric_name=f"{METRICS.get(key, key)} ({_prompt(kind)})",
            metric_value=round(value, 4),
            metric_args={"prompt": kind},
        )
        for kind, found in metrics["test"].items()
        for key, value in scalars(found["adapted"]).items()
        if value is not None
    ]


def write_eval_results(folder: Path, metrics: dict[str, Any]) -> list[Path]:
    """Write `.eval_results/*.yaml`, where the data set is a benchmark of the Hub.

    An entry there names a task of the benchmark's own `eval.yaml` (hf.co/docs/hub/eval-results), so there is none for
    a data set without that file, or with another number of tasks on the measured split than one.

    Args:
        folder: of the run.
        metrics: content of `metrics.json`.

    Returns:
        The files, one per prompt kind.
    """
    data, split = metrics.get("data", {}), metrics.get("measured_on", "test")
    task = _benchmark_task(data["name"], data["revision"], split) if data.get("source") == "hub" else None
    if task is None:
        return []
    dataset = {"id": data["name"], "task_id": task} | ({"revision": data["revision"]} if data["revision"] else {})
    written = []
    for kind, found in metrics["test"].items():
        key = "miou" if "miou" in found["adapted"] else "iou"
        if found["adapted"][key] is None:
            continue
        notes = f"{METRICS[key]}, {_prompt(kind)}"
        entry = {"dataset": dataset, "value": round(found["adapted"][key], 4), "notes": notes}
        path = folder / ".eval_results" / f"{data['name'].split('/')[1]}_{kind}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump([entry], sort_keys=False), encoding="utf-8")
        written.append(path)
    return written


def _benchmark_task(dataset: str, revision: str | None, split: str) -> str | None:
    """The id of the one task that a benchmark of the Hub has on `split`; None if there is no such task."""
    try:
        path = hf_hub_download(dataset, "eval.yaml", repo_type="dataset", revision=revision)
    except (EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError):
        return None
    tasks = (yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}).get("tasks") or []
    ids = [task["id"] for task in tasks if task.get("split", "test") == split and "id" in task]
    return ids[0] if len(ids) == 1 else None


def _prompt(kind: str) -> str:
    return "no prompt" if kind == "none" else f"{kind} prompts"
