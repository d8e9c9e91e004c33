"""One run: recipe in, run folder out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    ProjectConfiguration,
    parse_flag_from_env,
    set_seed,
)
from torch import nn

from ..config.recipe import Recipe, ResolvedRecipe
from ..data import SegmentationData, load_segmentation_dataset
from ..data.reading import READ_KEYS
from ..errors import UserError, require_extra
from ..files import write_json
from ..hub.push import push_folder
from ..inference.embeddings.cache import EmbeddingCache, check_cacheable
from ..inference.loading import load_plain, save_adapter
from ..inference.precision import warn_if_emulated
from ..reporting.cards import write_card
from ..reporting.curves import save_threshold_curves
from ..sam.families import vision_encoder
from ..sam.processing import SamAdaptProcessor
from ..sam.windows import windows_removed
from ..tuners.common.decoder import lacks_gradients
from ..tuners.stock import changes_base, config_of
from ..upload import check_can_push
from .earlier_run import EarlierRun
from .experts import save_expert_plot
from .history import save_curve
from .loop import TrainingLoop
from .provenance import data_facts, environment_facts
from .resolve import load_model
from .run_folder import RunFolder
from .sharding import check_sharding, tell_deepspeed
from .task import task_of
from .trackers import check_trackers, start_trackers


def train(
    recipe: Recipe,
    *,
    data: SegmentationData | None = None,
    prepare: Callable[[TrainingLoop], None] | None = None,
    like: SamAdaptProcessor | None = None,
    keep_processes: bool = False,
) -> Path:
    """Adapt SAM as `recipe` says: train, choose the best checkpoint, measure on the test images, save.

    Runs in one process, or in each process that `accelerate launch` starts. Bad input raises before anything is
    written.

    Args:
        data: used in place of the recipe's data set.
        prepare: given the loop before its first step and before it is resumed; may change the model's weights and set
            `loop.regularizer`.
        like: images are prepared as by this processor, see `load_model`.
        keep_processes: leave their group as it is, for what they do together next.

    Returns:
        The run folder.

    Raises:
        UserError: bad input, a loss that is not finite, or, when all is saved, a push that failed.
    """
    require_extra("train", "training")
    if recipe.dataset is None:
        raise UserError(
            "missing", key="dataset", fix="name a folder with images/ and masks/, a Hub id, or synthetic:<domain>"
        )
    if recipe.precision == "fp16" and start_processes().device.type == "cpu":
        raise UserError("fp16 needs a GPU", key="precision", fix="use bf16 or no on a CPU")
    check_trackers(recipe.report_to)
    if recipe.push_to_hub:
        check_can_push(recipe.repository)
    folder = RunFolder(recipe)
    set_seed(recipe.seed)
    if data is None:
        data = load_data(recipe)
        if (earlier := _earlier_run(recipe)) is not None:
            data.notes += earlier.notes(data, recipe.dataset, recipe.seed)
        if data.slices is None and recipe.surface_tolerance != Recipe.surface_tolerance:
            raise UserError(f"of volumes, and {data.name} has none", key="surface_tolerance", fix="leave it out")
    if recipe.early_stopping is not None and data.val is None:
        raise UserError("there are no validation images", key="early_stopping", fix="add some, or leave it out")
    resolved, model, processor = load_model(recipe, data, like)
    if resolved.cache_embeddings:
        check_cacheable(model)
    folder.check_same_run(resolved)

    accelerator = build_accelerator(resolved, model, folder)
    loop = TrainingLoop(
        resolved, accelerator, model, processor, data, folder.checkpoints, task_of(resolved, data).loss_weights()
    )
    loop.check_objects()
    if prepare is not None:
        prepare(loop)
    if resolved.resume_from_checkpoint is not None:
        loop.resume(resolved.resume_from_checkpoint)
    # Before there is a run folder: a build that is interrupted is continued by the same command.
    cache = embed(loop) if resolved.cache_embeddings else None
    folder.check_shared()
    if accelerator.is_main_process:
        folder.begin(resolved, data)
    accelerator.wait_for_everyone()
    announce(accelerator, loop, data)
    start_trackers(accelerator, resolved, folder.logs)
    loop.run()
    finish(loop, folder, data, cache)
    for tracker in accelerator.trackers:
        tracker.finish()
    if not keep_processes:
        leave_processes()
    # Last, when the folder is whole and no other process waits.
    if resolved.push_to_hub and accelerator.is_main_process:
        push_folder(folder.path, resolved.repository)
    return folder.path


def start_processes() -> PartialState:
    """Join the processes of `accelerate launch` or torchrun, by gloo where a CPU is all there is or is wanted."""
    # Without `cpu` Accelerate leaves CPU processes that torchrun has started unaware of each other.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=cpu)


def leave_processes() -> None:
    """End what `start_processes` began, in every process."""
    state = start_processes()
    if state.num_processes > 1:
        # Gloo's thread takes the GIL once more, to let go of the last barrier. A destructor that holds the GIL while
        # it waits for that thread would wait forever.
        time.sleep(0.2)
    state.destroy_process_group()


def load_data(recipe: Recipe) -> SegmentationData:
    """The recipe's data set, read and checked by the main process first; images that are known to the run that this
    one continues keep their sides.

    Raises:
        UserError: whatever is wrong with it.
    """
    keys = {key: getattr(recipe, key) for key in READ_KEYS}
    with start_processes().main_process_first():
        earlier = _earlier_run(recipe)
        known = None if earlier is None else earlier.known(recipe.dataset)
        return load_segmentation_dataset(recipe.dataset, known=known, **keys)


def _earlier_run(recipe: Recipe) -> EarlierRun | None:
    """The interrupted run, or that of the adapter to start from."""
    if recipe.resume_from_checkpoint is not None and (Path(recipe.output_dir) / "recipe.yaml").is_file():
        return EarlierRun.read(recipe.output_dir)
    return None if recipe.adapter is None else EarlierRun.read(recipe.adapter)


def build_accelerator(recipe: ResolvedRecipe, model: nn.Module, folder: RunFolder) -> Accelerator:
    """Accelerator of the recipe's precision, accumulation and trackers."""
    unused = DistributedDataParallelKwargs(find_unused_parameters=lacks_gradients(model, recipe.prompts))
    # An earlier run in this process may have had another precision, which Accelerate would insist on.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        mixed_precision=recipe.precision,
        log_with=recipe.report_to or None,
        project_config=ProjectConfiguration(project_dir=str(folder.path), logging_dir=str(folder.logs)),
        kwargs_handlers=[unused],
    )
    warn_if_emulated(recipe.precision, accelerator.device)
    check_sharding(accelerator)
    tell_deepspeed(accelerator, recipe)
    return accelerator


def announce(accelerator: Accelerator, loop: TrainingLoop, data: SegmentationData) -> None:
    """Say what is trained on what."""
    for note in data.notes:
        accelerator.print(note)
    counts = {name: len(getattr(data, name) or ()) for name in ("train", "val", "test")}
    tiles = f", cut into {len(loop.images):,} tiles an epoch" if loop.recipe.tile is not None else ""
    trained, total = (sum(p.numel() for p in group) for group in (loop.trained, loop.model.parameters()))
    accelerator.print(
        f"{data.name}: {counts['train']} training{tiles}, {counts['val']} validation, {counts['test']} test images; "
        f"{trained:,} of {total:,} parameters trained; "
        f"{loop.schedule.total} steps of {loop.schedule.images_per_step} images."
    )


def embedding_cache(recipe: Recipe, model: nn.Module, processor: SamAdaptProcessor) -> EmbeddingCache:
    """The cache of a model's embeddings, by the recipe's precision, batch size and workers."""
    how: dict[str, Any] = {key: getattr(recipe, key) for key in ("precision", "batch_size", "num_workers")}
    return EmbeddingCache(model, processor, **how)


def embed(loop: TrainingLoop) -> EmbeddingCache:
    """Give the loop embeddings in place of training and validation images; the test images stay unopened."""
    data, cache = loop.data, embedding_cache(loop.recipe, loop.whole.current(), loop.processor)
    embedded: Any = cache.embed(*filter(None, (data.train, data.val)))  # stand for splits of images
    loop.data = dataclasses.replace(data, train=embedded[0], val=embedded[1] if data.val is not None else None)
    return cache


def finish(loop: TrainingLoop, folder: RunFolder, data: SegmentationData, cache: EmbeddingCache | None) -> None:
    """Measure the trained model on the test images, and write what the run leaves.

    Args:
        data: with images, which the samples show; `loop.data` may hold embeddings.
    """
    recipe, accelerator, model = loop.recipe, loop.accelerator, loop.whole.current()
    zero_shot: dict[str, nn.Module] = {}
    without_windows = windows_removed(vision_encoder(model))
    if recipe.method == "full" or without_windows or changes_base(config_of(model)):
        name = (recipe.adapter or recipe.model) if recipe.method == "full" else recipe.model
        plain = load_plain(name, loop.processor, recipe.attention)
        zero_shot["zero_shot_model"] = plain.to(accelerator.device)
    measured_on, split = data.measured
    try:
        # A plain SAM has embeddings of its own.
        scored = split if cache is None or zero_shot else cache.embed(split)[0]
        result = loop.task.measure(model, loop.processor, scored, **zero_shot)
    except UserError as error:
        go_on = f"then go on with resume_from_checkpoint: latest (the trained weights are in {folder.checkpoints})"
        fix = f"{error.fix or 'correct it'}, {go_on}"
        raise error.replace(key=error.key or "dataset", fix=fix).within(measured_on) from error

    def write(target: Path) -> None:
        save_adapter(model, target)
        weights = [file for file in target.iterdir() if file.suffix == ".safetensors"]
        train = {
            "images_per_second": loop.state.images_per_second,
            "peak_memory_bytes": loop.state.peak_memory_bytes,
            "trainable_parameters": sum(parameter.numel() for parameter in loop.trained),
            "adapter_bytes": sum(file.stat().st_size for file in weights),
            "best_step": loop.state.best_step,
            "best_val_iou": loop.state.best_iou,
        }
        loop.processor.save_pretrained(target)
        metrics = {
            "test": result.test,
            "measured_on": measured_on,
            **loop.task.counted(result),
            "train": train,
            "data": data_facts(data),
            "environment": environment_facts(accelerator.device, accelerator.num_processes),
            "history": {"train": loop.state.history, "validation": loop.state.validations},
        }
        write_json(target / "metrics.json", metrics)
        loop.task.draw(target, model, loop.processor, split, result, **zero_shot)
        save_threshold_curves(target / "f_measure.png", result.test.get("none") or {})
        beaten = next(iter(result.test.values()))
        references = {
            f"{title}, {measured_on}": (beaten.get(key) or {}).get("iou")
            for key, title in (("zero_shot", "zero-shot"), ("constant", "best constant"))
        }
        save_curve(loop.state.history, loop.state.validations, target / "curve.png", references)
        if loop.state.experts:
            save_expert_plot(loop.state.experts, target / "experts.png")
        write_card(target, recipe=recipe)
        loop.task.print_tables(metrics)

    if accelerator.is_main_process:
        folder.finish(write)
        # Beside what is never pushed: names of files may be patients'.
        loop.task.list_images(folder.logs, model, loop.processor, split, result, **zero_shot)
        print(f"Saved to {folder.path}.")
    accelerator.wait_for_everyone()
