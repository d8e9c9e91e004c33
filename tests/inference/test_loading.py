import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from sams import perturb, random_sam
from torch import nn
from transformers import SamModel

from hf_sam_adapt import CwsamConfig, ModaConfig, SamDecoderConfig
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.loading import Loaded, build_model, load_adapted, load_base, save_adapter
from hf_sam_adapt.names import class_names
from hf_sam_adapt.sam.families import SAM
from hf_sam_adapt.sam.processing import SamAdaptProcessor


METHODS = ["sam_adapter", "decoder", "lora", "full"]


def masks(model) -> torch.Tensor:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.requires_grad_(False).eval()(pixel_values=images, multimask_output=False).pred_masks


def trained(method: str, sam_folder: str, **method_args):
    base, processor = load_base(sam_folder)
    model = perturb(build_model(method, method_args, base), std=0.05)
    return model, processor


@pytest.mark.parametrize("method", METHODS)
def test_saved_model_comes_back_bit_for_bit(method, sam_folder, tmp_path):
    model, processor = trained(method, sam_folder)
    save_adapter(model, tmp_path / "run")
    processor.save_pretrained(tmp_path / "run")
    loaded = load_adapted(str(tmp_path / "run"))
    assert torch.equal(masks(loaded.model), masks(model))
    assert not torch.equal(masks(model), masks(random_sam()))
    assert loaded.base_name == (None if method == "full" else sam_folder)
    assert loaded.processor.image_size == 64
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert ("model.safetensors" if method == "full" else "adapter_model.safetensors") in names


@pytest.mark.parametrize("method", METHODS)
def test_all_methods_train_the_same_decoder_parts(method, sam_folder):
    model, _ = trained(method, sam_folder)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    decoder = {name.rpartition("mask_decoder.")[2] for name in trainable if "mask_decoder." in name}
    parts = {name.rpartition("default.")[2] for name in decoder}
    assert parts == set(SAM.reached_parameters(random_sam().mask_decoder))
    assert not any("prompt_encoder" in name or "shared_image_embedding" in name for name in trainable)
    loss = model(pixel_values=torch.randn(2, 3, 64, 64), multimask_output=False).pred_masks.square().mean()
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("adapter_model.safetensors", None, r"adapter_model\.safetensors is damaged"),
        ("adapter_config.json", b"{half", r"adapter_config\.json: not JSON"),
        ("adapter_config.json", b"[1]", "not a JSON object"),
        ("preprocessor_config.json", b"{half", "not the settings of a processor"),
        ("../base/model.safetensors", None, "the weights of .* are damaged"),
    ],
)
def test_damaged_files_are_one_error(sam_folder, tmp_path, name, content, said):
    shutil.copytree(sam_folder, tmp_path / "base")
    model, processor = trained("lora", str(tmp_path / "base"))
    run = tmp_path / "run"
    save_adapter(model, run)
    processor.save_pretrained(run)
    file = run / name
    file.write_bytes(file.read_bytes()[:-9] if content is None else content)
    with pytest.raises(UserError, match=said):
        load_adapted(str(run))


def test_the_base_of_another_place_is_named_by_its_file(sam_folder, tmp_path):
    model, _ = trained("lora", sam_folder)
    save_adapter(model, tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "nowhere"}))
    with pytest.raises(UserError, match=r"nowhere.*the base model that .*adapter_config\.json names"):
        load_adapted(str(tmp_path))


def test_an_adapter_of_other_channels_needs_its_processor(sam_folder, tmp_path):
    base = load_base(sam_folder)[0]
    model = build_model("decoder", {"in_channels": 4, "train_patch_embed": True}, base)
    save_adapter(model, tmp_path)
    with pytest.warns(UserWarning, match=r"the base's, as it has no preprocessor_config\.json, gives 3"):
        processor = load_adapted(str(tmp_path)).processor
    processor.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="its model takes images of 4 channels, its processor gives 3"):
        load_adapted(str(tmp_path))


def test_a_pools_classes_are_those_of_its_domains():
    config = ModaConfig(inner=CwsamConfig(num_labels=3, id2label={1: "crop"}), reject=0)
    loaded = Loaded(nn.Identity(), SamAdaptProcessor(64, 8), config, "tiny")
    assert loaded.classes == class_names(3, {1: "crop"}) and loaded.classes[1] == "crop"
    assert (
        Loaded(nn.Identity(), SamAdaptProcessor(64, 8), ModaConfig(inner=SamDecoderConfig()), "tiny").classes is None
    )


@pytest.mark.parametrize("trained", [False, True])
def test_a_pool_estimates_its_iou_where_its_domains_do(trained):
    config = ModaConfig(inner=SamDecoderConfig(train_iou_head=trained))
    assert Loaded(nn.Identity(), SamAdaptProcessor(64, 8), config, "tiny").has_estimate is trained


def test_lora_loads_without_this_package(sam_folder, tmp_path):
    model, _ = trained("lora", sam_folder)
    save_adapter(model, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 8, 16)
    assert config["modules_to_save"] == ["mask_decoder"]
    layers = [n for n, _ in model.named_parameters() if "lora_A" in n]
    assert len(layers) == 3 and all(".attn.qkv." in name for name in layers)


def test_full_resizes_lora_refuses(sam_folder):
    base, _ = load_base(sam_folder)
    model = build_model("full", {}, base, image_size=96)
    assert model.config.vision_config.image_size == 96
    assert build_model("sam_adapter", {}, load_base(sam_folder)[0], 96).peft_config["default"].image_size == 96
    with pytest.raises(UserError, match="image_size"):
        build_model("lora", {}, load_base(sam_folder)[0], image_size=96)


@pytest.mark.parametrize(
    ("method", "method_args", "message"),
    [
        ("sam_adaptor", {}, "did you mean 'sam_adapter'"),
        ("sam_adapter", {"scale_facter": 3}, r"method_args.scale_facter .*did you mean 'scale_factor'"),
        ("sam_adapter", {"scale_factor": "many"}, "scale_factor='many'"),
        ("sam_adapter", {"decoder": "fully"}, "decoder='fully' is unknown"),
        ("sam_adapter", {"features": ["embedding", "hihg"]}, "'hihg' is unknown"),
        ("sam_adapter", {"feature_weights": [1.0]}, "feature_weights has 1 entries for 2 features"),
        ("sam_adapter", {"frequency_rate": 2}, "frequency_rate=2"),
        ("sam_adapter", {"embedding_layout": "tokens"}, "embedding_layout='tokens'"),
        ("decoder", {"decoder": "frozen"}, "would train nothing"),
        ("full", {"r": 3}, "takes none"),
        ("lora", {"r": 0}, "method_args: LoraConfig refuses them: .*positive integer"),
        ("lora", {"bias": "foo"}, "method_args: LoraConfig refuses them"),
    ],
)
def test_bad_method_is_one_clear_error(method, method_args, message, sam_folder):
    with pytest.raises(UserError, match=message) as error:
        build_model(method, method_args, load_base(sam_folder)[0])
    assert "\n" not in str(error.value)


def test_a_failure_without_a_message_is_named(sam_folder, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError

    monkeypatch.setattr(SamModel, "from_pretrained", fail)
    with pytest.raises(UserError, match=r"cannot load .*: OSError Use"):
        load_base(sam_folder)


def test_bad_base_models(sam_folder, tmp_path):
    model, _ = trained("decoder", sam_folder)
    save_adapter(model, tmp_path / "run")
    with pytest.raises(UserError, match="is an adapter, not a base model"):
        load_base(str(tmp_path / "run"))
    with pytest.raises(UserError, match="cannot load 'nobody/nothing'"):
        load_base("nobody/nothing")
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UserError, match="of type 'vit'"):
        load_base(str(tmp_path / "vit"))


@pytest.mark.parametrize("method", ["sam_adapter", "lora"])
def test_damaged_adapters_are_refused(method, sam_folder, tmp_path):
    model, _ = trained(method, sam_folder)
    run = tmp_path / "run"
    save_adapter(model, run)
    weights = load_file(run / "adapter_model.safetensors")
    for first in (sorted(weights)[0], sorted(weights)[-1]):  # the decoder's and the encoder's part
        save_file({key: value for key, value in weights.items() if key != first}, run / "adapter_model.safetensors")
        with pytest.raises(UserError, match=r"missing|misses|keys differ"):
            load_adapted(str(run))
    save_file(weights | {f"{first}_more": torch.zeros(1)}, run / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"unexpected|keys differ"):
        load_adapted(str(run))
    (run / "adapter_model.safetensors").rename(run / "adapter_model.bin")
    with pytest.raises(UserError, match=r"a pickle \(adapter_model.bin\)"):
        load_adapted(str(run))
    with pytest.raises(UserError, match="neither adapter_config"):
        load_adapted(str(tmp_path))
    with pytest.raises(UserError, match="neither a folder nor a repository"):
        load_adapted("not/a/repository")


def test_adapter_of_another_base_or_size_is_refused(sam_folder, tmp_path):
    model, _ = trained("sam_adapter", sam_folder)
    save_adapter(model, tmp_path / "run")
    random_sam(seed=4).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="other weights"):
        load_adapted(str(tmp_path / "run"), model=str(tmp_path / "other"))
    SamAdaptProcessor(image_size=96, patch_size=8).save_pretrained(tmp_path / "run")
    with pytest.raises(UserError, match="image_size 96"):
        load_adapted(str(tmp_path / "run"))
