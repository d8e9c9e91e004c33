"""The router of MoDA: which domain an image belongs to, from global feature tokens of the frozen encoder."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from ...errors import UserError
from .heads import HEADS, Head, LinearHead, MahalanobisHead, StateOfAnyShape
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
        num_tokens: tokens (L), the first of which is read out.
        learn_tokens: the tokens are a parameter (see `fit_tokens`) instead of a buffer.
        reject: share of known images that may be refused, estimated on held-out features; 0 = refuse none.
        buffer_size: features kept per domain, a seeded uniform sample of what was observed.
        seed: of tokens, sample, folds and the linear head.
    """

    def __init__(
        self,
        width: int,
        *,
        image_size: int,
        mode: str = "probe",
        head: str = "ridge",
        num_tokens: int = 10,
        learn_tokens: bool = False,
        reject: float = 0.0,
        buffer_size: int = 200,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if mode not in ("probe", "joint"):
            raise UserError(f"router mode {mode!r} is unknown; use probe or joint")
        if head not in HEADS:
            raise UserError(f"router head {head!r} is unknown; use one of {', '.join(HEADS)}")
        if not 0 <= reject < 1:
            raise UserError(f"reject={reject} is not a share; use 0 (refuse no image) or a value below 1")
        self.image_size, self.mode, self.learn_tokens = image_size, mode, learn_tokens
        self.reject, self.buffer_size, self.seed, self.head_name = reject, buffer_size, seed, head
        self.domains: list[str] = []
        tokens = global_tokens(width, num_tokens, seed)
        if learn_tokens:
            self.tokens = nn.Parameter(tokens)
        else:
            self.register_buffer("tokens", tokens)
        self.register_buffer("cached", torch.zeros(0, width))  # (N, D), domain after domain
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))  # (T,)
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("farthest", torch.tensor(torch.inf))  # distance above which an image is unknown
        self.head = self._new_head()
        self.distance = MahalanobisHead()

    def _new_head(self) -> Head:
        return LinearHead(self.seed) if self.head_name == "linear" else HEADS[self.head_name]()

    def features(self, encoder: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the router looks at: token 0 after the last block.

        Args:
            encoder: SAM's vision encoder with its adapters disabled.
            pixel_values: (B, 3, S, S).

        Returns:
            fp32 (B, D); with gradient to the tokens only where they are learned.

        Raises:
            UserError: at another image size than the router's.
        """
        self.check_size(pixel_values)
        with torch.set_grad_enabled(self.learn_tokens and torch.is_grad_enabled()):
            if self.mode == "joint":
                return joint_tokens(encoder, pixel_values, self.tokens)[0][:, 0].float()
            with TokenProbe(encoder, self.tokens) as probe:
                encoder(pixel_values)
            return self.read(probe)

    def read(self, probe: TokenProbe) -> torch.Tensor:
        """Features fp32 (B, D) out of an encoder run under `TokenProbe(encoder, router.tokens)`."""
        return probe.tokens[:, 0].float()

    def check_size(self, pixel_values: torch.Tensor) -> None:
        """Raise a UserError unless the images (B, 3, S, S) have the size that the router was made for."""
        if pixel_values.shape[-1] != self.image_size:
            raise UserError(
                f"the router was fitted at {self.image_size} pixels and got images of {pixel_values.shape[-1]}; "
                "use the image size that the pool was made with"
            )

    def observe(self, domain: str, features: torch.Tensor) -> None:
        """Keep features (B, D) of images of `domain`, which is added if it is new.

        What is kept does not depend on the order of the calls: of distinct features those with the smallest hash.
        """
        features = features.detach().float().to(self.cached.device)
        if domain not in self.domains:
            self.domains.append(domain)
        parts, index = self._parts(), self.domains.index(domain)
        parts[index] = self._sample(torch.cat([parts[index], features]))
        self.cached = torch.cat(parts)
        self.counts = torch.tensor([len(part) for part in parts], device=self.cached.device)

    def count(self, domain: str) -> int:
        """Number of features kept of a domain."""
        return len(self._parts()[self.domains.index(domain)])

    def _parts(self) -> list[torch.Tensor]:
        """The cached features (n, D) of each domain; none yet of domains named after the last `observe`."""
        later = len(self.domains) - len(self.counts)
        return [*self.cached.split(self.counts.tolist()), *[self.cached[:0]] * later]

    def _sample(self, features: torch.Tensor) -> torch.Tensor:
        key = self.seed.to_bytes(8, "big", signed=True)
        rows = features.cpu().contiguous().numpy()
        order = {hashlib.blake2b(row.tobytes(), key=key, digest_size=8).digest(): i for i, row in enumerate(rows)}
        kept = [order[digest] for digest in sorted(order)[: self.buffer_size]]
        return features[torch.tensor(kept, dtype=torch.int64, device=features.device)]

    @torch.no_grad()
    def fit(self) -> None:
        """Refit head, temperature and threshold from the cached features; nothing to do below two domains.

        Raises:
            UserError: a domain without features, or with a single one, which cannot be held out, if images may be
                refused.
        """
        domains = len(self.domains)
        if domains < 2:
            return
        for name in self.domains:
            if not self.count(name):
                raise UserError(f"domain {name!r} has no images for the router; observe its training images first")
        labels = torch.arange(domains, device=self.counts.device).repeat_interleave(self.counts)
        self.head.fit(self.cached, labels, domains)
        self.distance.fit(self.cached, labels, domains)
        folds = min(FOLDS, int(self.counts.min()))
        if folds < 2:
            if self.reject:
                name = self.domains[int(self.counts.argmin())]
                raise UserError(f"domain {name!r} has one image: a reject threshold needs two or more; set reject=0")
            return
        logits, distances = self._held_out(labels, folds)
        self.temperature = best_temperature(logits, labels)
        if self.reject:
            self.farthest = torch.quantile(distances, 1 - self.reject, interpolation="higher")

    def _held_out(self, labels: torch.Tensor, folds: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (N, T) and distances (N,) to the chosen domain, each from a fit without the feature's own fold."""
        # Rows of a domain are in the order of their hashes, so counting through is a random split.
        fold = torch.cat([torch.arange(count) % folds for count in self.counts.tolist()]).to(labels.device)
        logits = self.cached.new_zeros(len(labels), len(self.domains))
        distances = self.cached.new_zeros(len(labels))
        for index in range(folds):
            out = fold == index
            head, distance = self._new_head().to(labels.device), MahalanobisHead().to(labels.device)
            head.fit(self.cached[~out], labels[~out], len(self.domains))
            distance.fit(self.cached[~out], labels[~out], len(self.domains))
            logits[out] = head(self.cached[out])
            distances[out] = _distance(distance, self.cached[out], logits[out].argmax(1))
        return logits, distances

    @torch.no_grad()
    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """Probability of each domain, fp32 (B, T), calibrated on held-out features.

        0 for domains that came after the last `fit`; before the first one all is the first domain's.
        """
        scores = features.new_zeros(len(features), len(self.domains), dtype=torch.float32)
        if len(self.head) < 2:
            scores[:, :1] = 1
        else:
            scores[:, : len(self.head)] = (self.head(features.float()) / self.temperature).softmax(1)
        return scores

    @torch.no_grad()
    def route(self, features: torch.Tensor) -> torch.Tensor:
        """Index of the domain of each feature (B, D), int64 (B,); -1 = unknown, use the plain SAM.

        Without domains everything is unknown. With one, and until `fit` has seen two, everything is the first's.
        """
        if len(self.head) < 2:
            return torch.full((len(features),), 0 if self.domains else REJECTED, device=features.device)
        features = features.float()
        choice = self.head(features).argmax(1)
        if self.reject:
            choice[_distance(self.distance, features, choice) > self.farthest] = REJECTED
        return choice


def _distance(head: MahalanobisHead, features: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
    return -head(features).gather(1, choice[:, None])[:, 0]


def best_temperature(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The temperature that minimises the cross-entropy of `logits / temperature`, to 5 %; scalar fp32."""
    candidates = torch.logspace(-3, 3, 284, device=logits.device)
    losses = [nn.functional.cross_entropy(logits / candidate, labels) for candidate in candidates]
    return candidates[torch.stack(losses).argmin()]
