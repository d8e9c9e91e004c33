"""The life of a pool: domains are added, trained, finished, routed to, saved and loaded."""

import copy
import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModel, LoraConfig, PeftModel, get_peft_model
from sams import perturb, random_sam
from transformers import SamModel

from hf_sam_adapt import ConvLoraConfig, CwsamConfig, ModaConfig, ModaModel, SamAdapterConfig, SamDecoderConfig
from hf_sam_adapt.errors import UserError


INNER = {
    "hq": SamDecoderConfig(decoder="hq"),
    "decoder": SamDecoderConfig(),
    "sam_adapter": SamAdapterConfig(scale_factor=8),
    "sam_adapter_hq": SamAdapterConfig(scale_factor=8, decoder="hq"),
    "conv_lora_late": ConvLoraConfig(layers_to_transform=[2], decoder="hq"),
    "lora": LoraConfig(target_modules=r".*attn\.qkv", r=4, modules_to_save=["mask_decoder"]),
    "neck": LoraConfig(target_modules=r".*mask_decoder.*(q_proj|v_proj)", r=4, modules_to_save=["neck"]),
    "patch_embed": ConvLoraConfig(layers_to_transform=[2], modules_to_save=["patch_embed"]),
}
TESTS = Path(__file__).parents[2]
COLOURS = {"red": 0, "green": 1, "blue": 2}


def images(domain: str, count: int = 6, seed: int = 0) -> torch.Tensor:
    """Noise (count, 3, 64, 64) with one bright channel, which tells the domains apart."""
    generator = torch.Generator().manual_seed(seed + 100 * COLOURS[domain])
    pixels = torch.randn(count, 3, 64, 64, generator=generator) * 0.3
    pixels[:, COLOURS[domain]] += 2
    return pixels


def build_pool(inner, domains=("red", "green", "blue"), **options) -> ModaModel:
    pool = ModaModel(random_sam(), ModaConfig(inner=copy.deepcopy(inner), reject=0.0, **options))
    for seed, name in enumerate(domains):
        pool.add_domain(name)
        perturb(pool, seed=seed + 1)
        pool.observe(images(name, 12))
        pool.finish_domain()
    return pool.eval()


@pytest.fixture(scope="module", params=INNER)
def pool(request) -> ModaModel:
    return build_pool(INNER[request.param])


MIXED = ["blue", "red", "base", "red", "green", "blue"]


def mixed_images() -> torch.Tensor:
    return torch.stack([images("red" if name == "base" else name, 6, 7)[i] for i, name in enumerate(MIXED)])


BOXES = torch.tensor([[[4.0, 6.0, 40.0, 50.0], [10.0, 10.0, 60.0, 30.0]]]).expand(6, 2, 4)


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


@torch.no_grad()
@pytest.mark.parametrize("boxes", [None, BOXES.double()])
def test_mixed_batch_equals_one_image_at_a_time(pool, boxes):
    pool, pixels = copy.deepcopy(pool).double(), mixed_images().double()
    found = pool(pixel_values=pixels, input_boxes=boxes, domain=MIXED)
    for index, name in enumerate(MIXED):
        one = None if boxes is None else boxes[index : index + 1]
        wanted = pool(pixel_values=pixels[index : index + 1], input_boxes=one, domain=name)
        assert error(found.pred_masks[index], wanted.pred_masks[0]) < 1e-11
        assert error(found.iou_scores[index], wanted.iou_scores[0]) < 1e-11


@torch.no_grad()
def test_domains_differ_and_base_is_plain_sam(pool):
    pixels = mixed_images()
    masks = {name: pool(pixel_values=pixels, domain=name).pred_masks for name in ("red", "green", "blue")}
    assert error(masks["red"], masks["green"]) > 1e-3 and error(masks["red"], masks["blue"]) > 1e-3
    plain = random_sam()(pixel_values=pixels)
    assert error(pool(pixel_values=pixels, domain="base", multimask_output=True).pred_masks, plain.pred_masks) < 1e-6


@torch.no_grad()
def test_auto_is_the_routers_choice(pool):
    pixels = torch.cat([images(name, 3, seed=9) for name in COLOURS])
    wanted = [name for name in COLOURS for _ in range(3)]
    routing = pool.route(pixels)
    assert routing.domains == wanted
    assert torch.allclose(routing.scores.sum(1), torch.ones(9))
    found, named = pool(pixel_values=pixels), pool(pixel_values=pixels, domain=wanted)
    assert torch.equal(found.pred_masks, named.pred_masks)


def test_one_encoder_run_for_adapters_in_the_decoder():
    pool, runs = build_pool(INNER["hq"]), []
    pool.model.vision_encoder.register_forward_hook(lambda *args: runs.append(1))
    with torch.no_grad():
        pool(pixel_values=mixed_images())
    assert len(runs) == 1


def test_blocks_before_the_first_adapted_one_run_once():
    pool, runs = build_pool(INNER["conv_lora_late"]), []
    for layer in pool.model.vision_encoder.layers:
        layer.register_forward_hook(lambda module, args, output: runs.append(len(output)))
    with torch.no_grad():
        pool(pixel_values=mixed_images()[:4], domain=MIXED[:4])
    # once for all four images; the last block, and the one that HQ looks at, again for those with an adapter
    assert runs.count(4) == 3 and sum(runs) == 12 + 2 * 3


def test_only_the_open_domain_is_trained():
    pool = build_pool(INNER["hq"], domains=("red",))
    assert not any(parameter.requires_grad for parameter in pool.parameters())
    pool.add_domain("green")
    perturb(pool, seed=3)
    trained = [name for name, parameter in pool.named_parameters() if parameter.requires_grad]
    assert trained and all(".default:green." in name for name in trained)
    before = {name: value.clone() for name, value in pool.state_dict().items()}
    pool.train()
    output = pool(pixel_values=images("green"))
    output.pred_masks.square().mean().backward()
    torch.optim.SGD([p for p in pool.parameters() if p.requires_grad], lr=0.1).step()
    changed = [name for name, value in pool.state_dict().items() if not torch.equal(value, before[name])]
    assert set(changed) == set(trained)


def test_disabling_leaves_the_open_domain_of_a_loaded_pool_trainable(pool, tmp_path):
    pool.save_pretrained(tmp_path)
    loaded = ModaModel.from_pretrained(random_sam(), tmp_path)
    loaded.add_domain("next")
    trained = [name for name, parameter in loaded.named_parameters() if parameter.requires_grad]
    with loaded.disable_adapter():
        pass
    assert trained == [name for name, parameter in loaded.named_parameters() if parameter.requires_grad] != []
    loaded.observe(images("red"))
    loaded.finish_domain()
    loaded.add_domain("file", adapter=tmp_path / "red")
    with loaded.disable_adapter():
        pass
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@torch.no_grad()
def test_disable_adapter_is_plain_sam_and_leaves_gradients_alone():
    pool, pixels = build_pool(INNER["sam_adapter"]), mixed_images()
    with pool.disable_adapter():
        found = pool(pixel_values=pixels, multimask_output=True).pred_masks
    assert error(found, random_sam()(pixel_values=pixels).pred_masks) < 1e-6
    assert not any(parameter.requires_grad for parameter in pool.parameters())


@torch.no_grad()
def test_what_was_disabled_stays_so_after_a_context_within():
    pool, pixels = build_pool(INNER["sam_adapter"]), mixed_images()
    adapted = pool(pixel_values=pixels, domain=MIXED).pred_masks
    with pool.disable_adapter():
        before = pool(pixel_values=pixels, multimask_output=True).pred_masks
        with pool.disable_adapter():
            pass
        assert torch.equal(pool(pixel_values=pixels, multimask_output=True).pred_masks, before)
    assert torch.equal(pool(pixel_values=pixels, domain=MIXED).pred_masks, adapted)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@torch.no_grad()
def test_copies_stand_alone(pool, copied):
    pixels = mixed_images()
    twin = copied(pool)
    wanted = pool(pixel_values=pixels, domain=MIXED).pred_masks
    for parameter in pool.inner.parameters():
        parameter.requires_grad_(False)
    assert torch.equal(twin(pixel_values=pixels, domain=MIXED).pred_masks, wanted)
    perturb(twin.requires_grad_(True), seed=5)
    assert torch.equal(pool(pixel_values=pixels, domain=MIXED).pred_masks, wanted)


@torch.no_grad()
def test_unload_gives_the_base_back(pool):
    twin = copy.deepcopy(pool)
    plain = twin.unload()
    base = random_sam()
    assert error(plain(pixel_values=mixed_images()).pred_masks, base(pixel_values=mixed_images()).pred_masks) < 1e-6
    assert all(torch.equal(value, base.state_dict()[name]) for name, value in plain.state_dict().items())
    assert plain.state_dict().keys() == random_sam().state_dict().keys()
    assert not hasattr(plain, "peft_config")
    assert not plain._forward_hooks and not plain._forward_pre_hooks


def test_an_error_inside_leaves_the_pool_as_it_was(pool):
    pixels = mixed_images()
    with torch.no_grad():
        wanted = pool(pixel_values=pixels, domain=MIXED).pred_masks
        with pytest.raises(ValueError, match="input_points must be a 4D"):
            pool(pixel_values=pixels, input_points=torch.zeros(6, 2), domain=MIXED)
        assert torch.equal(pool(pixel_values=pixels, domain=MIXED).pred_masks, wanted)


def hashes(folder):
    return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*.*"))}


@torch.no_grad()
def test_save_and_load(pool, tmp_path):
    pool.save_pretrained(tmp_path)
    loaded = ModaModel.from_pretrained(random_sam(), tmp_path)
    pixels = mixed_images()
    assert loaded.domains == pool.domains
    assert torch.equal(loaded(pixel_values=pixels).pred_masks, pool(pixel_values=pixels).pred_masks)
    assert loaded.route(pixels).domains == pool.route(pixels).domains
    for name in pool.domains:
        alone = PeftModel.from_pretrained(random_sam(), tmp_path / name).eval()
        found = alone(pixel_values=pixels, multimask_output=False).pred_masks
        assert torch.equal(found, pool(pixel_values=pixels, domain=name, multimask_output=False).pred_masks)


@pytest.mark.parametrize("inner", ["hq", "sam_adapter"])
def test_a_ninth_domain_leaves_the_files_and_masks_of_eight(inner, tmp_path):
    names, pixels = [f"domain{number}" for number in range(8)], mixed_images()
    pool = ModaModel(random_sam(), ModaConfig(inner=copy.deepcopy(INNER[inner]), reject=0.0)).eval()
    for seed, name in enumerate(names):
        pool.add_domain(name)
        perturb(pool, seed=seed + 1)
        pool.observe(torch.randn(8, 3, 64, 64) + seed)
        pool.finish_domain()
    pool.save_pretrained(tmp_path)

    def masks(pool):
        with torch.no_grad():
            alone = [pool(pixel_values=pixels, domain=name).pred_masks for name in [*names, "base"]]
            return [*alone, pool(pixel_values=pixels, domain=["base", *names[:5]]).pred_masks]

    before, expected = hashes(tmp_path), masks(pool)
    again = ModaModel.from_pretrained(random_sam(), tmp_path)
    again.add_domain("ninth")
    optimizer = torch.optim.AdamW([p for p in again.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        again.train()(pixel_values=pixels).pred_masks.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    again.eval().observe(torch.randn(8, 3, 64, 64) - 3)
    again.finish_domain()
    again.save_pretrained(tmp_path)
    after = hashes(tmp_path)
    same = {path for path in before if before[path] == after[path]}
    assert same == {path for path in before if len(path.parts) > 1} and len(same) == 16
    for one in (again, ModaModel.from_pretrained(random_sam(), tmp_path)):
        assert one.domains == [*names, "ninth"]
        assert all(torch.equal(found, wanted) for found, wanted in zip(masks(one), expected, strict=True))
        one.keep_first(8)
        assert one.domains == names and all(torch.equal(a, b) for a, b in zip(masks(one), expected, strict=True))
        with torch.no_grad():
            assert one.route(pixels).domains == pool.route(pixels).domains
            assert torch.equal(one.route(pixels).scores, pool.route(pixels).scores)


@pytest.mark.parametrize("count", [-1, 0, 3])
def test_only_domains_of_the_pool_can_be_kept(count):
    pool = build_pool(INNER["hq"], domains=("red", "green"))
    with pytest.raises(UserError, match=f"keep_first: {count} of 2 domains; keep 1 to 2"):
        pool.keep_first(count)
    assert pool.domains == ["red", "green"] and list(pool.inner.peft_config) == ["default", "default:green"]


def test_names_of_classes_that_a_domain_brought_survive_a_file_of_peft(tmp_path):
    names = {0: "soil", 1: "crop", 2: "weed"}
    run = get_peft_model(random_sam(), SamDecoderConfig(decoder="class_wise", num_labels=3, id2label=names))
    run.save_pretrained(tmp_path / "run")
    model = get_peft_model(random_sam(), ModaConfig(inner=SamDecoderConfig(), reject=0))
    model.base_model.add_domain("field", tmp_path / "run")
    model.base_model.observe(images("red"))
    model.base_model.finish_domain()
    model.save_pretrained(tmp_path / "pool")
    loaded = PeftModel.from_pretrained(random_sam(), tmp_path / "pool").base_model
    assert loaded.moda_config.id2label == loaded.inner.peft_config["default"].id2label == names


@pytest.mark.slow
def test_the_same_pool_gives_the_same_bytes(pool, tmp_path):
    code = "import sys; from sams import random_sam; from hf_sam_adapt import ModaModel; "
    code += "ModaModel.from_pretrained(random_sam(), sys.argv[1]).save_pretrained(sys.argv[2])"
    pool.save_pretrained(tmp_path / "0")
    for number in range(3):  # safetensors orders several entries of metadata by chance, anew in each process
        paths = [str(tmp_path / str(number)), str(tmp_path / str(number + 1))]
        subprocess.run([sys.executable, "-c", code, *paths], check=True, cwd=TESTS)
    name = "adapter_model.safetensors"
    assert len({(tmp_path / str(number) / name).read_bytes() for number in range(4)}) == 1


def test_a_domains_folder_loads_by_itself_in_every_way(tmp_path):
    base = random_sam()
    base.save_pretrained(tmp_path / "base")
    pixels, expected = mixed_images(), {}
    pool = ModaModel(SamModel.from_pretrained(tmp_path / "base"), ModaConfig(inner=SamAdapterConfig(scale_factor=8)))
    for seed, name in enumerate(("red", "green")):
        pool.add_domain(name)
        perturb(pool, seed=seed + 1)
        pool.observe(images(name))
        pool.finish_domain()
    pool.eval().save_pretrained(tmp_path / "pool")
    with torch.no_grad():
        for name in pool.domains:
            expected = pool(pixel_values=pixels, domain=name).pred_masks
            folder = tmp_path / "pool" / name
            loaded = random_sam()
            loaded.load_adapter(str(folder))
            for model in (
                PeftModel.from_pretrained(random_sam(), folder),
                AutoPeftModel.from_pretrained(folder),
                loaded,
            ):
                found = model.eval().requires_grad_(False)(pixel_values=pixels).pred_masks
                assert torch.equal(found, expected)


@torch.no_grad()
def test_a_trained_adapter_becomes_a_domain(pool, tmp_path):
    pool.save_pretrained(tmp_path)
    other = ModaModel(random_sam(), ModaConfig(inner=copy.deepcopy(pool.moda_config.inner), reject=0.0)).eval()
    other.add_domain("sky", adapter=tmp_path / "blue")
    other.observe(images("blue"))
    other.finish_domain()
    pixels = mixed_images()
    assert torch.equal(
        other(pixel_values=pixels, domain="sky").pred_masks, pool(pixel_values=pixels, domain="blue").pred_masks
    )


@torch.no_grad()
def test_an_adapter_keeps_what_the_pool_leaves_open(tmp_path):
    inner = SamAdapterConfig(scale_factor=8, decoder="hq", early_layer=0, feature_weights=[1.0, 3.0])
    alone = perturb(get_peft_model(random_sam(), copy.deepcopy(inner))).eval()
    alone.save_pretrained(tmp_path / "alone")
    pixels, config = mixed_images(), ModaConfig(inner=SamAdapterConfig(scale_factor=8, decoder="hq"))
    model = get_peft_model(random_sam(), config)
    model.base_model.add_domain("sky", adapter=tmp_path / "alone")
    model.base_model.observe(images("blue"))
    model.base_model.finish_domain()
    expected = alone.requires_grad_(False)(pixel_values=pixels).pred_masks
    model.eval().save_pretrained(tmp_path / "one_file")
    model.base_model.save_pretrained(tmp_path / "pool")
    for pool in (
        model.base_model,
        PeftModel.from_pretrained(random_sam(), tmp_path / "one_file").eval().base_model,
        ModaModel.from_pretrained(random_sam(), tmp_path / "pool"),
    ):
        assert torch.equal(pool(pixel_values=pixels, domain="sky").pred_masks, expected)


@pytest.mark.parametrize(
    ("base", "fields", "message"),
    [
        ({"seed": 5}, {}, "other weights"),
        ({}, {"image_size": 96}, "needs image_size 96"),
        ({}, {"in_channels": 5}, "needs 5 input channels"),
        ({}, {"scale_factor": 4}, "differs from the pool's inner config in scale_factor"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(base, fields, message, tmp_path):
    pool = build_pool(SamAdapterConfig(scale_factor=8), domains=("red",))
    adapter = get_peft_model(random_sam(**base), SamAdapterConfig(**{"scale_factor": 8, **fields}))
    adapter.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        pool.add_domain("sky", adapter=tmp_path)
    assert pool.domains == ["red"] and pool.open_domain is None and not pool.moda_config.domain_fields


@pytest.mark.parametrize("reject", [0.0, 0.01])
def test_the_domains_of_a_pool_have_the_same_classes(tmp_path, reject):
    for count in (3, 4):
        config = CwsamConfig(num_labels=count, scale_factor=8, id2label=dict(enumerate("abcd"[:count])))
        get_peft_model(random_sam(), config).save_pretrained(tmp_path / str(count))
    pool = ModaModel(random_sam(), ModaConfig(inner=CwsamConfig(scale_factor=8), reject=reject))
    if reject:
        with pytest.raises(UserError, match="plain SAM has no classes for unknown images"):
            pool.add_domain("red", adapter=tmp_path / "3")
        return
    pool.add_domain("red", adapter=tmp_path / "3")
    pool.observe(images("red", 4))
    pool.finish_domain()
    assert pool.moda_config.num_labels == 3 and pool.moda_config.id2label[1] == "b"
    with pytest.raises(UserError, match="domain 'green' has 4 classes, the pool's others have 3"):
        pool.add_domain("green", adapter=tmp_path / "4")
    assert pool.domains == ["red"]


@pytest.mark.parametrize("inner", [CwsamConfig(num_labels=3, scale_factor=8), SamDecoderConfig(decoder="hq")])
def test_masks_of_a_batch_have_equally_many_channels(inner):
    pool, pixels = build_pool(inner, domains=("red", "green")), images("red", 2)
    with torch.no_grad():
        if inner.num_labels is None:
            for domain in (["red", "base"], ["base", "base"], "red"):
                masks = pool(pixel_values=pixels, domain=domain, multimask_output=True).pred_masks
                assert masks.shape[:3] == (2, 1, 1)
            assert pool(pixel_values=pixels, domain="base", multimask_output=True).pred_masks.shape[2] == 3
            return
        with pytest.raises(UserError, match="masks of 1 and 3 channels do not fit in one batch"):
            pool(pixel_values=pixels, domain=["red", "base"])
        assert pool(pixel_values=pixels, domain=["red", "green"]).pred_masks.shape[2] == 3


@torch.no_grad()
def test_one_file_of_peft(pool, tmp_path):
    model = get_peft_model(random_sam(), ModaConfig(inner=copy.deepcopy(pool.moda_config.inner), reject=0.0))
    for seed, name in enumerate(("red", "green")):
        model.base_model.add_domain(name)
        perturb(model, seed=seed + 5)
        model.base_model.observe(images(name))
        model.base_model.finish_domain()
    model.eval().save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    loaded = PeftModel.from_pretrained(random_sam(), tmp_path).eval()
    pixels = torch.cat([images("red"), images("green")])
    for domain in (None, "red", "green", ["red", "base", "green"] * 4):
        found = loaded(pixel_values=pixels, domain=domain).pred_masks
        assert torch.equal(found, model(pixel_values=pixels, domain=domain).pred_masks)


def test_bad_input(pool, tmp_path):
    twin, pixels = copy.deepcopy(pool), mixed_images()
    with pytest.raises(UserError, match="'red' is in the pool already"):
        twin.add_domain("red")
    for name in ("auto", "base", "__base__", "a.b", "", "vision_encoder", "weights/.."):
        with pytest.raises(UserError, match="name"):
            twin.add_domain(name)
    with pytest.raises(UserError, match="domain 'purple' is not in the pool"):
        twin(pixel_values=pixels, domain="purple")
    with pytest.raises(UserError, match="2 names for 6 images"):
        twin(pixel_values=pixels, domain=["red", "green"])
    with pytest.raises(UserError, match="reads pixel_values"):
        twin(image_embeddings=torch.zeros(2, 16, 8, 8), domain="auto")
    for domain, message in (
        (["red", "auto"] * 3, "'auto' is for a whole call"),
        (5, "5 is not a name"),
        (torch.tensor([0, 1, 2, 3, 0, 0]), "3 is not a place in a pool of 3"),
    ):
        with pytest.raises(UserError, match=message):
            twin(pixel_values=pixels, domain=domain)
    with pytest.raises(UserError, match="nothing to segment"):
        twin(domain=["red"])
    with pytest.raises(UserError, match="output_attentions: not with images of several domains"):
        twin(pixel_values=pixels, domain=MIXED, output_attentions=True)
    with torch.no_grad():
        found = twin(pixel_values=pixels, domain=MIXED, return_dict=True, output_attentions=False)
        assert torch.equal(found.pred_masks, twin(pixel_values=pixels, domain=MIXED).pred_masks)
    for name in (5, "a" * 101):
        with pytest.raises(UserError, match="choose another"):
            twin.add_domain(name)
    twin.save_pretrained(tmp_path / "pool")
    with pytest.raises(UserError, match="holds a pool of red, green, blue, which this one does not continue"):
        build_pool(INNER["hq"], domains=("red", "blue")).save_pretrained(tmp_path / "pool")
    with pytest.raises(UserError, match="holds an adapter, which"):
        twin.save_pretrained(tmp_path / "pool" / "red")
    with pytest.raises(UserError, match=r"ModaModel\.from_pretrained"):
        PeftModel.from_pretrained(random_sam(), tmp_path / "pool")
    with pytest.raises(UserError, match="other weights"):
        ModaModel.from_pretrained(random_sam(seed=3), tmp_path / "pool")
    with pytest.raises(UserError, match="is not a pool"):
        ModaModel.from_pretrained(random_sam(), tmp_path / "pool" / "red")
    twin.add_domain("empty")
    with pytest.raises(UserError, match="has no images"):
        twin.finish_domain()
    with pytest.raises(UserError, match="'empty' is open"):
        twin.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="'empty' is open"):
        twin.add_domain("next")
    with pytest.raises(UserError, match="one domain at a time"):
        twin.train()(pixel_values=pixels, domain=MIXED)
    with pytest.raises(NotImplementedError, match="cannot be merged"):
        twin.merge_and_unload()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_tokens": 0}, "num_tokens=0 must be at least 1"),
        ({"buffer_size": -3}, "buffer_size=-3 must be at least 1"),
        ({"inner": CwsamConfig(num_labels=3)}, "plain SAM has no classes for unknown images; set reject=0"),
        ({"inner": LoraConfig(bias="lora_only")}, "inner.bias='lora_only' changes SAM's own weights"),
        ({"inner": LoraConfig(init_lora_weights="pissa")}, "inner.init_lora_weights='pissa' changes"),
    ],
)
def test_configs_that_cannot_work(fields, message):
    with pytest.raises(UserError, match=message):
        ModaConfig(**fields)


def test_routing_needs_two_domains():
    pool = ModaModel(random_sam(), ModaConfig(reject=0.0)).eval()
    pixels = mixed_images()
    with torch.no_grad():
        plain = random_sam()(pixel_values=pixels, multimask_output=False)
        assert error(pool(pixel_values=pixels).pred_masks, plain.pred_masks) < 1e-6
        pool.add_domain("red")
        perturb(pool)
        pool.observe(images("red"))
        pool.finish_domain()
        assert pool.route(pixels).domains == ["red"] * 6
        assert torch.equal(pool(pixel_values=pixels).pred_masks, pool(pixel_values=pixels, domain="red").pred_masks)


def test_learned_tokens_are_trained_for_a_new_domain_and_saved(tmp_path):
    """By plain SAM, whatever the open adapter does, and without a gradient on it."""
    pool = build_pool(SamAdapterConfig(scale_factor=8), domains=("red",), learn_tokens=True, statistics=False)
    drawn = pool.router.tokens.detach().clone()
    with pytest.raises(UserError, match="no domain is open"):
        pool.fit_tokens([images("green")])
    pool.add_domain("green")
    twin = copy.deepcopy(pool)
    perturb(pool, seed=5)
    pool.router.tokens.data.copy_(drawn)
    for one in (pool, twin):
        one.fit_tokens([images("green", seed=seed) for seed in range(3)], learning_rate=1e-3)
    assert not torch.equal(pool.router.tokens, drawn)
    assert torch.equal(pool.router.tokens, twin.router.tokens)
    assert all(parameter.grad is None for parameter in pool.parameters())
    pool.observe(images("green", 12))
    pool.finish_domain()
    found = pool.eval().route(torch.cat([images("red", 2, 8), images("green", 2, 8)]))
    assert found.domains == ["red", "red", "green", "green"]
    pool.save_pretrained(tmp_path / "pool")
    loaded = ModaModel.from_pretrained(random_sam(), tmp_path / "pool")
    assert torch.equal(loaded.router.tokens, pool.router.tokens)


def test_router_at_another_image_size(pool):
    with pytest.raises(UserError, match="fitted at 64 pixels"):
        pool.route(torch.zeros(2, 3, 48, 48))
