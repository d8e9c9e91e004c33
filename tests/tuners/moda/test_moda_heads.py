"""The router's heads against plain formulas."""

import copy

import pytest
import torch
from torch import nn

from hf_sam_adapt.tuners.moda.heads import HEADS, LinearHead, MahalanobisHead, NcmHead, RidgeHead
from hf_sam_adapt.tuners.moda.router import DomainRouter


COUNTS = (40, 9, 17)


def clusters(width: int = 6, seed: int = 0, spread: float = 1.0):
    """Features of three domains of unequal sizes with one, anisotropic covariance: (N, D), (N,)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator)
    means = 3 * torch.randn(len(COUNTS), width, generator=generator)
    parts = [m + spread * torch.randn(n, width, generator=generator) @ mixing for m, n in zip(means, COUNTS)]
    return torch.cat(parts) + 5, torch.arange(3).repeat_interleave(torch.tensor(COUNTS))


def fitted(head, features, labels):
    head.fit(features, labels, 3)
    return head


def shares(labels):
    return torch.tensor([1 / (3 * COUNTS[label]) for label in labels], dtype=torch.float64)


def standardised(features, labels):
    features, weight = features.double(), shares(labels)
    mean = (weight[:, None] * features).sum(0)
    return (features - mean) / (weight[:, None] * (features - mean) ** 2).sum(0).sqrt()


@pytest.mark.parametrize("name", ["ncm", "ridge", "mahalanobis"])
def test_closed_forms_tell_clusters_apart(name):
    features, labels = clusters(spread=0.3)
    logits = fitted(HEADS[name](), features, labels)(features)
    assert logits.shape == (len(features), 3) and logits.dtype == torch.float32
    assert (logits.argmax(1) == labels).float().mean() > 0.95


def test_ridge_solves_the_weighted_system_with_a_free_bias():
    features, labels = clusters()
    head = fitted(RidgeHead(penalty=0.07), features, labels)
    x = torch.cat([standardised(features, labels), torch.ones(len(features), 1, dtype=torch.float64)], 1)
    y, weight = torch.eye(3, dtype=torch.float64)[labels], shares(labels)[:, None]
    penalty = torch.diag(torch.tensor([0.07] * 6 + [0.0], dtype=torch.float64))
    solution = torch.linalg.solve(x.T @ (weight * x) + penalty, x.T @ (weight * y))
    assert torch.allclose(head(features).double(), x @ solution, atol=1e-5)


def test_ncm_is_the_distance_to_the_means():
    features, labels = clusters()
    x = standardised(features, labels)
    expected = torch.stack([-((x - x[labels == i].mean(0)) ** 2).mean(1) for i in range(3)], 1)
    assert torch.allclose(fitted(NcmHead(), features, labels)(features).double(), expected, atol=1e-5)


def test_mahalanobis_uses_the_shrunk_covariance_within_domains():
    features, labels = clusters()
    x = standardised(features, labels)
    within = sum(torch.cov(x[labels == i].T, correction=0) for i in range(3)) / 3
    covariance = 0.8 * within + 0.2 * within.diagonal().mean() * torch.eye(6)
    expected = []
    for index in range(3):
        offset = x - x[labels == index].mean(0)
        expected.append(-0.5 * (offset @ covariance.inverse() * offset).sum(1))
    found = fitted(MahalanobisHead(shrinkage=0.2), features, labels)(features)
    assert torch.allclose(found.double(), torch.stack(expected, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["ncm", "ridge", "mahalanobis"])
def test_closed_forms_count_domains_alike_and_ignore_order_and_units(name):
    features, labels = clusters()
    expected = fitted(HEADS[name](), features, labels)(features)
    twice = torch.cat([features, features[labels == 0]]), torch.cat([labels, labels[labels == 0]])
    assert torch.allclose(fitted(HEADS[name](), *twice)(features), expected, atol=1e-4)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))
    assert torch.allclose(fitted(HEADS[name](), features[order], labels[order])(features), expected, atol=1e-4)
    units = torch.tensor([1e-3, 1, 50, 1, 1, 7.0])
    assert torch.allclose(fitted(HEADS[name](), features * units, labels)(features * units), expected, atol=1e-3)


@pytest.mark.parametrize("name", ["ncm", "ridge", "mahalanobis"])
def test_closed_forms_stay_finite_with_few_images_and_constant_features(name):
    features = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    features[:, 5] = 2.0
    labels = torch.tensor([0, 1, 1, 2])
    logits = fitted(HEADS[name](), features, labels)(features)
    assert logits.isfinite().all() and (logits.argmax(1) == labels).all()


def test_linear_is_adam_on_the_features_as_they_are():
    """The published budget: every sample in each of ten epochs, batches of four, Adam with learning rate 1e-3."""
    features, labels = clusters(spread=0.3)
    head = fitted(LinearHead(seed=4), features, labels)
    generator = torch.Generator().manual_seed(4)
    start = (2 * torch.rand(3, 7, generator=generator) - 1) / 6**0.5
    layer = nn.Linear(6, 3)
    with torch.no_grad():
        layer.weight.copy_(start[:, :-1])
        layer.bias.copy_(start[:, -1])
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
    for _ in range(10):
        order = torch.randperm(len(features), generator=generator)
        assert len(order.split(4)) == 17  # 66 samples, the last two included
        for batch in order.split(4):
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(features[batch]), labels[batch]).backward()
            optimizer.step()
    assert torch.allclose(head.weight, layer.weight, atol=1e-5) and torch.allclose(head.bias, layer.bias, atol=1e-5)
    assert torch.equal(fitted(LinearHead(seed=4), features, labels).weight, head.weight)
    assert not torch.equal(fitted(LinearHead(seed=5), features, labels).weight, head.weight)


def test_published_router_has_13832_numbers():
    router = DomainRouter(768, image_size=1024, head="linear", statistics=False)
    router.head.fit(torch.randn(8, 768), torch.arange(8), 8)
    assert router.tokens.numel() == 7680
    assert router.tokens.numel() + router.head.weight.numel() + router.head.bias.numel() == 13832


@pytest.mark.parametrize("name", HEADS)
def test_state_brings_its_own_shapes_and_stays_fp32(name):
    features, labels = clusters()
    head = fitted(HEADS[name](), features, labels)
    fresh = HEADS[name]()
    assert fresh.domains == 0 and head.domains == 3
    fresh.load_state_dict(head.state_dict())
    assert torch.equal(fresh(features), head(features)) and fresh.domains == 3
    assert torch.equal(copy.deepcopy(head).bfloat16()(features), head(features))
