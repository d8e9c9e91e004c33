"""Every method and decoder: its ONNX files, run without torch, against PyTorch."""

import pytest
from exported_models import compare_with_pytorch, save_adapter_of, save_pool_of_tiny
from peft import LoraConfig

from hf_sam_adapt import ConvLoraConfig, CwsamConfig, ModaConfig, SamAdapterConfig, SamDecoderConfig, load_tiny_sam
from hf_sam_adapt.convert.export import export
from hf_sam_adapt.inference.loading import load_adapted
from hf_sam_adapt.tuners.l2p import L2pConfig


pytestmark = pytest.mark.slow

RANDOM = {"init_weights": False}
CLASSES = {"decoder": "class_wise", "num_labels": 3}
QKV = r"vision_encoder\.layers\.\d+\.attn\.qkv"
CASES = {
    "sam_adapter": lambda: SamAdapterConfig(**RANDOM),
    "sam_adapter, all features, frozen decoder": lambda: SamAdapterConfig(
        features=["embedding", "high", "low"], feature_weights=[0.5, 1, 2], decoder="frozen", **RANDOM
    ),
    "sam_adapter, bias only": lambda: SamAdapterConfig(features=[], train_iou_head=True, **RANDOM),
    "sam_adapter, legacy": lambda: SamAdapterConfig(embedding_layout="legacy", train_no_mask_embed=True, **RANDOM),
    "sam_adapter, hq": lambda: SamAdapterConfig(decoder="hq", **RANDOM),
    "sam_adapter, classes": lambda: SamAdapterConfig(**CLASSES, **RANDOM),
    "sam_adapter, other size": lambda: SamAdapterConfig(image_size=192, global_attention=True, **RANDOM),
    "conv_lora": lambda: ConvLoraConfig(**RANDOM),
    "conv_lora, two experts, pruned": lambda: ConvLoraConfig(top_k=2, router="switch", num_mask_tokens=1, **RANDOM),
    "conv_lora, all experts": lambda: ConvLoraConfig(eval_routing="soft", num_experts=3, decoder="frozen", **RANDOM),
    "conv_lora, hq": lambda: ConvLoraConfig(decoder="hq", **RANDOM),
    "conv_lora, queries": lambda: ConvLoraConfig(num_mask_tokens=4, **CLASSES, **RANDOM),
    "cwsam": lambda: CwsamConfig(num_labels=3, **RANDOM),
    "cwsam, full": lambda: CwsamConfig(decoder="full", adapter_act="relu", **RANDOM),
    "decoder": lambda: SamDecoderConfig(**RANDOM),
    "decoder, hq": lambda: SamDecoderConfig(decoder="hq", **RANDOM),
    "decoder, classes": lambda: SamDecoderConfig(**CLASSES, **RANDOM),
    "lora": lambda: LoraConfig(r=4, target_modules=QKV, modules_to_save=["mask_decoder"]),
    "l2p": lambda: L2pConfig(**RANDOM),
}


@pytest.mark.parametrize("name", CASES)
def test_onnx_equals_pytorch(name, tmp_path):
    adapter = save_adapter_of("tiny", tmp_path / "adapter", CASES[name]())
    export(str(adapter), tmp_path / "onnx", progress=False)
    assert compare_with_pytorch(load_adapted(str(adapter)), tmp_path / "onnx", tmp_path) >= 2


def test_a_whole_model(tmp_path):
    sam, processor = load_tiny_sam()
    for folder in (sam, processor):
        folder.save_pretrained(tmp_path / "sam")
    export(str(tmp_path / "sam"), tmp_path / "onnx", progress=False)
    assert compare_with_pytorch(load_adapted(str(tmp_path / "sam")), tmp_path / "onnx", tmp_path) == 4


POOLS = {
    "hq": lambda: ModaConfig(inner=SamDecoderConfig(decoder="hq", **RANDOM)),
    "sam_adapter, joint router": lambda: ModaConfig(inner=SamAdapterConfig(**RANDOM), router="joint"),
    "decoder, no rejection": lambda: ModaConfig(inner=SamDecoderConfig(**RANDOM), reject=0, head="ncm"),
}


@pytest.mark.parametrize("name", POOLS)
def test_a_pool(name, tmp_path):
    folder = save_pool_of_tiny(tmp_path / "pool", POOLS[name]())
    done = export(str(folder), tmp_path / "onnx", progress=False)
    assert done.same_domain == 1.0
    encoders = {file for file in done.files if file.endswith("encoder.onnx")}
    assert len(encoders) == (2 if name.startswith("sam_adapter") else 0)
    assert ("base/decoder.onnx" in done.files) == ("no rejection" not in name)
    for domain in ("one", "two"):
        loaded = load_adapted(str(folder))
        with loaded.model.using(domain):
            assert compare_with_pytorch(loaded, tmp_path / "onnx", tmp_path, domain=domain) == 4
