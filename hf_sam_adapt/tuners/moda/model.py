"""MoDA as a PEFT tuner: a pool of domain adapters around one frozen SAM, and the router that picks among them."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from ...errors import UserError
from ...sam.families import check_no_unknown_sam, encoder_shape, family_of, find_mask_decoder, find_vision_encoder
from ...sam.fingerprint import check_fingerprint, compute_fingerprint
from ...sam.mask_choice import let_choose
from ...sam.per_thread import CallLock
from ...upload import upload_folder
from ..common.adapter_checks import check_adapter_name
from ..common.config import SamConfigMixin
from ..common.model import drop_saved_copies, name_tiny
from ..common.undo import Undoable, forget_load
from ..sam_decoder import SamDecoderConfig
from .config import ModaConfig
from .dispatch import DomainDispatch
from .pool import DomainPool
from .router import DomainRouter
from .tensor_names import file_tensors, model_tensors
from .tokens import probed_blocks, token_width


class ModaModel(DomainPool, Undoable, BaseTuner):
    """A pool of domain adapters (CoSAM §3: Mixture of Domain Adapters).

        pool = ModaModel(sam, ModaConfig(inner=SamAdapterConfig()))
        pool.add_domain("polyp")        # a new adapter, trainable and active
        ...                             # train it with anything
        pool.observe(pixel_values)      # of its training images, for the router
        pool.finish_domain()
        pool(pixel_values=..., domain="auto")

    `domain=` is a name, a list with a name an image, `"base"` for plain SAM, or `"auto"`: the router's choice. Without
    it a call takes what `using` says, else the domain that is being added, else `"auto"`. The adapters of the domains
    are ordinary adapters of the inner method, which a tuner of that method places in the model.

    Args:
        model: a `SamModel`.
        peft_config: a `ModaConfig`, or such configs by adapter name.
        adapter_name: name of the pool among several in one model.
    """

    prefix = "moda_"
    tuner_layer_cls = BaseTunerLayer
    target_module_mapping: dict[str, list[str]] = {}
    uses_shared_state = True  # the router, which PEFT's inject_adapter_in_model would lose

    def __init__(self, model, peft_config, adapter_name: str = "default", low_cpu_mem_usage=False, state_dict=None):
        super().__init__(model, peft_config, adapter_name, low_cpu_mem_usage=low_cpu_mem_usage, state_dict=state_dict)

    def _pre_injection_hook(self, model: nn.Module, config: ModaConfig, adapter_name: str) -> None:
        self.moda_router = nn.ModuleDict()
        # In the instance's dictionary: as a child it would put every weight under a second name.
        self.__dict__["inner"] = None
        self.disabled = False
        self._open: dict[str, str | None] = {}
        self._using: list[str | list[str]] = []
        self.lock = CallLock()  # held during a call, which makes the adapters of its domains active in turn

    def _place(
        self, model, adapter_name: str, autocast_adapter_dtype=True, low_cpu_mem_usage=False, state_dict=None
    ) -> None:
        config: ModaConfig = self.peft_config[adapter_name]
        self._check_config(model, config, adapter_name)
        name_tiny(model, config)
        family_of(model).mend(model, for_adapter=True)
        if self.inner is None:
            model.requires_grad_(False)
        for domain in config.domains:
            self._inject_domain(adapter_name, domain, low_cpu_mem_usage)
        # A file without one was converted without its base: which model this is shows nothing about that.
        if not config.fingerprint_is_from_file and not config.inference_mode:
            config.base_fingerprint = compute_fingerprint(model)
        self.moda_router[adapter_name] = self._build_router(config)
        self._open[adapter_name] = config.domains[-1] if config.domains and not config.inference_mode else None
        if not DomainDispatch.on(model):
            DomainDispatch(self).register(model)
        if adapter_name in self.active_adapters:
            self.set_adapter(adapter_name, inference_mode=config.inference_mode)

    def _check_config(self, model: nn.Module, config: ModaConfig, adapter_name: str) -> None:
        if config.pool:
            raise UserError(
                "this folder is a pool of domain adapters: load it with hf_sam_adapt.ModaModel.from_pretrained(sam, "
                "folder), or the folder of one of its domains with PeftModel.from_pretrained"
            )
        check_no_unknown_sam(model)
        if find_mask_decoder(model) is None:
            raise UserError(f"ModaConfig: {type(model).__name__} has no mask decoder", fix="use SamModel")
        if config.base_fingerprint is not None and config.fingerprint_is_from_file:
            check_fingerprint(config.base_fingerprint, model, adapter_name)
        family = family_of(model)
        if config.inner_is_default and "hq" in family.refused_decoders:
            config.inner = SamDecoderConfig()
        if config.router == "probe":
            probed_blocks(find_vision_encoder(model))
        elif family.attention_path is None:
            raise UserError(
                f"router='joint' on {family.title}: the published router attends to all patches in every block, which "
                "a plain ViT without rotated positions can",
                fix="use router='probe'",
            )
        kinds = {type(one.inner).__name__ for one in self.peft_config.values()}
        if len(kinds) > 1:
            raise UserError(
                f"adapter {adapter_name!r} is a pool of another method than the model's ({', '.join(sorted(kinds))})",
                fix="load it on another copy of the base model",
            )

    def _inject_domain(self, adapter_name: str, domain: str, low_cpu_mem_usage: bool = False) -> None:
        """Place an adapter of the inner method in the model, not yet active."""
        check_adapter_name(self.model, domain)
        moda: ModaConfig = self.peft_config[adapter_name]
        config, name = copy.deepcopy(moda.inner), self.inner_name(domain, adapter_name)
        for field, value in moda.domain_fields.get(domain, {}).items():
            setattr(config, field, copy.deepcopy(value))
        moda.check_classes(domain, getattr(config, "num_labels", None))
        config.inference_mode = moda.inference_mode
        config.base_model_name_or_path = moda.base_model_name_or_path
        if moda.init_weights is not True:
            field = "init_lora_weights" if isinstance(config, LoraConfig) else "init_weights"
            setattr(config, field, moda.init_weights)
        if isinstance(config, SamConfigMixin) and moda.base_fingerprint is not None:
            config.base_fingerprint, config.fingerprint_is_from_file = moda.base_fingerprint, True
        if self.inner is not None:
            self.inner.peft_config[name] = config
            self.inner.inject_adapter(self.model, name, low_cpu_mem_usage=low_cpu_mem_usage)
            forget_load(self.inner)
            return
        # A tuner that finds `peft_config` on its model takes it over as its own.
        own = self.model.__dict__.pop("peft_config", None)
        tuner_cls = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
        try:
            inner = tuner_cls(self.model, {name: config}, name, low_cpu_mem_usage=low_cpu_mem_usage)
        finally:
            self.model.__dict__.pop("peft_config", None)
            if own is not None:
                self.model.peft_config = own
        forget_load(inner)
        self.__dict__["inner"] = inner
        self.prefix = inner.prefix  # of this model's parameters

    def _remove_domain(self, adapter_name: str, domain: str) -> None:
        """Forget a domain."""
        name = self.inner_name(domain, adapter_name)
        self.peft_config[adapter_name].domains.remove(domain)
        self.peft_config[adapter_name].domain_fields.pop(domain, None)
        if self.inner is not None and name in self.inner.peft_config:
            self.inner.delete_adapter(name)

    def _load_domain(self, adapter_name: str, domain: str, tensors: dict[str, torch.Tensor]) -> None:
        """Fill a domain's adapter with the tensors of an ordinary adapter file."""
        mapped = model_tensors(self.inner, self.inner_name(domain, adapter_name), tensors)
        self.inner.load_state_dict(mapped, strict=False)

    def _build_router(self, config: ModaConfig) -> DomainRouter:
        router = DomainRouter(
            token_width(find_vision_encoder(self.model)),
            image_size=encoder_shape(self.model).image_size,
            mode=config.router,
            head=config.head,
            statistics=config.statistics,
            num_tokens=config.num_tokens,
            learn_tokens=config.learn_tokens,
            reject=config.reject,
            buffer_size=config.buffer_size,
            seed=config.seed,
        )
        return router.to(self.model.device)

    def adapters_of(self, adapter_name: str) -> list[str]:
        """Names in the inner tuner of a pool's adapters."""
        return [self.inner_name(domain, adapter_name) for domain in self.peft_config[adapter_name].domains]

    def get_base_model(self) -> nn.Module:
        """The `SamModel` with the adapters in it."""
        return self.model

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make a pool the active one; its open domain, if it has one, becomes trainable, everything else frozen.

        Raises:
            UserError: several pools, which cannot be active together.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        if len(names) != 1 or names[0] not in self.peft_config:
            raise UserError(
                f"adapters {names}: one pool of domains can be active at a time, of {', '.join(self.peft_config)}"
            )
        self.active_adapter = adapter_name
        opened, adapters = self._open.get(names[0]), self.adapters_of(names[0])
        if adapters:
            chosen = adapters[-1] if opened is None else self.inner_name(opened, names[0])
            self.inner.set_adapter(chosen, inference_mode=inference_mode or opened is None)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        self.inner.set_requires_grad([one for name in names for one in self.adapters_of(name)], requires_grad)

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        super()._enable_adapter_layers(enabled)
        self.disabled = not enabled
        if enabled:  # PEFT's layers make what was active trainable again
            self.set_adapter(self.active_adapter, inference_mode=self.moda_config.inference_mode)

    @contextmanager
    def disable_adapter(self):
        """The base model within, as `PeftModel.disable_adapter`."""
        was_disabled = self.disabled
        self.disable_adapter_layers()
        try:
            yield
        finally:
            if not was_disabled:
                self.enable_adapter_layers()

    def delete_adapter(self, adapter_name: str) -> None:
        if adapter_name not in self.peft_config:
            raise ValueError(f"Adapter {adapter_name} does not exist")
        for name in self.adapters_of(adapter_name):
            self.inner.delete_adapter(name)
        del self.peft_config[adapter_name], self.moda_router[adapter_name], self._open[adapter_name]
        if adapter_name in self.active_adapters:
            self.active_adapter = next(iter(self.peft_config), [])
        if self.active_adapters:
            self.set_adapter(self.active_adapter)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        for name in self.adapters_of(adapter_name):
            self.inner._cast_adapter_dtype(name, autocast_adapter_dtype)

    def _unload_and_optionally_merge(self, merge: bool = True, *args, **kwargs) -> nn.Module:
        if merge:
            self._refuse_merge()
        DomainDispatch.remove(self.model)
        drop_saved_copies(self.model)
        if self.inner is None:
            del self.model.peft_config
        else:
            self.inner.unload()
        family_of(self.model).unmend_after_adapter(self.model)
        let_choose(self.model)
        return self.model

    def merge_adapter(self, *args, **kwargs) -> None:
        self._refuse_merge()

    @staticmethod
    def _refuse_merge() -> None:
        raise NotImplementedError(
            "a pool of domains cannot be merged: which adapter acts depends on the image; load the folder of one "
            "domain by itself and merge that"
        )

    def _create_and_replace(self, *args, **kwargs) -> None:
        raise AssertionError("the inner method's tuner places the layers")

    @contextmanager
    def _enable_peft_forward_hooks(self, *args, **kwargs):
        if kwargs.get("adapter_names") is not None:
            raise NotImplementedError("ModaModel takes domain=, a name an image, in place of adapter_names")
        yield

    @classmethod
    def _get_adapter_state_dict(cls, model, config, adapter_name, state_dict, unwanted_adapter_names) -> dict:
        """The router's tensors as `router.*`, each domain's as `domains.<name>.*` of an ordinary adapter file."""
        pool = cls._of(model)
        tensors = {f"router.{key}": value for key, value in pool.moda_router[adapter_name].state_dict().items()}
        for domain in config.domains:
            own = file_tensors(pool.inner, pool.inner_name(domain, adapter_name))
            tensors |= {f"domains.{domain}.{key}": value for key, value in own.items()}
        return tensors

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key

    @classmethod
    def _remapped(cls, model, config, adapter_name, state_dict) -> dict:
        """The keys of `_get_adapter_state_dict` back to the model's.

        Raises:
            UserError: missing or unexpected entries, unless `config.strict_load` is off.
        """
        pool = cls._of(model)
        before = next(name for name, module in model.named_modules() if module is pool)
        before = f"{before}." if before else ""
        mapped, left = {}, dict(state_dict)
        own = {f"router.{key}": value for key, value in pool.moda_router[adapter_name].state_dict().items()}
        wrong = own.keys() ^ {key for key in left if key.startswith("router.")}
        if not wrong and own["router.tokens"].shape != left["router.tokens"].shape:  # the others grow with the pool
            wrong = {"router.tokens"}
        if wrong and config.strict_load:
            raise UserError(
                f"adapter {adapter_name!r}: the router does not fit its config: {len(wrong)} keys differ, the first "
                f"is {min(wrong)}",
                fix="the file is damaged",
            )
        # The names are in the config; a domain that was never observed has no features either.
        pool.moda_router[adapter_name].domains = config.domains[: len(left.get("router.counts", ()))]
        for key in [key for key in left if key.startswith("router.")]:
            mapped[f"{before}moda_router.{adapter_name}.{key.removeprefix('router.')}"] = left.pop(key)
        for domain in config.domains:
            prefix = f"domains.{domain}."
            own = {key.removeprefix(prefix): left.pop(key) for key in list(left) if key.startswith(prefix)}
            tensors = model_tensors(pool.inner, pool.inner_name(domain, adapter_name), own)
            mapped |= {f"{before}{key}": value for key, value in tensors.items()}
        if left and config.strict_load:
            raise UserError(f"adapter {adapter_name!r}: {len(left)} unexpected keys, the first is {min(left)}")
        return mapped | left

    @classmethod
    def _of(cls, model: nn.Module) -> ModaModel:
        return model if isinstance(model, cls) else model.base_model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the active pool: `<domain>/` with an ordinary adapter each, the router and the config.

        The files of a domain that are there already with the same content are not touched; the router's is replaced
        at once, and last but for the config.

        Raises:
            UserError: a domain is open.
        """
        from .pool_folder import save_pool

        save_pool(self, Path(folder))

    def push_to_hub(
        self, repo_id: str, *, private: bool = True, revision: str | None = None, token: str | None = None
    ) -> str:
        """Publish the active pool as `save_pretrained` writes it, in one commit.

        Args:
            repo_id: `owner/name`; created, private unless asked otherwise, if it does not exist.
            revision: branch, created if needed.
            token: None = the one that is logged in.

        Returns:
            Address of the commit.

        Raises:
            UserError: a domain is open, or the Hub refused it or could not be reached.
        """
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / repo_id.rpartition("/")[2]
            self.save_pretrained(folder)
            again = f"push_to_hub({repo_id!r})"
            return upload_folder(folder, repo_id, private=private, revision=revision, token=token, again=again)

    @classmethod
    def from_pretrained(cls, model: nn.Module, folder: str | Path, revision: str | None = None) -> ModaModel:
        """A pool that `save_pretrained` wrote, on its base model.

        Args:
            model: the `SamModel`; its fingerprint is compared.
            folder: the pool's folder, or the id of a repository on the Hub.
            revision: of the repository.

        Raises:
            UserError: no pool there, another base model, missing or unexpected keys.
        """
        from .pool_folder import load_pool

        return load_pool(cls, model, str(folder), revision)

    def _read_domain(self, folder: str) -> tuple[dict[str, torch.Tensor], dict]:
        from .pool_folder import read_domain

        return read_domain(folder, self.moda_config.inner, self.model)
