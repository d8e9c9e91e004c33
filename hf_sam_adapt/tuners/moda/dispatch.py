"""One call for a batch of several domains: `domain=` of a SAM's forward, and the grouping behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ...errors import UserError
from ...sam.families import family_of
from ..common.layer import as_keywords


if TYPE_CHECKING:
    from .model import ModaModel

# Arguments of `SamModel.forward` with one entry an image.
_PER_IMAGE = (
    "input_points",
    "input_labels",
    "input_boxes",
    "input_masks",
    "image_embeddings",
    "early_embeddings",
    "intermediate_embeddings",
)
_WHOLE = ("multimask_output",)
# The modules in which PEFT keeps the active adapter.
ADAPTER_LAYERS = (BaseTunerLayer, AuxiliaryTrainingWrapper)


def groups_of(names: list[str]) -> dict[str, list[int]]:
    """The rows of each domain, in the order in which the domains first occur."""
    rows: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        rows.setdefault(name, []).append(index)
    return rows


def adapter_layers(model: nn.Module) -> list[nn.Module]:
    """The `ADAPTER_LAYERS` of `model`."""
    return [module for module in model.modules() if isinstance(module, ADAPTER_LAYERS)]


def restore_order(order: list[int]) -> list[int]:
    """Where each row stands in a sequence that has row `order[i]` in place i."""
    return sorted(range(len(order)), key=order.__getitem__)


@contextmanager
def activated(layers: list[nn.Module], adapter: str | None) -> Iterator[None]:
    """Make `adapter` (None: no adapter) the active one of `layers`, and put everything back.

    PEFT's `set_adapter` and `disable_adapter_layers` change `requires_grad` of every parameter, too; this does not.
    """
    before = [(layer, layer._active_adapter, layer._disable_adapters) for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = adapter is None
            if adapter is not None:
                layer._active_adapter = [adapter]
        yield
    finally:
        for layer, active, disabled in before:
            layer._active_adapter, layer._disable_adapters = active, disabled


class DomainDispatch:
    """Forward pre-hook and hook of a `SamModel` that take its keyword `domain`.

    A batch of several domains is cut into one batch a domain; all but the last are run from within the pre-hook, the
    last is the call itself, and the hook joins the outputs in the order of the images. An object instead of closures,
    so that a model with it can be copied and pickled.

    Args:
        pool: the tuner; `domain` is resolved by its active adapter.
    """

    def __init__(self, pool: ModaModel):
        self.pool = pool
        self._calls: list[_Call] = []

    def register(self, model: nn.Module) -> None:
        """Put both hooks on `model`."""
        model.register_forward_pre_hook(self.before, prepend=True, with_kwargs=True)
        model.register_forward_hook(self.after, always_call=True)

    @staticmethod
    def on(model: nn.Module) -> bool:
        """Whether a dispatch has its hooks on `model`."""
        return bool(_own(model._forward_hooks))

    @staticmethod
    def remove(model: nn.Module) -> None:
        """Take the hooks of a dispatch off `model`."""
        for key in _own(model._forward_pre_hooks):
            del model._forward_pre_hooks[key], model._forward_pre_hooks_with_kwargs[key]
        for key in _own(model._forward_hooks):
            del model._forward_hooks[key], model._forward_hooks_always_called[key]

    def before(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Forward pre-hook: settles the domains, runs all groups but the last, and leaves that to the forward."""
        call = _Call()
        call.stack.enter_context(self.pool.lock)
        self._calls.append(call)  # first of all: `after` runs even if what follows raises
        if getattr(module, "_is_replica", False):
            raise UserError(
                "a pool of domains cannot be run by nn.DataParallel, whose replicas would share its active adapter",
                fix="start a process for each GPU, with accelerate launch or torchrun",
            )
        domain = kwargs.pop("domain", None)
        if self.pool.disabled or not self.pool.active_adapters:
            return args, kwargs
        domain = self.pool.resolve(domain)
        args, kwargs = (), as_keywords(module, args, kwargs)
        if "multimask_output" not in kwargs:  # of plain SAM, too: the images of a batch have equally many masks
            kwargs["multimask_output"] = getattr(self.pool.moda_config.inner, "multimask_output", False)
        if isinstance(domain, str) and domain != "auto":
            call.stack.enter_context(self.pool.activated(domain))
            return args, kwargs
        kwargs, names = self._encoded(kwargs, domain)
        groups = self.pool.decoder_groups(names)
        if len(set(names)) > 1 and module.training and torch.is_grad_enabled():
            raise UserError(
                "a training step takes one domain at a time", key="domain", fix="name it, or call eval() first"
            )
        if self.pool.gives_one_mask:
            groups = [(name, rows, extra | {"multimask_output": False}) for name, rows, extra in groups]
        *others, last = [_rows(kwargs, rows) | {"domain": name} | extra for name, rows, extra in groups]
        call.embeddings = kwargs.get("image_embeddings")
        call.outputs = [module(**one) for one in others]
        call.order = [row for _, rows, _ in groups for row in rows]
        call.stack.enter_context(self.pool.activated(last.pop("domain")))
        return (), last

    def _encoded(self, kwargs: dict, domain: str | list[str]) -> tuple[dict, list[str]]:
        """The call's arguments with embeddings for pixels, and a name an image."""
        unfit = [
            k for k, v in kwargs.items() if k not in ("pixel_values", *_PER_IMAGE, *_WHOLE) and not _is_unset(k, v)
        ]
        if unfit:
            raise UserError(
                "not with images of several domains", where=", ".join(unfit), fix="name one domain for the call"
            )
        kwargs = dict(kwargs)
        pixel_values = kwargs.pop("pixel_values", None)
        if pixel_values is None:
            if domain == "auto":
                raise UserError(
                    "domain='auto' reads pixel_values", fix="beside image_embeddings give a list with a name an image"
                )
            if kwargs.get("image_embeddings") is None:
                raise UserError(
                    "there is nothing to segment", key="domain", fix="give pixel_values or image_embeddings"
                )
            return kwargs, self.pool.checked(domain, _count(kwargs["image_embeddings"]))
        embeddings = self.pool.encode(pixel_values, domain)
        images = torch.arange(len(embeddings), device=self.pool.model.device)
        runs = tuple((image, 1) for image in range(len(embeddings)))
        inputs = family_of(self.pool.model).decoder_inputs(embeddings, images, runs)
        if embeddings.early is not None and "intermediate_embeddings" not in inputs:
            inputs["early_embeddings"] = embeddings.early
        return kwargs | inputs, self.pool.names_of(embeddings.domains)

    def after(self, module: nn.Module, args: tuple, output):
        """Forward hook: puts the active adapter back, and joins the outputs of the groups."""
        call = self._calls.pop()
        call.stack.close()
        if output is None or (call.order == sorted(call.order) and not call.outputs):  # it raised, or was not cut
            return None
        places, outputs = restore_order(call.order), [*call.outputs, output]
        channels = sorted({one.pred_masks.shape[2] for one in outputs})
        if len(channels) > 1:
            raise UserError(
                f"masks of {' and '.join(map(str, channels))} channels do not fit in one batch",
                key="domain",
                fix="segment the images of 'base' in a call of their own",
            )
        joined = {
            key: call.embeddings if isinstance(output[key], list) else torch.cat([one[key] for one in outputs])[places]
            for key in output.keys()  # lists are the image embeddings, which SAM 2 and 3 return as they came
        }
        return type(output)(**joined)


class _Call:
    """What one call of the model has to put back and to join."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.outputs: list = []
        self.order: list[int] = []
        self.embeddings: torch.Tensor | list | None = None


def _own(hooks: dict) -> list[int]:
    return [key for key, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), DomainDispatch)]


def _is_unset(name: str, value) -> bool:
    """Whether an argument of `SamModel.forward` asks for nothing beyond what a call without it gives."""
    return value is None or value is (name == "return_dict")


def _rows(kwargs: dict, rows: list[int]) -> dict:
    batch = next(_count(value) for key, value in kwargs.items() if key in _PER_IMAGE and value is not None)
    if rows == list(range(batch)):
        return kwargs
    return {key: _chosen(value, rows) if key in _PER_IMAGE else value for key, value in kwargs.items()}


def _chosen(value, rows: list[int]):
    """The rows of an argument with an entry an image; of SAM 2's and 3's maps of each."""
    if isinstance(value, list):
        return [each[rows] for each in value]
    return None if value is None else value[rows]


def _count(value) -> int:
    return len(value[-1] if isinstance(value, list) else value)
