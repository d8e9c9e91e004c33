"""Many threads use one model at once, as PEFT's LoRA allows, and each gets what it would get alone."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from peft import LoraConfig, get_peft_model
from sams import random_sam, random_sam2, random_sam_hq

from hf_sam_adapt import ConvLoraConfig, CwsamConfig, L2pConfig, ModaConfig, SamAdapterConfig, SamDecoderConfig
from hf_sam_adapt.sam.mask_choice import mask_of_token_0


THREADS, IMAGES = 8, 8


def pool_of_two() -> ModaConfig:
    return ModaConfig(domains=["polyp", "leaf"], inner=SamAdapterConfig(scale_factor=4), init_weights=False)


CONFIGS = {
    "lora": lambda: LoraConfig(target_modules=["qkv"], init_lora_weights=False),
    "sam_adapter": lambda: SamAdapterConfig(scale_factor=4, init_weights=False),
    "sam_adapter-patch_embed": lambda: SamAdapterConfig(scale_factor=4, train_patch_embed=True, init_weights=False),
    "conv_lora": lambda: ConvLoraConfig(init_weights=False),
    "cwsam": lambda: CwsamConfig(num_labels=3, scale_factor=4, init_weights=False),
    "decoder": lambda: SamDecoderConfig(init_weights=False),
    "decoder-one_token": lambda: SamDecoderConfig(num_mask_tokens=1, init_weights=False),
    "hq": lambda: SamDecoderConfig(decoder="hq", init_weights=False),
    "l2p": L2pConfig,
    "moda": pool_of_two,
}
OF_SAM2 = ("sam_adapter", "cwsam", "decoder", "l2p")
BASES = {"sam": random_sam, "sam2": random_sam2, "sam_hq": random_sam_hq}


def check_threads(run, inputs: list, times: int) -> None:
    """`run` of each input in a thread of its own, again and again, gives what it gives alone, bit for bit."""
    alone = [run(one) for one in inputs]
    assert len({float(masks.double().sum()) for masks in alone}) == len(inputs), "the inputs are all alike"
    together = Barrier(len(inputs))

    def repeat(index: int) -> int:
        together.wait()
        return sum(not torch.equal(run(inputs[index]), alone[index]) for _ in range(times))

    with ThreadPoolExecutor(len(inputs)) as pool:
        wrong = list(pool.map(repeat, range(len(inputs))))
    assert wrong == [0] * len(inputs)


def masks_of(model, pixel_values: torch.Tensor) -> torch.Tensor:
    keywords = {"domain": ["polyp", "leaf"]} if "moda" in str(type(model.base_model)).lower() else {}
    with torch.inference_mode():
        return model(pixel_values=pixel_values, **keywords).pred_masks


@pytest.mark.parametrize("times", [pytest.param(3, id="3"), pytest.param(200, id="200", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("family", "method"),
    [("sam", method) for method in CONFIGS]
    + [("sam2", method) for method in OF_SAM2]
    + [("sam_hq", method) for method in ("sam_adapter", "decoder")],
)
def test_eight_threads_equal_one(family, method, times):
    base = BASES[family]()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    model = get_peft_model(base, CONFIGS[method]()).eval()
    side = base.config.vision_config.image_size if family != "sam2" else 128
    images = [torch.randn(2, 3, side, side) for _ in range(IMAGES)]
    check_threads(lambda pixel_values: masks_of(model, pixel_values), images, times)
    base = model.unload()
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


def test_threads_choose_the_mask_of_sam2_apart():
    """One asks for the mask of token 0, the others for that which the decoder finds stable."""
    sam = random_sam2()
    sam.mask_decoder.dynamic_multimask_stability_thresh = 1.1  # never that of token 0
    images = torch.randn(1, 3, 128, 128)
    points = {"input_points": torch.tensor([[[[30.0, 40.0]]]]), "input_labels": torch.ones(1, 1, 1, dtype=torch.int)}

    def run(first: bool) -> torch.Tensor:
        with torch.inference_mode():
            if not first:
                return sam(images, **points, multimask_output=False).pred_masks
            with mask_of_token_0(sam):
                return sam(images, **points, multimask_output=False).pred_masks

    check_threads(run, [True, False], 20)
