"""The models that are in memory: each adapter loaded once, the least used put away, the base's weights shared."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import SamModel

from ..errors import UserError
from ..inference.forward import pool_of, sam_of
from ..inference.loading import load_adapted, load_for_inference, method_of
from ..inference.predictor import SamAdaptPredictor
from ..sam.families import vision_encoder
from ..sam.windows import windows_removed
from ..tuners.common.hq import live_early_map
from ..tuners.moda import ModaModel
from .catalog import PLAIN
from .gpu import on_zero_gpu


_BASES = 3  # plain SAMs kept at a time, beside those of the adapters kept


@dataclass(eq=False)
class Entry:
    """A model ready for use.

    Attributes:
        name: what it was asked for by.
        predictor: the model on its device, with the processor that it was trained with.
        config: the adapter's, None for a plain or wholly trained SAM.
        base: the plain SAM beside which it is shown; itself for a plain SAM.
    """

    name: str
    predictor: SamAdaptPredictor
    config: PeftConfig | None = None
    base: Entry = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.base = self.base or self

    @property
    def is_plain(self) -> bool:
        return self.base is self

    @property
    def model(self) -> nn.Module:
        """`SamModel`, `PeftModel` or `ModaModel`."""
        return self.predictor.model

    @property
    def method(self) -> str:
        """The recipe's name of its method."""
        return "zero-shot" if self.is_plain else method_of(self.config)

    @property
    def pool(self) -> ModaModel | None:
        return pool_of(self.model)

    @cached_property
    def needs_early_map(self) -> bool:
        """Whether its decoder looks at an early block of the encoder, too."""
        if self.pool is not None and self.pool.domains:
            with self.pool.activated(self.pool.domains[0]):
                return live_early_map(sam_of(self.model)) is not None
        return live_early_map(sam_of(self.model)) is not None

    @cached_property
    def reads_as_base(self) -> bool:
        """Whether it prepares images as the plain SAM beside it does."""
        return self.predictor.processor.to_dict() == self.base.predictor.processor.to_dict()

    @cached_property
    def encoder(self) -> str:
        """A name for what an image embedding depends on: the base's where the adapter leaves the encoder as it is."""
        encoder = vision_encoder(self.model)
        adapted = any(isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)) for module in encoder.modules())
        same = self.config is not None and not adapted and not windows_removed(encoder) and self.reads_as_base
        return self.base.encoder if same else self.name


class LoadedAdapters:
    """Loads models by name, once.

    Every adapter has a `PeftModel` of its own rather than a name in a common one: adapters of different methods, input
    sizes and decoders do not fit into one model, and no call has to switch what another one is using. What is equal in
    them, the base's weights, is one piece of memory.

    Args:
        model: name of the plain SAM.
        capacity: adapters kept at a time.
    """

    def __init__(self, model: str, capacity: int = 6) -> None:
        self.model, self.capacity = model, capacity
        self.device = torch.device("cuda" if torch.cuda.is_available() and not on_zero_gpu() else "cpu")
        self._bases: dict[str, Entry] = {}
        self._adapters: OrderedDict[str, Entry] = OrderedDict()
        self._loading = threading.Lock()

    def get(self, name: str) -> Entry:
        """The model of an adapter, or for `PLAIN` the plain SAM.

        Args:
            name: folder or Hub id.

        Raises:
            UserError: whatever `load_adapted` finds wrong, or an adapter of images that are no photographs.
        """
        with self._loading:
            if name == PLAIN:
                return self._base(self.model)
            if name not in self._adapters:
                self._adapters[name] = self._load(name)
            self._adapters.move_to_end(name)
            while len(self._adapters) > self.capacity:
                self._adapters.popitem(last=False)
            return self._adapters[name]

    def named(self, name: str, is_plain: bool) -> Entry:
        """The entry of that name, an adapter's or a plain SAM's."""
        if not is_plain:
            return self.get(name)
        with self._loading:
            return self._base(name)

    def renew_locks(self) -> None:
        """Take new locks, in the fork of a process whose threads may hold the old ones."""
        self._loading = threading.Lock()
        for entry in (*self._bases.values(), *self._adapters.values()):
            entry.predictor.lock = threading.RLock()

    def forget(self, name: str) -> None:
        """Put an adapter away whose folder is gone."""
        with self._loading:
            self._adapters.pop(name, None)

    def _base(self, name: str) -> Entry:
        if name not in self._bases:
            loaded = load_for_inference(None, name)
            self._bases[name] = Entry(name, SamAdaptPredictor.from_loaded(loaded, device=self.device))
            while len(self._bases) > _BASES:  # the first is the demo's own
                del self._bases[list(self._bases)[1]]
        return self._bases[name]

    def _load(self, name: str) -> Entry:
        try:
            loaded = load_adapted(name)
        except UserError as error:
            raise error.replace(key=None) from error
        if loaded.processor.channels is not None:
            raise UserError(
                f"{Path(name).name} reads images of {loaded.processor.channels} channels, which a page cannot show",
                fix="use hf-sam-adapt predict",
            )
        base = self._base(loaded.base_name or self.model)
        entry = Entry(name, SamAdaptPredictor.from_loaded(loaded, device=self.device), loaded.config, base)
        share_weights(sam_of(entry.model), sam_of(base.model))
        return entry


def share_weights(model: SamModel, base: SamModel) -> None:
    """Let the parameters of `model` that equal those of `base` be the same memory.

    Args:
        model: with a method's layers in it, which hold the base's modules as `base_layer` or `original_module`.
        base: the plain model, of the same device and dtype.
    """
    own = dict(base.named_parameters())
    for name, parameter in model.named_parameters():
        twin = own.get(name.replace(".base_layer.", ".").replace(".original_module.", "."))
        if twin is not None and twin.shape == parameter.shape and torch.equal(twin, parameter):
            parameter.data = twin.data
