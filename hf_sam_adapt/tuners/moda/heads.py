"""Heads of the domain router: from one vector per image to one logit per domain.

Three closed forms and the published linear classifier. All are deterministic in the features, whose order matters to
`linear` only, and are fitted from scratch: adding a domain needs the features of the earlier ones, not their images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class StateOfAnyShape(nn.Module):
    """Buffers that grow with the domains: a state dict brings its own shapes. Always fp32, whatever `.to()` says."""

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        for name, old in [*self._buffers.items(), *self._parameters.items()]:
            new = state_dict.get(prefix + name)
            if old is not None and new is not None and old.shape != new.shape:
                value = old.new_empty(new.shape)
                setattr(self, name, nn.Parameter(value, old.requires_grad) if name in self._parameters else value)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn, recurse: bool = True):
        def keep_dtype(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, recurse)


class Head(StateOfAnyShape):
    """Base of the heads.

    `fit(features, labels, domains)` takes features fp32 (N, D) and labels int64 (N,) in 0..domains-1, each of which
    occurs, on the CPU; `forward(features)` returns logits fp32 (B, domains).
    """

    @property
    def domains(self) -> int:
        """Number of domains at the last `fit`, 0 before."""
        return len(self.means if hasattr(self, "means") else self.weight)

    def fit(self, features: torch.Tensor, labels: torch.Tensor, domains: int) -> None:
        raise NotImplementedError


class LinearHead(Head):
    """The published classifier: cross-entropy on the features as they are (CoSAM §3; Adam 1e-3, 10 epochs, batch 4).

    The published loader drops what does not fill a batch and shuffles alike in each epoch; here all samples are used
    and each epoch has a seeded order of its own.
    """

    def __init__(self, seed: int = 0, epochs: int = 10, batch_size: int = 4, learning_rate: float = 1e-3) -> None:
        super().__init__()
        self.seed, self.epochs, self.batch_size, self.learning_rate = seed, epochs, batch_size, learning_rate
        self.register_buffer("weight", torch.zeros(0, 0))  # (T, D)
        self.register_buffer("bias", torch.zeros(0))

    def fit(self, features: torch.Tensor, labels: torch.Tensor, domains: int) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        bound = features.shape[1] ** -0.5  # the initialisation of nn.Linear
        start = (2 * torch.rand(domains, features.shape[1] + 1, generator=generator) - 1) * bound
        weight = nn.Parameter(start)  # the bias is the last column
        optimizer = torch.optim.Adam([weight], lr=self.learning_rate, fused=True)
        features, targets = F.pad(features, (0, 1), value=1.0), F.one_hot(labels, domains).float()
        with torch.no_grad():
            for _ in range(self.epochs):
                for batch in torch.randperm(len(features), generator=generator).split(self.batch_size):
                    inputs = features[batch]
                    # Of the batch's mean cross-entropy, written down: autograd would take most of the time.
                    errors = (F.linear(inputs, weight).softmax(1) - targets[batch]) / len(batch)
                    weight.grad = errors.T @ inputs
                    optimizer.step()
        self.weight, self.bias = weight[:, :-1].detach().contiguous(), weight[:, -1].detach().contiguous()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.linear(features, self.weight, self.bias)


class StandardisedHead(Head):
    """A closed form on features that are standardised, every domain counting alike."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(0))  # (D,)
        self.register_buffer("scale", torch.zeros(0))  # (D,)

    def fit(self, features: torch.Tensor, labels: torch.Tensor, domains: int) -> None:
        self.mean, self.scale = mean_and_scale(features, labels, domains)
        self.fit_standardised((features.double() - self.mean) / self.scale, labels, domains)

    def fit_standardised(self, features: torch.Tensor, labels: torch.Tensor, domains: int) -> None:
        raise NotImplementedError

    def standardised(self, features: torch.Tensor) -> torch.Tensor:
        return (features - self.mean) / self.scale


class NcmHead(StandardisedHead):
    """Nearest domain mean: minus the squared distance, a dimension's mean over D."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(0, 0))  # (T, D)

    def fit_standardised(self, features: torch.Tensor, labels: torch.Tensor, domains: int) -> None:
        self.means = domain_means(features, labels, domains).float()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return -(self.standardised(features)[:, None] - self.means).square().mean(-1)


class RidgeHead(StandardisedHead):
    """Least squares onto one-hot domains with an L2 penalty, every domain counting alike."""

    def __init__(self, penalty: float = 1e-2) -> None:
        super().__init__()
        self.penalty = penalty
        self.register_buffer("weight", torch.zeros(0, 0))  # (T, D)
        self.register_buffer("bias", torch.zeros(0))

    def fit_standardised(self, features: torch.Tensor, labels: torch.Tensor, domains: int) -> None:
        share = domain_shares(labels, domains)
        targets = F.one_hot(labels, domains).double()  # (N, T)
        # Under these shares the features have mean 0 and the targets 1/T, so the bias stays out of the system.
        gram = features.T @ (features * share[:, None])  # (D, D)
        gram.diagonal().add_(self.penalty)
        self.weight = torch.linalg.solve(gram, features.T @ (targets * share[:, None])).T.float().contiguous()
        self.bias = torch.full_like(self.weight[:, 0], 1 / domains)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.linear(self.standardised(features), self.weight, self.bias)


class MahalanobisHead(StandardisedHead):
    """Minus half the Mahalanobis distance to the domains' means under one shared, shrunk covariance."""

    def __init__(self, shrinkage: float = 0.03) -> None:
        super().__init__()
        self.shrinkage = shrinkage
        self.register_buffer("means", torch.zeros(0, 0))  # (T, D), whitened
        self.register_buffer("whitening", torch.zeros(0, 0))  # (D, D)

    def fit_standardised(self, features: torch.Tensor, labels: torch.Tensor, domains: int) -> None:
        means = domain_means(features, labels, domains)
        centred = features - means[labels]
        covariance = centred.T @ (centred * domain_shares(labels, domains)[:, None])
        average = covariance.diagonal().mean().clamp_min(1e-12)
        covariance = (1 - self.shrinkage) * covariance
        covariance.diagonal().add_(self.shrinkage * average)
        # Rows of `features @ whitening` have the identity as covariance.
        lower = torch.linalg.cholesky(covariance)
        identity = torch.eye(len(lower), dtype=lower.dtype)
        whitening = torch.linalg.solve_triangular(lower, identity, upper=False).T
        self.whitening, self.means = whitening.float().contiguous(), (means @ whitening).float()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        whitened = self.standardised(features) @ self.whitening
        return -0.5 * (whitened[:, None] - self.means).square().sum(-1)


HEADS = {"linear": LinearHead, "ncm": NcmHead, "ridge": RidgeHead, "mahalanobis": MahalanobisHead}


def domain_shares(labels: torch.Tensor, domains: int) -> torch.Tensor:
    """Weights fp64 (N,) that sum to 1 and give every domain the same sum."""
    counts = torch.bincount(labels, minlength=domains).double()
    return 1 / (counts[labels] * domains)


def mean_and_scale(features: torch.Tensor, labels: torch.Tensor, domains: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation fp32 (D,) of features (N, D), every domain counting alike."""
    features, share = features.double(), domain_shares(labels, domains)
    mean = share @ features
    return mean.float(), (share @ (features - mean).square()).sqrt().clamp_min(1e-6).float()


def domain_means(features: torch.Tensor, labels: torch.Tensor, domains: int) -> torch.Tensor:
    """(T, D)."""
    return torch.stack([features[labels == index].mean(0) for index in range(domains)])
