"""One description of a family says where its parts are, and a SAM without one is refused by its type."""

import re

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from sams import random_sam, random_vision_sam
from torch import nn
from transformers import AutoConfig, SamModel, ViTConfig, ViTModel

from hf_sam_adapt import (
    ConvLoraConfig,
    CwsamConfig,
    L2pConfig,
    ModaConfig,
    SamAdapterConfig,
    SamDecoderConfig,
)
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.forward import encode
from hf_sam_adapt.inference.loading import build_model, load_base
from hf_sam_adapt.sam.families import (
    FAMILIES,
    SAM,
    check_no_unknown_sam,
    encoder_shape,
    find_family,
    find_mask_decoder,
    find_vision_encoder,
)
from hf_sam_adapt.sam.image_size import resize_input
from hf_sam_adapt.sam.processing import SamAdaptProcessor


CONFIGS = {
    "sam_adapter": SamAdapterConfig,
    "conv_lora": lambda: ConvLoraConfig(target_modules=r".*(qkv|q_proj)"),
    "cwsam": lambda: CwsamConfig(num_labels=3),
    "decoder": SamDecoderConfig,
    "l2p": L2pConfig,
    "moda": lambda: ModaConfig(domains=["polyp"]),
}
HIERA = {
    "hidden_size": 8,
    "num_attention_heads": 1,
    "blocks_per_stage": [1, 1, 1, 1],
    "embed_dim_per_stage": [8, 16, 32, 64],
    "num_attention_heads_per_stage": [1, 1, 2, 2],
    "global_attention_blocks": [2],
    "image_size": [64, 64],
}


def without_weights(name: str) -> nn.Module:
    """A model of transformers on the meta device: its class and structure are what is looked at."""
    if not hasattr(transformers, name):
        pytest.skip(f"this transformers has no {name}")
    cls = getattr(transformers, name)
    with torch.device("meta"):
        return cls(cls.config_class())


def sam2() -> nn.Module:
    config = transformers.Sam2Config(
        vision_config={
            "backbone_config": {"model_type": "sam2_hiera_det_model", **HIERA},
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            "fpn_hidden_size": 32,
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": 64, "mask_input_channels": 8},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 8},
    )
    return transformers.Sam2Model(config)


UNKNOWN = {
    "sam2": sam2,
    "sam2_video": lambda: without_weights("Sam2VideoModel"),
    "sam3_tracker": lambda: without_weights("Sam3TrackerModel"),
    "sam_hq": lambda: without_weights("SamHQModel"),
    "sam2_vision_model": lambda: without_weights("Sam2VisionModel"),
}


@pytest.fixture(scope="module", params=UNKNOWN)
def unknown(request) -> tuple[str, nn.Module]:
    return request.param, UNKNOWN[request.param]()


def refusal(model_type: str, name: str) -> str:
    return re.escape(f"model: {name} is of type {model_type!r}; this package adapts 'sam' models")


def test_every_method_refuses_a_sam_of_no_family_by_its_type(unknown):
    model_type, model = unknown
    before = {name: id(module) for name, module in model.named_modules()}
    for method, config in CONFIGS.items():
        with pytest.raises(UserError, match=refusal(model_type, type(model).__name__)):
            get_peft_model(model, config())
        if method == "moda":  # PEFT itself refuses add_adapter
            continue
        with pytest.raises(UserError, match=refusal(model_type, type(model).__name__)):
            model.add_adapter(config())
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert find_vision_encoder(model) is None and find_mask_decoder(model) is None


def test_so_does_whatever_else_takes_a_model(unknown):
    model_type, model = unknown
    for refused in (
        lambda: build_model("full", {}, model),
        lambda: build_model("lora", {}, model),
        lambda: encode(model, torch.zeros(1, 3, 64, 64)),
        lambda: encoder_shape(model),
    ):
        with pytest.raises(UserError, match=refusal(model_type, type(model).__name__)):
            refused()
    with pytest.raises(UserError, match="no SAM vision encoder"):
        resize_input(model, 128)


@pytest.mark.parametrize(
    "model_type", ["sam2", "sam3_tracker", "sam_hq", "edgetam", "sam2_video", "sam_vision_model", "vit"]
)
def test_checkpoints_of_other_types_are_refused_before_their_weights_are_read(tmp_path, model_type):
    folder = tmp_path / "model"
    AutoConfig.for_model(model_type).save_pretrained(folder)
    with pytest.raises(UserError, match=refusal(model_type, str(folder))):
        load_base(str(folder))


def test_a_hand_written_sam_is_refused():
    model = nn.Module()
    model.image_encoder, model.prompt_encoder, model.mask_decoder = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    with pytest.raises(UserError, match=refusal(None, "Module")):
        get_peft_model(model, ConvLoraConfig(target_modules=["image_encoder"]))


def test_conv_lora_on_a_plain_vit_stays_allowed():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    vit = ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes))
    check_no_unknown_sam(vit)
    assert find_family(vit) is None
    model = get_peft_model(vit, ConvLoraConfig(num_experts=2))
    assert any(".lora_" in name and p.requires_grad for name, p in model.named_parameters())


def test_a_family_is_known_behind_what_wraps_a_model():
    sam, encoder = random_sam(), random_vision_sam()
    wrapper = nn.Sequential(random_sam())
    for model in (sam, wrapper, encoder, encoder.vision_encoder, get_peft_model(random_sam(), SamDecoderConfig())):
        assert find_family(model) is SAM
        assert type(find_vision_encoder(model)).__name__ == "SamVisionEncoder"
        assert encoder_shape(model).grid == 8
    assert find_mask_decoder(sam) is sam.mask_decoder
    assert find_mask_decoder(encoder) is None


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_what_a_description_names_is_there(family):
    model = {"sam": random_sam}[family.model_type]()
    encoder, names = find_vision_encoder(model), dict(model.named_modules())
    assert type(model) is family.model_class and model.config.model_type == family.model_type
    assert {family.encoder, family.mask_decoder, family.prompt_encoder, *family.never_trained} <= set(names)
    blocks = family.blocks_of(encoder)
    shape = family.shape(encoder)
    assert len(blocks) == shape.num_hidden_layers
    linears = [name for name in names if re.fullmatch(family.qkv_names, name)]
    assert [names[name] for name in linears] == [family.qkv_of(block) for block in blocks]
    maps = [names[name] for name in names if re.fullmatch(family.map_names, name)]
    assert maps == [family.patch_embedding_of(encoder), *blocks]
    assert all(isinstance(family.attention_of(block), family.attention_class) for block in blocks)
    assert isinstance(family.patch_embedding_of(encoder), family.patch_embedding_class)
    inside = {family.block_index(name) for name, _ in encoder.named_modules()}
    assert inside == {None, *range(len(blocks))}

    pixels = torch.randn(2, 3, shape.image_size, shape.image_size)
    with torch.no_grad():
        maps = family.encode(model, pixels)
        assert maps.shape == (2, shape.output_channels, shape.grid, shape.grid)
        assert torch.equal(maps, model.get_image_embeddings(pixels))
        hidden = family.embed(encoder, pixels)
        assert hidden.shape == (2, shape.grid, shape.grid, shape.hidden_size)
        assert torch.equal(family.encode_from_block(encoder, hidden, 0), maps)

    names = [name for name, _, _, _ in family.position_tables(encoder, shape.grid)]
    assert names[0] == "pos_embed" and len(names) == len(set(names)) == 1 + 2 * len(shape.global_blocks)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_the_loss_on_mask_token_0_reaches_what_the_description_says(family):
    model = {"sam": random_sam}[family.model_type]()
    model(pixel_values=torch.randn(1, 3, 64, 64), multimask_output=False).pred_masks.square().sum().backward()
    reached = [name for name, p in model.mask_decoder.named_parameters() if p.grad is not None and p.grad.any()]
    assert reached == family.reached_parameters(model.mask_decoder)


def test_a_checkpoint_without_a_processor_gets_the_familys(tmp_path):
    random_sam().save_pretrained(tmp_path / "bare")
    model, processor = load_base(str(tmp_path / "bare"))
    assert isinstance(model, SamModel)
    assert processor.to_dict() == SamAdaptProcessor(image_size=64, patch_size=8).to_dict()


def test_lora_goes_where_the_description_says():
    model = build_model("lora", {}, random_sam())
    config: LoraConfig = model.peft_config["default"]
    assert config.target_modules == SAM.qkv_names == r"vision_encoder\.layers\.\d+\.attn\.qkv"
    assert config.modules_to_save == ["mask_decoder"] and (config.r, config.lora_alpha) == (8, 16)
