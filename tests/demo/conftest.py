"""Adapters of the embedded SAM whose weights matter, and drawn images, for all tests of the demo."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from sams import perturb

from hf_sam_adapt import ModaConfig, ModaModel, SamDecoderConfig, load_tiny_sam
from hf_sam_adapt.data.synthetic import draw_sample
from hf_sam_adapt.inference.loading import build_model, save_adapter


METHODS = {
    "sam_adapter": ("sam_adapter", {}),
    "conv_lora": ("conv_lora", {"decoder": "frozen"}),
    "decoder": ("decoder", {"train_iou_head": True}),
    "hq": ("decoder", {"decoder": "hq"}),
    "classes": ("decoder", {"decoder": "class_wise", "num_labels": 3, "id2label": {0: "ground", 1: "sea", 2: "ice"}}),
    "lora": ("lora", {}),
}


@pytest.fixture(scope="session")
def adapters(tmp_path_factory):
    """Name -> folder of an adapter of `tiny`; `pool_hq` and `pool_encoder` are pools of two domains."""
    root = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)  # of the random parts of the adapters, whatever test came before
    for name, (method, args) in METHODS.items():
        base, processor = load_tiny_sam()
        model = build_model(method, args, base)
        save_adapter(perturb(model, seed=len(name), std=0.03), root / name)
        processor.save_pretrained(root / name)
    for name, inner in (("pool_hq", SamDecoderConfig(decoder="hq")), ("pool_encoder", None)):
        sam, processor = load_tiny_sam()
        if inner is None:
            from hf_sam_adapt import ConvLoraConfig

            inner = ConvLoraConfig(decoder="frozen")
        pool = ModaModel(sam, ModaConfig(inner=inner, reject=0.0))
        pool.moda_config.base_model_name_or_path = "tiny"
        for seed, domain in enumerate(("polyp", "speckle")):
            pool.add_domain(domain)
            perturb(pool, seed=seed, std=0.1 if inner.peft_type == "CONV_LORA" else 0.03)
            pool.observe(processor([draw_sample(domain, "train", index)[0] for index in range(6)])["pixel_values"])
            pool.finish_domain()
        pool.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    return {path.name: str(path) for path in root.iterdir()}


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """A demo that runs in this process: `app`, `page` and `url`."""
    pytest.importorskip("gradio")
    from hf_sam_adapt.demo.app import DemoApp
    from hf_sam_adapt.demo.page import open_page
    from hf_sam_adapt.demo.settings import DemoArguments

    app = DemoApp(DemoArguments(adapters=[], model="tiny", max_megapixels=4))
    page = open_page(app)
    yield SimpleNamespace(app=app, page=page, url=page.local_url)
    page.close()


@pytest.fixture
def drawn(tmp_path):
    """Returns `drawn(domain, number=0)`: a drawn image's file."""

    def draw(domain, number=0):
        path = tmp_path / f"{domain}_{number}.png"
        Image.fromarray(draw_sample(domain, "test", number)[0]).save(path)
        return path

    return draw
