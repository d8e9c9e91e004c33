"""`hf-sam-adapt evaluate`."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..config.recipe import Recipe
from ..config.shared_keys import MaskKeys
from ..data.tiles import resolve_tiles
from ..errors import UserError, require_extra
from ..files import check_folder, holds_run, write_json
from ..inference.variants import check_domain, routed, variants_of
from ..names import check_route, check_tile
from ..sam.attention import Kind
from ..sam.processing import SamAdaptProcessor
from ..training.earlier_run import EarlierRun
from ..training.task import Result, task_of
from .arguments import EvaluateArguments


if TYPE_CHECKING:
    from ..data import SegmentationSplit
    from ..evaluation.measurement import Measurement


DATA_KEYS = (*(field.name for field in fields(MaskKeys)), "mask_values", "seed")
WRITTEN = (
    "metrics.json per_image.csv per_volume.csv worst.png samples.png confusion.png f_measure.png "
    "prompt_sensitivity.png"
).split()
_SCORE_KEYS = ("prompts", "metrics", "beta2", "ber_threshold", "ignore_background")


def evaluate_command(args: EvaluateArguments) -> Result:
    """Evaluates on the test images, prints the table, and with `output_dir` writes metrics.json, per_image.csv and
    pictures there.

    A data set without test images is evaluated on its validation images, or on its training images if it has no
    others; table and file say so (`measured_on`). An earlier evaluation in `output_dir` is replaced. Works in one
    process and under `accelerate launch`.

    Raises:
        UserError: no data set, adapter or model named; other classes than the model's; `output_dir` is a run folder or
            its logs, or has files of these names that no evaluation has written.
    """
    from accelerate import PartialState

    from ..data import load_segmentation_dataset
    from ..data.volumes.folder import is_volume_set
    from ..evaluation.instances import evaluate_instances
    from ..names import class_names, compare_names, read_id2label
    from ..reporting.curves import save_threshold_curves
    from ..reporting.prompts import print_prompt_tables, save_sensitivity

    earlier = None if args.adapter is None else EarlierRun.read(args.adapter)
    chosen = _chosen_data(args, earlier)
    output_dir = _checked(args, chosen)
    prompts, further, seed = chosen.pop("prompts"), chosen.pop("metrics"), chosen["seed"]
    ignore_background = chosen.pop("ignore_background", False)
    settings = {key: chosen.pop(key, None) for key in ("beta2", "ber_threshold")}
    if not args.surface_tolerance >= 0:
        raise UserError(f"{args.surface_tolerance} is below 0", key="surface_tolerance")
    state = PartialState()
    model, processor, choice = _model_and_variants(args.adapter, args.model, args.attention)
    check_domain(model, args.domain)  # a wrong one is said before anything is measured
    with state.main_process_first():
        config, said = getattr(model, "peft_config", {}).get("default"), []
        num_labels, id2label = getattr(config, "num_labels", None), getattr(config, "id2label", None)
        if num_labels is not None and id2label is not None:  # that of an old adapter may lack some
            id2label = dict(enumerate(class_names(num_labels, id2label)))
            said = compare_names(id2label, read_id2label(args.id2label) or {}, str(chosen["dataset"]))
        classes: dict[str, Any] = {"num_labels": num_labels, "id2label": id2label, "channels": processor.channels}
        known = None if earlier is None else earlier.known(chosen["dataset"])
        if processor.slices is not None and is_volume_set(chosen["dataset"]):
            chosen = processor.slices | {key: value for key, value in chosen.items() if value is not None}
        data = load_segmentation_dataset(**chosen, **classes, known=known)
    if data.num_labels != num_labels:
        raise UserError(
            f"{data.name} has {data.num_labels or 'no'} classes, the model segments {num_labels or 'one'}",
            key="dataset",
            fix="make them agree with label_map, palette or mask_values",
        )
    if data.slices is None and args.surface_tolerance != EvaluateArguments.surface_tolerance:
        raise UserError(f"of volumes, and {data.name} has none", key="surface_tolerance", fix="leave it out")
    how = {key: getattr(args, key) for key in ("batch_size", "precision", "num_workers")}
    scored = {"prompts": prompts, "metrics": further, "ignore_background": ignore_background, "seed": seed}
    scored["surface_tolerance"] = args.surface_tolerance
    cut = _cut(args, earlier)
    tiles, rounded = resolve_tiles(**cut, image_size=processor.image_size, patch_size=processor.patch_size)
    task = task_of(Recipe(**scored, **settings, **how, **cut), data)
    task.check()
    said += data.notes + ([] if earlier is None else earlier.notes(data, chosen["dataset"], seed))
    for note in rounded + said:
        state.print(note)
    measured_on, split = data.measured
    for network in (model, choice.get("zero_shot_model")):
        if network is not None:
            network.to(state.device)
    if num_labels is not None and (args.clicks or args.prompt_sensitivity or args.instances):
        raise UserError(
            "classes are segmented without prompts",
            key="clicks, prompt_sensitivity, instances",
            fix="leave them unset",
        )
    with routed(model, args.domain):
        along = {} if tiles is not None else _measurements(args, model, processor, split, choice)
        result = task.measure(model, processor, split, route=args.route, also=[*along.values()], **choice)
        answers = {name: measurement.result() for name, measurement in along.items()}
        if args.instances and tiles is not None:
            parts: Any = how | choice | {"tiles": tiles}
            answers["instances"] = evaluate_instances(model, processor, split, args.instances, **parts)
    if state.is_main_process:
        metrics = {"test": result.test, "measured_on": measured_on, **task.counted(result), **answers}
        task.print_tables(metrics)
        print_prompt_tables(metrics)
        if output_dir is not None:
            output_dir.mkdir(parents=True, exist_ok=True)
            for name in WRITTEN[1:]:  # metrics.json, by which they are known as ours, is replaced
                (output_dir / name).unlink(missing_ok=True)
            write_json(output_dir / "metrics.json", metrics)
            save_threshold_curves(output_dir / "f_measure.png", result.test.get("none") or {})
            with routed(model, args.domain):
                task.draw(output_dir, model, processor, split, result, **choice)
                task.list_images(output_dir, model, processor, split, result, **choice)
                if args.prompt_sensitivity:
                    path, part = output_dir / "prompt_sensitivity.png", answers["prompt_sensitivity"]
                    save_sensitivity(path, model, processor, split, part, precision=args.precision, **choice)
    return result


def _measurements(
    args: EvaluateArguments,
    model: nn.Module,
    processor: SamAdaptProcessor,
    split: SegmentationSplit,
    choice: dict[str, Any],
) -> dict[str, Measurement]:
    """What `clicks`, `prompt_sensitivity` and `instances` ask for, by its name in metrics.json."""
    from ..evaluation.clicks import Clicks
    from ..evaluation.instances import Instances
    from ..evaluation.sensitivity import Sensitivity

    variants = variants_of(model, **choice)
    found: dict[str, Measurement] = {}
    if args.clicks:
        found["clicks"] = Clicks(processor, variants, args.clicks)
    if args.prompt_sensitivity:
        found["prompt_sensitivity"] = Sensitivity(processor, variants, args.prompt_sensitivity)
    if args.instances:
        found["instances"] = Instances(processor, variants, split, args.instances)
    return found


def _model_and_variants(
    adapter: str | None, model: str | None, attention: Kind = "auto"
) -> tuple[nn.Module, SamAdaptProcessor, dict[str, Any]]:
    """Loads an adapter, or a plain SAM where none is named.

    A fully trained model does not hold its base: that is `model`, or what the run's `recipe.yaml` names, or left out.
    Nor does one with an adapter that writes into it, such as PiSSA.

    Returns:
        The model on CPU, its processor, and the arguments `adapted`, `zero_shot` and `zero_shot_model` of `evaluate`.
    """
    from ..inference.loading import load_for_inference, load_plain
    from ..tuners.stock import changes_base

    loaded = load_for_inference(adapter, model, attention)
    if adapter is None:
        return loaded.model, loaded.processor, {"adapted": False}
    if loaded.config is not None and not changes_base(loaded.config):
        return loaded.model, loaded.processor, {}
    base_name = loaded.base_name or model or EarlierRun.read(adapter).taken(["model"]).get("model")
    if base_name is None:
        return loaded.model, loaded.processor, {"zero_shot": False}
    plain = load_plain(base_name, loaded.processor, attention)
    return loaded.model, loaded.processor, {"zero_shot_model": plain}


def _chosen_data(args: EvaluateArguments, earlier: EarlierRun | None) -> dict[str, Any]:
    """Arguments of `load_segmentation_dataset`, and the keys of `_SCORE_KEYS`.

    What is unset comes from the run; for another data set only the seed: were it a copy that has grown, a split drawn
    by another seed would score images that the adapter was trained on.
    """
    keys = (*DATA_KEYS, *_SCORE_KEYS)
    run: dict[str, Any] = {}
    if earlier is not None and args.dataset is None:
        run = earlier.taken(keys)
    elif earlier is not None:
        run = earlier.taken([key for key in keys if key != "dataset"] if earlier.is_of(args.dataset) else ["seed"])
    chosen: dict[str, Any] = {"mask_values": "auto", "seed": 0, "prompts": ["none"], "metrics": []}
    for source in (run, vars(args)):
        chosen |= {key: source[key] for key in keys if source.get(key) is not None}
    if args.metrics is None and "none" not in chosen["prompts"]:
        chosen["metrics"] = []
    if args.metrics is not None or not chosen["metrics"]:
        chosen |= {key: getattr(args, key) for key in ("beta2", "ber_threshold")}  # the run's are of its metrics
    return chosen | {key: list(dict.fromkeys(chosen[key])) for key in ("prompts", "metrics")}


def _cut(args: EvaluateArguments, earlier: EarlierRun | None) -> dict[str, Any]:
    """`tile` and `overlap`: as given, else those of the run, whose model has seen images at that scale.

    Raises:
        UserError: tiles and what is measured on whole images.
    """
    cut: dict[str, Any] = {"tile": args.tile, "overlap": args.overlap}
    if args.tile is None and earlier is not None:
        cut = {"tile": None, "overlap": None} | earlier.taken(["tile", "overlap"])
        cut |= {} if args.overlap is None else {"overlap": args.overlap}
    if cut["tile"] is None:
        check_route(args.route, None)
        return cut
    for key in ("clicks", "prompt_sensitivity"):
        if getattr(args, key):
            raise UserError("measured on whole images, and tile cuts them", key=key, fix="leave one of them out")
    return cut


def _checked(args: EvaluateArguments, chosen: dict[str, Any]) -> Path | None:
    """The output folder, after everything that can be refused before loading."""
    if "dataset" not in chosen:
        raise UserError("not given", key="dataset", fix="name a folder, a Hub id or synthetic:<domain>")
    if args.adapter is None and args.model is None:
        raise UserError("not given", key="adapter", fix="name a run folder or Hub id, or a plain SAM with --model")
    for name in ("batch_size", "num_workers"):
        value = getattr(args, name)
        if value is not None and value < (name == "batch_size"):
            raise UserError(f"{value} is too small", key=name)
    check_tile(args.tile, None if args.tile is None else args.overlap)
    if args.clicks < 0:
        raise UserError(f"{args.clicks} is below 0", key="clicks")
    if args.instances:
        require_extra("instances", "average precision")
    return None if args.output_dir is None else _output_folder(Path(args.output_dir).expanduser())


def _output_folder(folder: Path) -> Path:
    """The folder, in which nothing will be replaced but an earlier evaluation."""
    check_folder(folder, "output_dir")
    if holds_run(folder):
        raise UserError(
            f"{folder} holds a run, whose metrics.json would be lost", key="output_dir", fix="name another folder"
        )
    place = folder.resolve()
    if any(part.name == "logs" and holds_run(part.parent) for part in (place, *place.parents)):
        raise UserError(
            f"{folder} holds the logs of a run, which would be lost", key="output_dir", fix="name another folder"
        )
    there = [folder / name for name in WRITTEN if (folder / name).exists()]
    if there and not _is_evaluation(folder / "metrics.json"):
        raise UserError(
            f"{there[0]} is there already, and no evaluation has written it",
            key="output_dir",
            fix="name another folder, or move it away",
        )
    return folder


def _is_evaluation(file: Path) -> bool:
    """Whether it is the metrics.json of an evaluation; that of a training says more."""
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(metrics, dict) and {"test", "measured_on"} <= metrics.keys() and "train" not in metrics
