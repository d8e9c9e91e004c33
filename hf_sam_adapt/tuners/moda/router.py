"""The router of MoDA: which domain an image belongs to, from what the frozen encoder makes of it (CoSAM §3)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from ...errors import UserError
from .heads import HEADS, Head, LinearHead, StateOfAnyShape, mean_and_scale
from .tokens import TokenProbe, global_tokens, joint_tokens


FOLDS = 5
REJECTED = -1


class DomainRouter(StateOfAnyShape):
    """Sends each image to one of the domains seen so far, or to none.

    It keeps feature vectors of the training images, never images, and refits its head from them whenever a domain is
    added. All state is tensors; only the names in `domains` are stored elsewhere: set them before loading a state.

    Args:
        width: of the encoder's tokens (C).
        image_size: input size in pixels; token statistics at another size differ.
        mode: `"probe"`: tokens read the patches in the pass that also yields the masks' embeddings. `"joint"`: the
            published attention in both directions, a pass of its own.
        head: `"ridge"`, `"mahalanobis"`, `"ncm"` or the published `"linear"`.
        statistics: append mean and standard deviation of the image embedding's channels to token 0, which alone is
            the published feature.
        num_tokens: tokens (L), the first of which is read out.
        learn_tokens: the tokens are a parameter (see `fit_tokens`) instead of a buffer.
        reject: share of known images that may be refused, estimated on held-out features; 0 = refuse none.
        buffer_size: features kept per domain, a seeded uniform sample of what was observed.
        seed: of tokens, sample and the linear head.
    """

    def __init__(
        self,
        width: int,
        *,
        image_size: int,
        mode: str = "probe",
        head: str = "ridge",
        statistics: bool = True,
        num_tokens: int = 10,
        learn_tokens: bool = False,
        reject: float = 0.01,
        buffer_size: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if mode not in ("probe", "joint"):
            raise UserError(f"router mode {mode!r} is unknown", fix="use probe or joint")
        if head not in HEADS:
            raise UserError(f"router head {head!r} is unknown", fix=f"use one of {', '.join(HEADS)}")
        if not 0 <= reject < 1:
            raise UserError(f"reject={reject} is not a share", fix="use 0 (refuse no image) or a value below 1")
        self.image_size, self.mode, self.statistics, self.reject = image_size, mode, statistics, reject
        self.buffer_size, self.seed, self.head_name = buffer_size, seed, head
        self.domains: list[str] = []
        tokens = global_tokens(width, num_tokens, seed)
        if learn_tokens:
            self.tokens = nn.Parameter(tokens)
        else:
            self.register_buffer("tokens", tokens)
        self.register_buffer("cached", torch.zeros(0, 0))  # (N, D), domain after domain
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))  # (T,)
        self.register_buffer("mean", torch.zeros(0))  # (D,), of the cached features
        self.register_buffer("scale", torch.zeros(0))  # (D,)
        self.register_buffer("farthest", torch.tensor(torch.inf))  # distance beyond which an image is unknown
        self.register_buffer("temperature", torch.ones(()))
        self.head = self._new_head()

    def _new_head(self) -> Head:
        return LinearHead(self.seed) if self.head_name == "linear" else HEADS[self.head_name]()

    def features(self, encoder: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the router knows of an image: token 0 after the last block, and the embedding's statistics.

        Args:
            encoder: SAM's vision encoder with its adapters disabled.
            pixel_values: (B, 3, S, S).

        Returns:
            fp32 (B, C), with `statistics` (B, C + 512); with gradient to the tokens only where they are learned.

        Raises:
            UserError: at another image size than the router's.
        """
        if pixel_values.shape[-1] != self.image_size:
            raise UserError(
                f"the router was fitted at {self.image_size} pixels and got images of {pixel_values.shape[-1]}",
                fix="use the image size that the pool was made with",
            )
        with torch.set_grad_enabled(self.tokens.requires_grad and torch.is_grad_enabled()):
            if self.mode == "joint":
                return self._features(*joint_tokens(encoder, pixel_values, self.tokens))
            with TokenProbe(encoder, self.tokens) as probe:
                encoder(pixel_values)
            return self.read(probe)

    def read(self, probe: TokenProbe) -> torch.Tensor:
        """Features fp32 (B, D) out of a whole encoder run under `TokenProbe(encoder, router.tokens)`."""
        return self._features(probe.tokens, probe.embedding)

    def _features(self, tokens: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        token, channels = tokens[:, 0].float(), embedding.float().flatten(2)  # (B, C), (B, 256, grid * grid)
        if not self.statistics:
            return token
        mean = channels.mean(2)
        # The standard deviation as torch.std computes it, which alone takes longer than all the rest on a CPU.
        deviation = (channels - mean[..., None]).square().sum(2).div(channels.shape[2] - 1).sqrt()
        return torch.cat([token, mean, deviation], 1)

    def observe(self, domain: str, features: torch.Tensor) -> None:
        """Keep features (B, D) of images of `domain`, which is added if it is new.

        What is kept does not depend on the order of the calls: of distinct features those with the smallest hash.
        """
        features = features.detach().float().to(self.cached.device)
        if domain not in self.domains:
            self.domains.append(domain)
        parts = list(self.cached.split(self.counts.tolist())) if len(self.counts) else []
        parts += [features[:0]] * (len(self.domains) - len(parts))  # domains named before their images came
        index = self.domains.index(domain)
        parts[index] = self._sample(torch.cat([parts[index], features]))
        self.cached = torch.cat(parts)
        self.counts = torch.tensor([len(part) for part in parts], device=self.cached.device)

    def _sample(self, features: torch.Tensor) -> torch.Tensor:
        key = self.seed.to_bytes(8, "big", signed=True)
        rows = features.cpu().contiguous().numpy()
        order = {hashlib.blake2b(row.tobytes(), key=key, digest_size=8).digest(): i for i, row in enumerate(rows)}
        kept = [order[digest] for digest in sorted(order)[: self.buffer_size]]
        return features[torch.tensor(kept, dtype=torch.int64, device=features.device)]

    def keep_first(self, count: int) -> None:
        """Forget what was observed of all domains but the first `count`, and fit again."""
        self.domains, self.counts = self.domains[:count], self.counts[:count]
        self.cached = self.cached[: int(self.counts.sum())]
        self.head = self._new_head().to(self.cached.device)
        self.fit()

    def fit_tokens(
        self,
        encoder: nn.Module,
        domain: str,
        batches: Iterable[torch.Tensor],
        epochs: int = 1,
        learning_rate: float = 1e-3,
    ) -> None:
        """Train learned tokens, with a linear head of its own, to tell a new domain from the earlier ones.

        Each step takes a batch of the new domain's images, and as many cached features of the earlier domains. Those
        stay what earlier tokens made of their images: what the tokens move now, they are off by. Call it before
        `observe`; without an earlier domain it does nothing.

        Args:
            encoder: SAM's vision encoder with its adapters disabled.
            domain: the new one.
            batches: of pixel values (B, 3, S, S); iterated `epochs` times.
            epochs: passes over the batches.
            learning_rate: of Adam.

        Raises:
            UserError: the tokens are not learned.
        """
        if not isinstance(self.tokens, nn.Parameter):
            raise UserError("the router's tokens are frozen", fix="set learn_tokens=True to train them")
        parts = dict(zip(self.domains, self.cached.split(self.counts.tolist()))) if len(self.counts) else {}
        earlier = torch.cat([part for name, part in parts.items() if name != domain] or [self.cached])
        if not len(earlier):
            return
        wanted, self.tokens.requires_grad = self.tokens.requires_grad, True
        generator = torch.Generator().manual_seed(self.seed)
        classifier = nn.Linear(earlier.shape[1], 1).to(earlier.device)
        nn.init.zeros_(classifier.weight)
        nn.init.zeros_(classifier.bias)
        mean, scale = earlier.mean(0), earlier.std(0, correction=0).clamp_min(1e-6)
        optimizer = torch.optim.Adam([self.tokens, *classifier.parameters()], lr=learning_rate)
        with torch.enable_grad():
            for pixel_values in (batch for _ in range(epochs) for batch in batches):
                new = self.features(encoder, pixel_values)
                rows = torch.randint(len(earlier), (len(new),), generator=generator)
                logits = classifier((torch.cat([new, earlier[rows.to(new.device)]]) - mean) / scale)[:, 0]
                is_new = torch.arange(len(logits), device=new.device) < len(new)
                loss = F.binary_cross_entropy_with_logits(logits, is_new.float())
                optimizer.zero_grad()
                loss.backward(inputs=[self.tokens, *classifier.parameters()])
                optimizer.step()
        self.tokens.grad = None
        self.tokens.requires_grad = wanted

    @torch.no_grad()
    def fit(self) -> None:
        """Refit head, temperature and threshold from the cached features; nothing to do below two domains.

        Temperature and threshold come from features that the head and the neighbours they are compared with have not
        seen (five folds).

        Raises:
            UserError: a domain without features, or with a single one, which cannot be held out, if images may be
                refused.
        """
        counts, domains = self.counts.tolist(), len(self.domains)
        if domains < 2:
            return
        for name, count in zip(self.domains, counts + [0] * (domains - len(counts))):
            if not count:
                raise UserError(
                    f"domain {name!r} has no images", key="router", fix="observe its training images first"
                )
            if count < 2 and self.reject:
                raise UserError(
                    f"domain {name!r} has one image, too few for a reject threshold", key="router", fix="set reject=0"
                )
        device, cached = self.cached.device, self.cached.cpu()
        labels = torch.arange(domains).repeat_interleave(self.counts.cpu())
        self.head = self._fitted_head(cached, labels)
        self.mean, self.scale = mean_and_scale(cached, labels, domains)
        folds = min(FOLDS, *counts)
        if folds > 1:
            # A domain's rows are in the order of their hashes, so counting through is a random split.
            fold = torch.cat([torch.arange(count) % folds for count in counts])
            logits, distances = torch.empty(len(labels), domains), torch.empty(len(labels))
            for index in range(folds):
                out = fold == index
                known, known_labels = cached[~out], labels[~out]
                logits[out] = self._fitted_head(known, known_labels)(cached[out])
                distances[out] = self._distances(cached[out], logits[out].argmax(1), known, known_labels)
            self.temperature = best_temperature(logits, labels)
            if self.reject:
                self.farthest = torch.quantile(distances, 1 - self.reject, interpolation="higher")
        self.to(device)

    def _fitted_head(self, features: torch.Tensor, labels: torch.Tensor) -> Head:
        head = self._new_head()
        head.fit(features, labels, len(self.domains))
        return head

    def _distances(
        self, features: torch.Tensor, choice: torch.Tensor, known: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Root mean square distance (B,) to the nearest known feature of the chosen domain, standardised."""
        features, known = ((x - self.mean) / self.scale for x in (features, known))
        if torch.compiler.is_exporting():  # cdist takes another way for many images, which a graph cannot
            distances = (features[:, None] - known).square().sum(-1).sqrt()
        else:
            distances = torch.cdist(features, known)
        distances = distances / features.shape[1] ** 0.5  # (B, N)
        return distances.masked_fill(labels != choice[:, None], torch.inf).amin(1)

    @torch.no_grad()
    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """Probability of each domain, fp32 (B, T), calibrated on held-out features.

        0 for domains that came after the last `fit`; before the first one all is the first domain's.
        """
        scores = features.new_zeros(features.shape[0], len(self.domains), dtype=torch.float32)
        if self.head.domains < 2:
            scores[:, :1] = 1
        else:
            scores[:, : self.head.domains] = (self.head(features.float()) / self.temperature).softmax(1)
        return scores

    @torch.no_grad()
    def route(self, features: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Index of the domain of each feature (B, D), int64 (B,); -1 = unknown, use the plain SAM.

        Unknown is what is farther from all kept features of its domain than almost all held-out ones were. Without
        domains everything is unknown. With one, and until `fit` has seen two, everything is the first's.

        Args:
            labels: `kept_labels`, for a graph, which cannot make them.
        """
        if self.head.domains < 2:
            return torch.full((features.shape[0],), 0 if self.domains else REJECTED, device=features.device)
        features = features.float()
        choice = self.head(features).argmax(1)
        if self.reject:
            near = self.distances(features, labels) <= self.farthest  # not for NaN
            choice = choice.masked_fill(~near, REJECTED)
        return choice

    @torch.no_grad()
    def distances(self, features: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Distance of each feature (B, D) to the nearest kept one of its most probable domain, fp32 (B,).

        Unknown is what is farther away than `farthest`. Ask only after `fit` has seen two domains.
        """
        features = features.float()
        labels = self.kept_labels if labels is None else labels
        return self._distances(features, self.head(features).argmax(1), self.cached, labels)

    @property
    def kept_labels(self) -> torch.Tensor:
        """The domain of each kept feature, int64 (N,); of one newer than the last `fit` at the end."""
        return torch.arange(len(self.counts), device=self.counts.device).repeat_interleave(self.counts)


def best_temperature(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The temperature that minimises the cross-entropy of `logits / temperature`, to 5 %; scalar fp32."""
    candidates = torch.logspace(-3, 3, 284)
    losses = [F.cross_entropy(logits / candidate, labels) for candidate in candidates]
    return candidates[torch.stack(losses).argmin()]
