"""The domain router: what it keeps, where it sends images, what it refuses."""

import pytest
import torch
from sams import random_vision_sam

from hf_sam_adapt import ModaConfig
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.tuners.moda.heads import HEADS
from hf_sam_adapt.tuners.moda.router import DomainRouter
from hf_sam_adapt.tuners.moda.tokens import TokenProbe


WIDTH = 16


def cluster(index: int, count: int, seed: int = 0) -> torch.Tensor:
    """Features (count, D) of a domain: a mean of its own, a covariance shared by all."""
    shared, generator = torch.Generator().manual_seed(99), torch.Generator().manual_seed(1000 * index + seed)
    mixing = torch.randn(WIDTH, WIDTH, generator=shared) / WIDTH**0.5
    mean = 4 * torch.randn(20, WIDTH, generator=shared)[index]
    return mean + torch.randn(count, WIDTH, generator=generator) @ mixing


def router_of(domains: int = 3, count: int = 60, **options) -> DomainRouter:
    router = DomainRouter(WIDTH, image_size=64, **options)
    for index in range(domains):
        router.observe(f"d{index}", cluster(index, count))
    router.fit()
    return router


def textures(kind: int, count: int, seed: int = 0, size: int = 64) -> torch.Tensor:
    """Images (count, 3, S, S) of zero mean: stripes of one orientation and wavelength, random phase, colour, noise."""
    generator = torch.Generator().manual_seed(100 * kind + seed)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    wave = [x / 3, y / 3, (x + y) / 8][kind]
    phase, colour = torch.rand(count, 1, 1, 1, generator=generator), torch.randn(count, 3, 1, 1, generator=generator)
    noise = 0.3 * torch.randn(count, 3, size, size, generator=generator)
    return torch.sin(2 * torch.pi * (wave + phase)) * colour.sign() * (0.5 + colour.abs()) + noise


@pytest.mark.parametrize("mode", ["probe", "joint"])
@pytest.mark.parametrize("head", ["ridge", "ncm", "mahalanobis"])
def test_router_tells_textures_apart(mode, head):
    encoder = random_vision_sam().vision_encoder
    router = DomainRouter(32, image_size=64, mode=mode, head=head, reject=0)
    for kind in range(3):
        router.observe(f"d{kind}", router.features(encoder, textures(kind, 20)))
    router.fit()
    hits = [router.route(router.features(encoder, textures(kind, 20, seed=1))) == kind for kind in range(3)]
    assert torch.cat(hits).float().mean() > 0.9


@pytest.mark.parametrize("mode", ["probe", "joint"])
def test_features_are_token_zero_and_the_statistics_of_the_embedding(mode):
    encoder = random_vision_sam().vision_encoder
    images = textures(0, 3)
    token = DomainRouter(32, image_size=64, mode=mode, statistics=False).features(encoder, images)
    features = DomainRouter(32, image_size=64, mode=mode).features(encoder, images)
    assert token.shape == (3, 32) and features.shape == (3, 32 + 2 * 16)
    assert features.dtype == torch.float32 and not features.requires_grad
    assert torch.equal(features[:, :32], token)
    if mode == "probe":
        with torch.no_grad():
            embedding = encoder(images).last_hidden_state
        assert torch.allclose(features[:, 32:48], embedding.mean((2, 3)), atol=1e-5)
        assert torch.allclose(features[:, 48:], embedding.std((2, 3)), atol=1e-5)


def test_features_come_out_of_a_pass_that_runs_anyway():
    encoder, router = random_vision_sam().vision_encoder, DomainRouter(32, image_size=64)
    with torch.no_grad(), TokenProbe(encoder, router.tokens) as probe:
        encoder(textures(1, 2))
    assert torch.equal(router.read(probe), router.features(encoder, textures(1, 2)))


def test_features_at_another_size_raise():
    with pytest.raises(UserError, match=r"fitted at 64 pixels and got images of 48"):
        DomainRouter(32, image_size=64).features(random_vision_sam().vision_encoder, torch.zeros(1, 3, 48, 48))


def test_features_of_a_bfloat16_encoder_are_fp32():
    encoder, router = random_vision_sam().vision_encoder, DomainRouter(32, image_size=64).bfloat16()
    expected = router.features(encoder, textures(0, 2))
    features = router.features(encoder.bfloat16(), textures(0, 2).bfloat16())
    assert router.tokens.dtype == features.dtype == torch.float32
    assert (features - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("head", HEADS)
def test_what_is_kept_does_not_depend_on_the_order(head):
    one, other = (DomainRouter(WIDTH, image_size=64, head=head, reject=0.05, buffer_size=30) for _ in range(2))
    for index in range(3):
        one.observe(f"d{index}", cluster(index, 50))
    other.domains = ["d0", "d1", "d2"]
    for index in (2, 0, 1):
        shuffled = cluster(index, 50)[torch.randperm(50, generator=torch.Generator().manual_seed(5))]
        for part in shuffled.split(7):
            other.observe(f"d{index}", part)
        other.observe(f"d{index}", shuffled[:20])  # an image seen twice counts once
    one.fit()
    other.fit()
    assert one.counts.tolist() == [30, 30, 30]
    state = other.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())


def test_what_is_kept_is_a_uniform_sample_by_seed():
    kept = torch.zeros(40)
    features = cluster(0, 40)
    for seed in range(200):
        router = DomainRouter(WIDTH, image_size=64, buffer_size=10, seed=seed)
        router.observe("d0", features)
        kept += (features[:, None] == router.cached).all(-1).any(1)
    assert kept.sum() == 2000 and kept.min() > 25 and kept.max() < 80  # 50 +- 6


def test_a_new_domain_needs_the_cached_features_only():
    grown = router_of(2)
    grown.observe("d2", cluster(2, 60))
    assert grown.route(cluster(2, 5)).max() < 2  # not before fit
    assert grown.scores(cluster(2, 5))[:, 2].tolist() == [0.0] * 5
    grown.fit()
    expected = router_of(3).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in grown.state_dict().items())
    assert (grown.route(cluster(2, 50, seed=1)) == 2).float().mean() > 0.9


@pytest.mark.parametrize("head", HEADS)
def test_state_loads_into_a_fresh_router(head):
    router = router_of(3, head=head, reject=0.1)
    fresh = DomainRouter(WIDTH, image_size=64, head=head, reject=0.1)
    fresh.domains = ["d0", "d1", "d2"]
    fresh.load_state_dict(router.state_dict())
    queries = torch.cat([cluster(index, 20, seed=2) for index in range(5)])
    assert torch.equal(fresh.route(queries), router.route(queries))
    assert torch.equal(fresh.scores(queries), router.scores(queries))
    for one in (fresh, router):
        one.observe("d3", cluster(3, 30))
        one.fit()
    assert torch.equal(fresh.scores(queries), router.scores(queries))


@pytest.mark.parametrize("head", HEADS)
def test_scores_are_probabilities_calibrated_on_held_out_features(head):
    torch.manual_seed(0)
    router = DomainRouter(WIDTH, image_size=64, head=head, reject=0)
    noise = 6 * torch.randn(2, 300, WIDTH)
    for index in range(3):
        router.observe(f"d{index}", cluster(index, 100) + noise[0, 100 * index :][:100])
    router.fit()
    queries = torch.cat([cluster(index, 100, seed=1) for index in range(3)]) + noise[1]
    scores, labels = router.scores(queries), torch.arange(3).repeat_interleave(100)
    assert torch.allclose(scores.sum(1), torch.ones(300)) and (scores >= 0).all()
    hits = (scores.argmax(1) == labels).float().mean()
    assert 0.6 < hits < 0.99
    assert abs(scores.amax(1).mean() - hits) < 0.08
    assert torch.equal(router.route(queries), scores.argmax(1))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("reject", [0.02, 0.1])
def test_known_images_are_refused_at_the_given_share_and_unknown_ones_mostly(head, reject):
    router = router_of(3, count=250, head=head, reject=reject)
    known = torch.cat([router.route(cluster(index, 300, seed=1)) for index in range(3)])
    unknown = torch.cat([router.route(cluster(index, 100)) for index in range(5, 9)])
    assert reject / 4 < (known == -1).float().mean() < 2 * reject
    assert (unknown == -1).float().mean() > 0.9
    always = router_of(3, count=250, head=head, reject=0)
    assert (always.route(cluster(7, 100)) >= 0).all()


def test_fewer_than_two_domains_need_no_router():
    router = DomainRouter(WIDTH, image_size=64, reject=0.05)
    assert router.route(cluster(0, 3)).tolist() == [-1] * 3 and router.scores(cluster(0, 3)).shape == (3, 0)
    router.observe("d0", cluster(0, 20))
    router.fit()
    far = cluster(5, 3)
    assert router.route(far).tolist() == [0] * 3 and router.scores(far).tolist() == [[1.0]] * 3


def test_fit_says_which_domain_lacks_images():
    router = DomainRouter(WIDTH, image_size=64, reject=0.05)
    router.domains = ["d0", "d1"]
    router.observe("d0", cluster(0, 20))
    with pytest.raises(UserError, match="'d1' has no images"):
        router.fit()
    router.observe("d1", cluster(1, 1))
    with pytest.raises(UserError, match=r"'d1' has one image.*reject=0"):
        router.fit()
    single = DomainRouter(WIDTH, image_size=64, reject=0)
    single.observe("d0", cluster(0, 1))
    single.observe("d1", cluster(1, 1))
    single.fit()
    assert single.route(cluster(1, 5)).tolist() == [1] * 5


@pytest.mark.parametrize("option", [{"mode": "both"}, {"head": "mlp"}, {"reject": 1.0}, {"reject": -0.1}])
def test_unknown_options_raise(option):
    with pytest.raises(UserError):
        DomainRouter(WIDTH, image_size=64, **option)


@pytest.mark.parametrize("mode", ["probe", "joint"])
def test_frozen_tokens_have_no_gradient_and_learned_ones_all(mode):
    encoder = random_vision_sam().vision_encoder.requires_grad_(False)
    frozen = DomainRouter(32, image_size=64, mode=mode)
    assert not list(frozen.parameters()) and not frozen.features(encoder, textures(0, 2)).requires_grad
    learned = DomainRouter(32, image_size=64, mode=mode, learn_tokens=True)
    learned.features(encoder, textures(0, 2)).square().sum().backward()
    assert (learned.tokens.grad.abs().amax(-1) > 0).all()
    assert torch.equal(learned.tokens, frozen.tokens)
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_learned_tokens_are_trained_against_the_earlier_domains():
    encoder = random_vision_sam().vision_encoder
    router = DomainRouter(32, image_size=64, learn_tokens=True, statistics=False, reject=0)
    before = router.tokens.detach().clone()
    router.fit_tokens(encoder, "d0", [textures(0, 8)])
    assert torch.equal(router.tokens, before)  # nothing to tell it from
    router.observe("d0", router.features(encoder, textures(0, 20)))
    batches = [textures(1, 8, seed=seed) for seed in range(2)]

    def separation() -> torch.Tensor:
        with torch.no_grad():
            new = router.features(encoder, textures(1, 20, seed=5))
        scale = router.cached.std(0)
        return ((new.mean(0) - router.cached.mean(0)) / scale).norm()

    apart = separation()
    router.fit_tokens(encoder, "d1", batches, epochs=4, learning_rate=1e-2)
    assert not torch.equal(router.tokens, before) and separation() > apart
    assert router.tokens.grad is None and all(parameter.grad is None for parameter in encoder.parameters())
    router.observe("d1", router.features(encoder, textures(1, 20)))
    router.fit()
    assert (router.route(router.features(encoder, textures(1, 20, seed=3))) == 1).float().mean() > 0.9


def test_frozen_tokens_cannot_be_trained():
    with pytest.raises(UserError, match="learn_tokens=True"):
        DomainRouter(32, image_size=64).fit_tokens(random_vision_sam().vision_encoder, "d0", [textures(0, 2)])


def test_the_probe_needs_one_token_and_the_official_router_ten():
    assert ModaConfig().num_tokens == 1
    assert ModaConfig(router="joint").num_tokens == 10
    assert ModaConfig(num_tokens=3).to_dict()["num_tokens"] == 3
