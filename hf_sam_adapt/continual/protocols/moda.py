"""MoDA: one adapter a domain, trained as if there were no other, and a router that picks one per image (CoSAM)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from peft import PeftConfig
from torch import nn
from tqdm.auto import tqdm

from ...config.recipe import Recipe
from ...data import SegmentationSplit
from ...distributed import SampleLoader
from ...errors import UserError
from ...inference.forward import sam_of
from ...inference.loading import ADAPTER_CONFIG, load_base, named_base
from ...inference.variants import inference
from ...sam.processing import SamAdaptProcessor
from ...training.run import start_processes
from ...tuners.common.adapter_checks import check_adapter_name
from ...tuners.moda import ModaConfig, ModaModel
from ...tuners.stock import pool_refuses
from ..scoring import Scores, score
from .naive import Naive


if TYPE_CHECKING:
    from ..run import ContinualRun


@dataclass(frozen=True)
class ModaArgs:
    """The router's fields of `ModaConfig`."""

    router: Literal["probe", "joint"] = "probe"
    head: Literal["ridge", "ncm", "mahalanobis", "linear"] = "ridge"
    statistics: bool = True
    num_tokens: int | None = None
    learn_tokens: bool = False
    reject: float = 0.01
    buffer_size: int = 256


class Moda(Naive):
    """Isolated trainings, and a pool of their adapters in `pool/`, whose router sees the training images as they are.

    Scores hold, beside those of the routed pool, under `oracle` those with the true domain, and under `routing` how
    many images went to each domain: where that is needed, on a domain's own task and after the last one.
    """

    args_cls = ModaArgs

    def __init__(self, run: ContinualRun, args: ModaArgs) -> None:
        super().__init__(run, args)
        if run.recipe.method == "full":
            raise UserError(
                "full leaves no adapter that a pool could hold", key="method", fix="use another method with moda"
            )
        fitted = run.recipe.normalization not in (None, "imagenet")
        if run.recipe.channels is not None or fitted:
            raise UserError(
                "each domain would be normalised by its own statistics, and a pool has one processor",
                key="channels" if run.recipe.channels is not None else "normalization",
                fix="leave it out: moda takes photographs",
            )
        try:
            ModaConfig(**vars(args))
        except UserError as error:
            raise error.replace(key="protocol_args") from error
        for domain, data in zip(run.domains, run.data):
            if args.reject and len(data.train) < 2:
                raise UserError(
                    "one training image is too few for a reject threshold",
                    where=f"domain {domain.name}",
                    fix="set protocol_args.reject to 0",
                )
        self._pool: ModaModel | None = None

    def check(self) -> nn.Module:
        model = super().check()
        reason = pool_refuses(model)
        if reason is not None:
            raise UserError(f"a pool has no place for them: {reason}", key="method_args", fix="use another tuner")
        for domain in self.run.domains:
            check_adapter_name(sam_of(model), domain.name)
        return model

    def recipe(self, task: int) -> Recipe:
        return self.run.recipe.task(self.run.domains[task], self.folder(task))

    def train(self, task: int) -> None:
        super().train(task)
        if task == len(self.tasks) - 1 and not (self._pool_folder / self.run.domains[task].name).exists():
            self.pool_after(task)

    def score(self, task: int, name: str) -> Scores:
        pool, processor = self.pool_after(task), self._processor
        split, recipe = self.run.tests.images(name), self.run.recipe
        with pool.using("auto"):
            scores = score(pool, processor, split, recipe)
        last = task == len(self.tasks) - 1
        if name in pool.domains and (last or name == pool.domains[-1]):
            with pool.using(name):
                scores["oracle"] = score(pool, processor, split, recipe)
        if last:
            with inference([pool], recipe.precision):
                counts = Counter(name for pixels in self._batches(split) for name in pool.route(pixels).domains)
            scores["routing"] = dict(sorted(counts.items()))
        return scores

    def pool_after(self, task: int) -> ModaModel:
        """The pool with the domains of the tasks up to `task`; called for rising tasks only.

        What an earlier invocation put into `pool/` is read from there, features included, not from its images again;
        but not where tokens are learned and those in `pool/` are a later task's.
        """
        wanted = len(self.earlier) + task + 1
        if self._pool is None:
            pool = self._opened(self.is_stored)
            self._stored = len(pool.domains)
            if self.args.learn_tokens and self._stored > wanted:
                pool = self._opened(stored=False)
            self._pool = pool.to(start_processes().device).eval()
            if pool.domains:
                pool.keep_first(min(len(pool.domains), wanted))
        pool = self._pool
        while len(pool.domains) < wanted:
            number = len(pool.domains) - len(self.earlier)
            pool.add_domain(self.run.domains[number].name, self.folder(number))
            if self.args.learn_tokens:
                pool.fit_tokens(self._batches(self.run.data[number].train))
            with inference([pool], self.run.recipe.precision):
                for pixels in self._batches(self.run.data[number].train):
                    pool.observe(pixels)
            pool.finish_domain()
            if len(pool.domains) > self._stored:
                self._save(pool)
        return pool

    def _opened(self, stored: bool) -> ModaModel:
        """The pool as `pool/` holds it, or the one that the run begins with."""
        self._processor = SamAdaptProcessor.from_pretrained(self.folder(0))
        config = PeftConfig.from_pretrained(str(self.folder(0)))
        base, _ = load_base(str(named_base(config.to_dict())))
        if stored:
            return ModaModel.from_pretrained(base, self._pool_folder)
        pool = ModaModel(base, ModaConfig(inner=config, **vars(self.args), seed=self.run.recipe.seed))
        pool.moda_config.base_model_name_or_path = config.base_model_name_or_path
        pool.moda_config.revision = config.revision
        return pool

    @property
    def is_stored(self) -> bool:
        """Whether an earlier invocation has left `pool/`."""
        return (self._pool_folder / ADAPTER_CONFIG).exists()

    @property
    def _pool_folder(self) -> Path:
        return self.run.folder.path / "pool"

    def _save(self, pool: ModaModel) -> None:
        state = start_processes()
        if state.is_main_process:
            pool.save_pretrained(self._pool_folder)
            self._processor.save_pretrained(self._pool_folder)
        state.wait_for_everyone()

    def _batches(self, split: SegmentationSplit) -> Iterator[torch.Tensor]:
        """Pixels (B, 3, S, S) of all images, without augmentation."""
        recipe, state = self.run.recipe, start_processes()
        loader = SampleLoader(split, batch_size=recipe.batch_size, num_workers=recipe.num_workers, collate_fn=list)
        with tqdm(total=len(split), desc="route", unit="image", disable=not state.is_main_process, leave=False) as bar:
            for samples in loader:
                yield self._processor([sample.image for sample in samples])["pixel_values"].to(state.device)
                bar.update(len(samples))
