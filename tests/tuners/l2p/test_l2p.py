"""The prompt pool: its size, which prompts an image gets, what it trains, and that it comes back from disk."""

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from sams import perturb, random_sam
from transformers import SamConfig, SamModel

from hf_sam_adapt import L2pConfig
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.forward import PromptedSam, segment
from hf_sam_adapt.prompts import Prompt
from hf_sam_adapt.tuners.l2p.layer import L2pDecoder, key_loss


def pool_of(model):
    return next(module for module in model.modules() if isinstance(module, L2pDecoder))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return get_peft_model(random_sam(), L2pConfig(pool_size=7, prompt_length=2, top_k=3)).eval()


def test_the_official_sizes_have_61440_parameters():
    with torch.device("meta"):
        sam = SamModel(SamConfig())
    layer = L2pDecoder(sam.mask_decoder)
    layer.update_layer("default", L2pConfig())
    trained = [value for name, value in layer.named_parameters() if name.startswith("l2p_")]
    assert sum(value.numel() for value in trained) == 61_440


def test_each_image_gets_the_prompts_of_the_nearest_keys(model):
    pool = pool_of(model)
    embeddings = torch.randn(4, 16, 8, 8)
    found = pool.choose("default", embeddings)
    query, keys = embeddings.mean((2, 3)), pool.l2p_keys["default"].detach()
    for image in range(4):
        cosine = torch.tensor([F.cosine_similarity(query[image], key, dim=0) for key in keys])
        nearest = cosine.sort(descending=True).indices[:3]
        assert torch.equal(found[image], torch.cat([pool.l2p_prompts["default"][i] for i in nearest]))


def test_in_training_the_majority_chooses(model):
    pool = pool_of(model).train()
    keys = pool.l2p_keys["default"].detach()
    # Three images like keys 1 and 4, one like key 6.
    wanted = keys[1] / keys[1].norm() + keys[4] / keys[4].norm()
    query = torch.stack([wanted, wanted, wanted, keys[6]])
    found = pool.choose("default", query[:, :, None, None])
    assert all(torch.equal(found[0], other) for other in found)
    chosen = {int((pool.l2p_prompts["default"] == prompt).flatten(1).all(1).nonzero()) for prompt in found[0].split(2)}
    assert {1, 4} <= chosen and len(chosen) == 3
    loss = key_loss(pool)
    cosines = F.cosine_similarity(query[:, None], keys[list(chosen)][None], dim=2)
    assert torch.allclose(loss, -cosines.sum(1).mean(), atol=1e-6)
    assert key_loss(pool) is None


@pytest.mark.parametrize("kind", ["none", "box", "point"])
def test_prompts_change_the_mask_and_alone_are_trained(model, kind):
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    prompt = {
        "none": Prompt("none"),
        "box": Prompt("box", boxes=torch.tensor([[5.0, 5, 40, 30], [1, 2, 60, 50]])),
        "point": Prompt("point", points=torch.tensor([[[9.0, 20]]]), point_labels=torch.ones(1, 1, dtype=torch.long)),
    }[kind]
    with torch.no_grad():
        adapted = segment(model, pixels, [prompt, prompt])
        with model.disable_adapter():
            plain = segment(model, pixels, [prompt, prompt])
        assert all((one - other).abs().max() > 1e-4 for one, other in zip(adapted, plain))
        alone = segment(model, pixels[:1], [prompt])
        assert torch.allclose(alone[0], adapted[0], atol=1e-6)
    logits, own, _ = PromptedSam(model.train())(pixels, [prompt, prompt])
    (torch.cat(logits).square().mean() + own).backward()
    for name, value in model.named_parameters():
        assert value.requires_grad == ("l2p_" in name)
        assert not value.requires_grad or value.grad.abs().sum() > 0


def test_the_key_loss_is_a_mean_over_the_images_of_all_calls(model):
    pool = pool_of(model.train())
    one, other = torch.randn(1, 16, 4, 4), torch.randn(3, 16, 4, 4)
    losses = []
    for embeddings in (one, other):
        pool.choose("default", embeddings)
        losses.append(key_loss(model))
    pool.choose("default", one)
    pool.choose("default", other)
    assert torch.allclose(key_loss(model), (losses[0] + 3 * losses[1]) / 4)


def test_a_saved_pool_comes_back(model, tmp_path):
    perturb(model)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = segment(model, pixels, [Prompt("none")] * 2)
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(random_sam(), tmp_path).eval()
        found = segment(again, pixels, [Prompt("none")] * 2)
    assert all(torch.equal(one, two) for one, two in zip(expected, found))
    assert (tmp_path / "adapter_model.safetensors").exists()


def test_bad_sizes():
    with pytest.raises(UserError, match="top_k=9 of pool_size=4"):
        L2pConfig(pool_size=4, top_k=9)
    with pytest.raises(UserError, match="decoder beside the prompts is frozen"):
        L2pConfig(decoder="full")
