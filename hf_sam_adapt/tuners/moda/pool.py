"""The pool's own interface: domains are added, trained, finished and routed to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ...errors import UserError
from ...files import BASE, check_domain_name
from ...sam.families import encoder_shape, find_vision_encoder
from ..common.undo import unchanged_if_refused
from .config import ModaConfig
from .dispatch import activated, adapter_layers, groups_of
from .router import DomainRouter


@dataclass
class Routing:
    """What the router says of a batch.

    Attributes:
        domains: a name per image, `"base"` for an image that is like none of the pool's domains.
        scores: float32 (B, T), probability of each domain of the pool, if the image belongs to one of them.
        distances: float32 (B,), how far the image is from the most probable domain; None where nothing is refused.
        threshold: above it an image is like none of the domains.
    """

    domains: list[str]
    scores: torch.Tensor
    distances: torch.Tensor | None = None
    threshold: float | None = None


class DomainPool:
    """The part of `ModaModel` that PEFT knows nothing of; works on the active pool."""

    @property
    def moda_config(self) -> ModaConfig:
        """The config of the active pool."""
        return self.peft_config[self.active_adapters[0]]

    @property
    def domains(self) -> list[str]:
        """Names of the domains in the order in which they were added."""
        return self.moda_config.domains

    def inner_name(self, domain: str, pool: str | None = None) -> str:
        """Name of a domain's adapter in the inner tuner; a model may hold several pools.

        The first has the pool's own name, so that to PEFT a pool of one domain is an ordinary adapter; but not with
        `modules_to_save`, which PEFT would take out of the hands of `ModaModel` then.

        Args:
            pool: adapter name of the pool, default the active one.
        """
        pool = pool or self.active_adapters[0]
        config = self.peft_config[pool]
        plain = domain == config.domains[0] and not getattr(config.inner, "modules_to_save", None)
        return pool if plain else f"{pool}:{domain}"

    @property
    def router(self) -> DomainRouter:
        """The router of the active pool."""
        return self.moda_router[self.active_adapters[0]]

    @property
    def open_domain(self) -> str | None:
        """The domain that is being added, None if the last one is finished."""
        return self._open[self.active_adapters[0]]

    @property
    def routed_domains(self) -> list[str]:
        """The domains that the router tells apart: those that are finished."""
        return [name for name in self.router.domains if name != self.open_domain]

    def add_domain(self, name: str, adapter: str | Path | None = None) -> None:
        """Begin a domain, with a new adapter that is active and trainable, or with one that is trained already.

        Every other domain is frozen. `observe` its training images then, and call `finish_domain`.

        Args:
            name: of letters, digits, '-' and '_'.
            adapter: folder or Hub id of an adapter of the inner method, e.g. a run folder; it must agree with the
                pool's inner config.

        Raises:
            UserError: another domain is open; the name is taken or cannot be one; the adapter does not fit the pool.
        """
        if self.open_domain is not None:
            raise UserError(f"domain {self.open_domain!r} is open: finish_domain() before the next one is added")
        check_domain_name(name, self.domains)
        with unchanged_if_refused(self, self.moda_config):
            self._add_domain(name, adapter)

    def _add_domain(self, name: str, adapter: str | Path | None) -> None:
        pool, tensors = self.active_adapters[0], None
        if adapter is not None:
            tensors, self.moda_config.domain_fields[name] = self._read_domain(str(adapter))
        self.moda_config.inference_mode = adapter is not None
        self.domains.append(name)
        self._inject_domain(pool, name)
        self.inner._cast_adapter_dtype(self.inner_name(name))
        if tensors is not None:
            self._load_domain(pool, name, tensors)
        self.router.image_size = encoder_shape(self.model).image_size
        self._open[pool] = name
        self.model.train(self.model.training)  # new modules begin in training mode
        self.set_adapter(pool, inference_mode=adapter is not None)

    def fit_tokens(self, batches: Iterable[torch.Tensor], learning_rate: float = 1e-3) -> None:
        """Train the tokens (`learn_tokens=True`) to tell the open domain from the earlier ones, before `observe`.

        Args:
            batches: of training images (B, 3, S, S), un-augmented; each is one step, see `DomainRouter.fit_tokens`.
            learning_rate: of Adam.

        Raises:
            UserError: no domain is open, or the tokens are frozen.
        """
        if self.open_domain is None:
            raise UserError("no domain is open", key="fit_tokens", fix="add_domain(name) first")
        images = (pixel_values.to(self.model.dtype) for pixel_values in batches)
        with self.activated(BASE):
            encoder = find_vision_encoder(self.model)
            self.router.fit_tokens(encoder, self.open_domain, images, learning_rate=learning_rate)

    @torch.no_grad()
    def observe(self, pixel_values: torch.Tensor) -> None:
        """Keep router features of training images (B, 3, S, S), un-augmented, of the open domain."""
        if self.open_domain is None:
            raise UserError("no domain is open", key="observe", fix="add_domain(name) first")
        missing = [name for name in self.domains[:-1] if name not in self.router.domains]
        if missing:
            raise UserError(
                f"the router has seen no image of {', '.join(missing)}", key="observe", fix="add the domains in turn"
            )
        self.router.observe(self.open_domain, self.router_features(pixel_values))

    def finish_domain(self) -> None:
        """Fit the router with the open domain, and freeze its adapter.

        Raises:
            UserError: no domain is open, or none of its images was observed.
        """
        name = self.open_domain
        if name is None:
            raise UserError("no domain is open", key="finish_domain", fix="add_domain(name) first")
        if name not in self.router.domains:
            raise UserError(f"domain {name!r} has no images: observe(pixel_values) of its training images first")
        self.router.fit()
        self._open[self.active_adapters[0]] = None
        self.set_adapter(self.active_adapters[0], inference_mode=True)

    def keep_first(self, count: int) -> None:
        """Forget all domains but the first `count`, as if no other had been added; learned tokens stay as they are.

        Raises:
            UserError: a domain is open, or there are not so many; a pool keeps at least one.
        """
        if self.open_domain is not None:
            raise UserError(f"domain {self.open_domain!r} is open: finish_domain() first")
        if not 1 <= count <= len(self.domains):
            raise UserError(
                f"{count} of {len(self.domains)} domains", key="keep_first", fix=f"keep 1 to {len(self.domains)}"
            )
        if count < len(self.domains):
            for name in self.domains[count:]:
                self._remove_domain(self.active_adapters[0], name)
            self.router.keep_first(count)
            self.set_adapter(self.active_adapters[0], inference_mode=True)

    @torch.no_grad()
    def router_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Router features (B, D) of images (B, 3, S, S), by the frozen encoder."""
        with self.activated(BASE):
            return self.router.features(find_vision_encoder(self.model), pixel_values.to(self.model.dtype))

    def route(self, pixel_values: torch.Tensor) -> Routing:
        """Which domain each image (B, 3, S, S) belongs to; with one domain, or none, there is nothing to choose."""
        if self.resolve("auto") != "auto":
            scores = torch.ones(len(pixel_values), len(self.domains))
            return Routing((self.domains or [BASE]) * len(pixel_values), scores)
        features = self.router_features(pixel_values)
        domains, scores = self.names_of(self.router.route(features)), self.router.scores(features)
        if not self.router.reject:
            return Routing(domains, scores)
        return Routing(domains, scores, self.router.distances(features), self.router.farthest.item())

    def names_of(self, indices: torch.Tensor) -> list[str]:
        """Names of domains (B,) by their places in the pool; -1 is the base."""
        unknown = [index for index in indices.tolist() if not -1 <= index < len(self.domains)]
        if unknown:
            raise UserError(
                f"{unknown[0]} is not a place in a pool of {len(self.domains)}", key="domain", fix="-1 is the base"
            )
        return [BASE if index < 0 else self.domains[index] for index in indices.tolist()]

    def indices_of(self, names: list[str]) -> torch.Tensor:
        """The inverse of `names_of`: int64 (B,) on the model's device."""
        places = {name: index for index, name in enumerate(self.domains)} | {BASE: -1}
        return torch.tensor([places[name] for name in names], device=self.model.device)

    @contextmanager
    def using(self, domain: str | Sequence[str]) -> Iterator[None]:
        """The domain of every call within that names none."""
        self._using.append(domain if isinstance(domain, str) else list(domain))
        try:
            yield
        finally:
            self._using.pop()

    def resolve(self, domain: str | Sequence[str] | torch.Tensor | None) -> str | list[str]:
        """`domain` of a call: a name, a list of names, or `"auto"` where there is a choice."""
        if isinstance(domain, torch.Tensor):
            return self.names_of(domain)
        if domain is None:
            domain = self._using[-1] if self._using else self.open_domain or "auto"
        if not isinstance(domain, (str, list, tuple)):
            raise UserError(
                f"{domain!r} is not a name", key="domain", fix="use a domain's, 'base', 'auto', or a list of names"
            )
        if domain == "auto" and len(self.domains) < 2:
            domain = (self.domains or [BASE])[0]
        elif domain == "auto" and len(self.routed_domains) < 2:
            raise UserError("domain='auto': the router knows fewer than two finished domains", fix="name the domain")
        if isinstance(domain, str):
            return domain if domain == "auto" else self.checked(domain, 1)[0]
        return self.checked(domain, len(domain))

    def checked(self, domain: str | Sequence[str], count: int) -> list[str]:
        """A name per image.

        Raises:
            UserError: an unknown name, or another number of names than images.
        """
        names = [domain] * count if isinstance(domain, str) else list(domain)
        known = [*self.domains, BASE]
        for name in names:
            if name not in known:
                hint = "; 'auto' is for a whole call" if name == "auto" else ""
                raise UserError(f"domain {name!r} is not in the pool", fix=f"it has {', '.join(known)}{hint}")
        if len(names) != count:
            raise UserError(f"{len(names)} names for {count} images", key="domain")
        return names

    @contextmanager
    def activated(self, domain: str) -> Iterator[None]:
        """The adapter of `domain` (`"base"`: none) alone is active within; nothing becomes trainable or frozen.

        One thread at a time: which adapter is active is written in the layers.
        """
        name = None if domain == BASE else self.inner_name(domain)
        with self.lock, activated(adapter_layers(self.model), name):
            yield

    @property
    def gives_one_mask(self) -> bool:
        """Whether the domains' decoders give one mask, whatever a caller's `multimask_output`."""
        inner = self.moda_config.inner
        return getattr(inner, "decoder", None) == "hq" or getattr(inner, "num_mask_tokens", None) == 1

    def decoder_groups(self, names: list[str]) -> list[tuple[str, list[int], dict]]:
        """The decoder calls of a batch: (domain to activate, rows, further arguments); no row is in two of them.

        HQ heads share the frozen decoder, which runs once for all of their domains.
        """
        inner = self.moda_config.inner
        groups = groups_of(names)
        together = getattr(inner, "decoder", None) == "hq" and not (inner.train_iou_head or inner.train_no_mask_embed)
        if not together or len(groups) == 1:
            return [(name, rows, {}) for name, rows in groups.items()]
        base = groups.pop(BASE, [])
        own = [row for rows in groups.values() for row in rows]
        assignment, start = [], 0
        for name, rows in groups.items():
            places = torch.arange(start, start + len(rows), device=self.model.device)
            assignment.append((self.inner_name(name), places))
            start += len(rows)
        joint = (next(iter(groups)), own, {"hq_assignment": assignment})
        return [(BASE, base, {}), joint] if base else [joint]

    def encode(self, pixel_values: torch.Tensor, domain: str | Sequence[str] | None = None):
        """`forward.ImageEmbeddings` of images (B, 3, S, S), each by the adapter of its domain, with the domains."""
        from .encode import encode_domains

        with self.lock:
            return encode_domains(self, pixel_values, BASE if self.disabled else self.resolve(domain))
