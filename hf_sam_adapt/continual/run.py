"""A continual run: recipe in, a folder with a run per task and the scores of all domains out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..config.arguments import from_file, from_values
from ..config.continual_recipe import NATURAL, ContinualRecipe, Domain
from ..config.recipe import Recipe
from ..data import SegmentationData
from ..errors import UserError, require_extra
from ..files import write_json
from ..hub.push import push_folder
from ..inference.loading import load_plain
from ..inference.processors import is_pool
from ..reporting.cards import write_card
from ..sam.processing import SamAdaptProcessor
from ..training.run import leave_processes, load_data, start_processes
from ..upload import check_can_push
from .folder import ContinualFolder
from .metrics import forgetting, last, summary
from .protocols import PROTOCOLS, Grown
from .protocols.moda import Moda
from .protocols.naive import Naive
from .report import print_continual, save_curves, save_matrix
from .scoring import Scores, TestImages, remembered, score


@dataclass
class ContinualRun:
    """What the protocols work on.

    Attributes:
        domains, data: in order.
        tests: test images by the names of the domains, and of `natural`.
    """

    recipe: ContinualRecipe
    folder: ContinualFolder
    domains: list[Domain]
    data: list[SegmentationData]
    tests: TestImages


def continual(recipe: ContinualRecipe) -> Path:
    """Learn the domains of `recipe` in order, score all test sets after each, write and print what came of it.

    What an earlier invocation has finished, trainings and scores, is not repeated; new domains at the end of the
    recipe are learned in addition. Runs in one process, or in each process that `accelerate launch` starts.

    Returns:
        The folder.

    Raises:
        UserError: bad input, before anything is written.
    """
    require_extra("train", "continual learning")
    state = start_processes()
    run, protocol = _open(recipe)
    # Every process has looked at the folder before one of them writes.
    state.wait_for_everyone()
    if state.is_main_process:
        run.folder.begin(recipe)
    state.wait_for_everyone()
    scores: list[dict[str, Scores]] = []
    names = [domain.name for domain in run.domains]
    natural = [NATURAL] if recipe.natural is not None else []
    for task, title in enumerate(protocol.tasks):
        state.print(f"Task {task + 1} of {len(protocol.tasks)}: {title}.")
        protocol.train(task)
        tests = [names[number] for number in protocol.tests_after(task)] + natural
        scores.append({name: _score(run, protocol, task, name) for name in tests})
    zero_shot = _zero_shot(run, protocol, names + natural)
    results = collect(recipe, names, scores, zero_shot, protocol.earlier)
    results |= {"method": protocol.method, "model": from_file(Recipe, protocol.folder(0) / "recipe.yaml").model}
    if recipe.protocol == "moda":
        results["tasks"] = {name: _about(protocol.folder(task)) for task, name in enumerate(names)}
    if state.is_main_process:
        write_json(run.folder.path / "continual.json", results)
        save_matrix(run.folder.path / "matrix.png", results)
        save_curves(run.folder.path / "curves.png", results)
        if recipe.protocol == "moda":
            write_card(run.folder.path / "pool")
        print_continual(results)
        print(f"Saved to {run.folder.path}.")
    state.wait_for_everyone()
    leave_processes()
    if recipe.push_to_hub and state.is_main_process:
        pool = run.folder.path / "pool"
        push_folder(pool if pool.is_dir() else protocol.folder(len(protocol.tasks) - 1), recipe.repository)
    return run.folder.path


def _open(recipe: ContinualRecipe) -> tuple[ContinualRun, Naive]:
    """The run with its data read and checked; writes nothing."""
    protocol_cls = PROTOCOLS[recipe.protocol]
    if protocol_cls is Moda and recipe.adapter is not None and is_pool(recipe.adapter):
        protocol_cls = Grown
    args: Any = from_values(protocol_cls.args_cls, recipe.protocol_args, f"protocol_args of {recipe.protocol}")
    if recipe.push_to_hub:
        check_can_push(recipe.repository)
    folder = ContinualFolder(recipe)
    domains, natural = recipe.read_domains(), recipe.read_natural()
    data = [_load(recipe, domain) for domain in domains]
    by_name = {domain.name: one for domain, one in zip(domains, data)}
    if natural is not None:
        by_name[NATURAL] = _load(recipe, natural)
    run = ContinualRun(recipe, folder, domains, data, TestImages(by_name, recipe))
    protocol = protocol_cls(run, args)
    protocol.check()
    return run, protocol


def _load(recipe: ContinualRecipe, domain: Domain) -> SegmentationData:
    try:
        data = load_data(recipe.task(domain, Path(recipe.output_dir)))
    except UserError as error:
        raise error.within(f"domain {domain.name}") from error
    if data.num_labels is not None:
        raise UserError(
            f"{domain.dataset} has {data.num_labels} classes",
            where=f"domain {domain.name}",
            fix="make one of them with label_map, or by mask_values: binary",
        )
    return data


def _score(run: ContinualRun, protocol: Naive, task: int, name: str) -> Scores:
    path = run.folder.evaluations / protocol.tasks[task] / f"{name}.json"
    return remembered(path, run.tests.digest(name), lambda: protocol.score(task, name))


def _about(folder: Path) -> dict[str, Any]:
    """What a task's `metrics.json` says of its data, cost and machine; a task of an earlier version knows less."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return {key: metrics[key] for key in ("data", "train", "environment") if key in metrics}


def _zero_shot(run: ContinualRun, protocol: Naive, names: list[str]) -> dict[str, Scores]:
    """Scores of the base model, as the tasks use it."""
    folder = protocol.folder(0)

    def compute(name: str) -> Scores:
        processor = SamAdaptProcessor.from_pretrained(folder)
        base = load_plain(str(from_file(Recipe, folder / "recipe.yaml").model), processor).to(start_processes().device)
        return score(base, processor, run.tests.for_model(name, base, processor), run.recipe, adapted=False)

    path = run.folder.evaluations / "zero_shot"
    return {name: remembered(path / f"{name}.json", run.tests.digest(name), partial(compute, name)) for name in names}


def collect(
    recipe: ContinualRecipe,
    names: list[str],
    scores: list[dict[str, Scores]],
    zero_shot: dict[str, Scores],
    earlier: Sequence[str] = (),
) -> dict[str, Any]:
    """Content of `continual.json`: metrics, matrices and what they are of, for the recipe's first prompt kind.

    Args:
        names: of the domains.
        scores: per task, the scores by test set.
        zero_shot: the base model's, by test set.
        earlier: domains of the pool that the run began with; they have no test sets here.
    """
    kind = recipe.prompts[0]
    results: dict[str, Any] = {}
    matrices: dict[str, Any] = {}
    for metric in ("iou", "biou"):
        matrix = np.array([[one[name][kind][metric] if name in one else np.nan for name in names] for one in scores])
        results |= {f"last_{metric}": last(matrix)} if recipe.protocol == "joint" else summary(matrix, metric)
        matrices[f"matrix_{metric}"] = [[None if np.isnan(cell) else cell for cell in row] for row in matrix.tolist()]
        matrices[f"zero_shot_{metric}"] = [zero_shot[name][kind][metric] for name in names]
        if recipe.natural is not None:
            natural = [one[NATURAL][kind][metric] for one in scores]
            results[f"natural_{metric}"] = natural[-1]
            matrices[f"natural_curve_{metric}"] = natural
            matrices[f"natural_zero_shot_{metric}"] = zero_shot[NATURAL][kind][metric]
    if recipe.protocol == "moda":
        results |= _routing(names, scores, kind, earlier)
    what = {"domains": names, "protocol": recipe.protocol, "prompt": kind}
    return {**results, **matrices, **what, **({"earlier": list(earlier)} if earlier else {})}


def _routing(names: list[str], scores: list[dict[str, Scores]], kind: str, earlier: Sequence[str]) -> dict[str, Any]:
    """Where the router sends the test images after the last task, and the scores with the true domains.

    The accuracy is a mean over the test sets. `confusion` counts images: a row a test set, `natural` included, a
    column a domain, then `base`. The oracle's matrix holds its diagonal and its last row.
    """
    columns, last_row = [*earlier, *names, "base"], scores[-1]
    routed = {name: last_row[name]["routing"] for name in last_row}
    shares = [routed[name].get(name, 0) / sum(routed[name].values()) for name in names]
    results: dict[str, Any] = {
        "routing_accuracy": float(np.mean(shares)),
        "routing_recall": dict(zip(names, shares)),
        "confusion": {name: [counts.get(column, 0) for column in columns] for name, counts in routed.items()},
        "confusion_columns": columns,
    }
    for metric in ("iou", "biou"):
        matrix = np.full((len(names), len(names)), np.nan)
        for task, one in enumerate(scores):
            for number, name in enumerate(names):
                if "oracle" in one.get(name, ()):
                    matrix[task, number] = one[name]["oracle"][kind][metric]
        results |= {f"oracle_last_{metric}": last(matrix), f"oracle_ff_{metric}": forgetting(matrix)}
        results[f"oracle_{metric}"] = matrix[-1].tolist()
    return results
