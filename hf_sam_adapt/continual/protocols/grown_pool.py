"""MoDA that goes on from a pool: its domains stay as they are, and those of the recipe come in addition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...config.recipe import Recipe
from ...errors import UserError
from ...files import check_domain_name
from ...inference.loading import load_adapted, load_base, method_of
from ...training.resolve import is_of_method
from ...tuners.moda import ModaModel
from ...tuners.moda.config import FILE_FIELDS, build_inner
from .moda import Moda, ModaArgs


if TYPE_CHECKING:
    from ..run import ContinualRun


class Grown(Moda):
    """`Moda` with a pool as the recipe's `adapter`, of whose domains no image is needed.

    The further domains are trained as the pool's inner config says; the router goes on from the features in the pool.

    Raises:
        UserError: keys that the pool decides, or a domain that it has already.
    """

    def __init__(self, run: ContinualRun, args: ModaArgs) -> None:
        recipe = run.recipe
        start = load_adapted(str(recipe.adapter), recipe.model)
        assert isinstance(start.model, ModaModel)  # that is when this class is chosen
        config, inner = start.model.moda_config, build_inner(start.model.moda_config.inner)
        if args != ModaArgs() or recipe.method_args:
            key = "method_args" if recipe.method_args else "protocol_args"
            raise UserError(f"the pool {recipe.adapter} has its own", key=key, fix=f"leave {key} out")
        if recipe.method != Recipe.method and not is_of_method(inner, recipe.method):
            raise UserError(
                f"{recipe.method}, but the domains of {recipe.adapter} are {method_of(inner)}", key="method"
            )
        reads = {"image_size": start.processor.image_size, "resize": start.processor.resize}
        kind = (start.processor.normalization or {"kind": "imagenet"})["kind"]
        for key, own in {**reads, "normalization": kind}.items():
            given = getattr(recipe, key)
            if given not in (None, own):
                raise UserError(f"the pool {recipe.adapter} has {own}, not {given}", key=key, fix=f"leave {key} out")
        for domain in run.domains:
            check_domain_name(domain.name, config.domains)
        super().__init__(run, ModaArgs(**{name: getattr(config, name) for name in vars(args)}))
        self.earlier = list(config.domains)
        self._start, self._base_name = start.model, str(start.base_name)
        self._processor = self.like = start.processor
        default = type(inner)().to_dict()
        set_fields = {key: value for key, value in inner.to_dict().items() if value != default.get(key)}
        self._decided: dict[str, Any] = {
            "adapter": None,
            "model": self._base_name,
            "method": self.method,
            "method_args": {key: value for key, value in set_fields.items() if key not in FILE_FIELDS},
            **reads,
        }

    @property
    def method(self) -> str:
        return method_of(build_inner(self._start.moda_config.inner))

    def recipe(self, task: int) -> Recipe:
        return self.run.recipe.task(self.run.domains[task], self.folder(task), **self._decided)

    def _opened(self, stored: bool) -> ModaModel:
        if not stored:
            return self._start
        base, _ = load_base(self._base_name)
        return ModaModel.from_pretrained(base, self._pool_folder)
