"""Whatever an adapter's file holds has been trained, or is documented as frozen."""

import re

import pytest
import torch
from safetensors.torch import load_file

from hf_sam_adapt.config.recipe import parse_recipe
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.loading import load_adapted, save_adapter
from hf_sam_adapt.training.loop import TrainingLoop
from hf_sam_adapt.training.resolve import load_model
from hf_sam_adapt.training.run import build_accelerator, load_data
from hf_sam_adapt.training.run_folder import RunFolder
from hf_sam_adapt.training.task import task_of


CLASSES = {"num_labels": 3, "id2label": "dark,one,two"}
# By name: method, method_args, other keys of the recipe.
OPTIONS = {
    "sam_adapter": ("sam_adapter", {}, {}),
    "sam_adapter-no_mask_embed": ("sam_adapter", {"train_no_mask_embed": "true"}, {}),
    "sam_adapter-faithful": ("sam_adapter", {"faithful": "true"}, {}),
    "sam_adapter-features": ("sam_adapter", {"features": ["embedding", "high", "low"]}, {"prompts": ["none", "box"]}),
    "sam_adapter-bias": ("sam_adapter", {"features": "[]", "decoder": "frozen"}, {}),
    "sam_adapter-hq": ("sam_adapter", {"decoder": "hq", "train_no_mask_embed": "true"}, {}),
    "sam_adapter-neck": ("sam_adapter", {"modules_to_save": "[neck]"}, {}),
    "sam_adapter-prompts": (
        "sam_adapter",
        {"modules_to_save": "[no_mask_embed, mask_embed]"},
        {"prompts": ["none", "mask"]},
    ),
    "sam_adapter-patch": ("sam_adapter", {"train_patch_embed": "true"}, {}),
    "conv_lora": ("conv_lora", {}, {}),
    "conv_lora-no_mask_embed": ("conv_lora", {"train_no_mask_embed": "true", "train_patch_embed": "true"}, {}),
    "conv_lora-faithful": ("conv_lora", {"faithful": "true"}, {}),
    "conv_lora-one": ("conv_lora", {"num_experts": 1, "decoder": "frozen", "train_no_mask_embed": "true"}, {}),
    "conv_lora-queries": ("conv_lora", {"num_mask_tokens": 4, "router": "switch", "top_k": 2}, CLASSES),
    "cwsam": ("cwsam", {}, CLASSES),
    "cwsam-faithful": ("cwsam", {"faithful": "true"}, CLASSES),
    "cwsam-full": ("cwsam", {"decoder": "full", "use_prompts": "false", "train_iou_head": "true"}, {}),
    "decoder": ("decoder", {}, {}),
    "decoder-no_mask_embed": ("decoder", {"train_no_mask_embed": "true"}, {"prompts": ["none", "mask"]}),
    "decoder-embed-alone": ("decoder", {"decoder": "frozen", "train_no_mask_embed": "true"}, {}),
    "decoder-iou": ("decoder", {"train_iou_head": "true", "train_no_mask_embed": "true"}, {"prompts": ["box"]}),
    "decoder-faithful": ("decoder", {"faithful": "true"}, {}),
    "decoder-hq": ("decoder", {"decoder": "hq"}, {}),
    "l2p": ("l2p", {"train_no_mask_embed": "true"}, {}),
    "lora": ("lora", {}, {}),
    "lora-prompts": ("lora", {"modules_to_save": "[mask_decoder, no_mask_embed]"}, {}),
    "lora-linears": ("lora", {"target_modules": "all-linear", "modules_to_save": "null"}, {}),
    "lora-convolution": (
        "lora",
        {"target_modules": r"prompt_encoder\.mask_embed\.conv\d", "modules_to_save": "null"},
        {"prompts": ["mask"]},
    ),
    "full": ("full", {}, {}),
}
# What the pages document as frozen (docs/methods.md): in the file, and not trained.
UNREACHED = r".*mask_decoder\.(?!output_hypernetworks_mlps\.0)(iou_prediction_head|output_hypernetworks_mlps)\..*"
FROZEN = {
    "lora": UNREACHED,
    "lora-prompts": UNREACHED,
    "lora-linears": UNREACHED,
    "full": rf"{UNREACHED}|prompt_encoder\..*|shared_image_embedding\..*",
    # Trained as the publications do, by a loss that does not reach them.
    "sam_adapter-faithful": r".*(iou_prediction_head|output_hypernetworks_mlps\.[123])\..*",
    "decoder-faithful": r".*(iou_prediction_head|output_hypernetworks_mlps\.[123])\..*",
    "cwsam-faithful": r".*(iou_prediction_head|output_hypernetworks_mlps\.[123])\..*",
}


def weights_of(model, folder) -> dict[str, torch.Tensor]:
    save_adapter(model, folder)
    return load_file(next(folder.glob("*.safetensors")))


def trained(flags, folder) -> tuple[dict, dict]:
    """The tensors of a run's file before and after a few steps of its loop."""
    recipe = parse_recipe(flags)
    data = load_data(recipe)
    recipe, model, processor = load_model(recipe, data)
    run = RunFolder(recipe)
    accelerator = build_accelerator(recipe, model, run)
    before = weights_of(model, folder / "before")
    weights = task_of(recipe, data).loss_weights()
    loop = TrainingLoop(recipe, accelerator, model, processor, data, run.checkpoints, weights)
    loop.model.train()
    batches = iter([batch for _ in range(8) for batch in loop._loader()])
    for step in range(6):
        loop._optimizer_step(step, batches)
    return before, weights_of(model, folder / "after")


@pytest.fixture
def flags_of(short_recipe, make_dataset, tmp_path):
    def flags(method, method_args, keys):
        args = {f"method_args.{key}": value for key, value in method_args.items()}
        if "num_labels" in keys:
            keys = {"dataset": make_dataset(foreground=2), **keys}
        # Weight decay would move what has no gradient but zeros.
        steady = {"weight_decay": 0, "learning_rate": 1e-2, "max_steps": 6, "warmup": 0, "batch_size": 2}
        return short_recipe(method=method, augment="none", **steady, **args, **keys)

    return flags


@pytest.mark.parametrize("option", OPTIONS)
def test_every_tensor_of_a_file_has_moved(option, flags_of, tmp_path):
    before, after = trained(flags_of(*OPTIONS[option]), tmp_path)
    still = {name for name, value in after.items() if torch.equal(value, before[name])}
    frozen = FROZEN.get(option) or r"(?!)"
    assert {name for name in still if not re.fullmatch(frozen, name)} == set()
    assert {name for name in after if re.fullmatch(frozen, name)} == still


@pytest.mark.parametrize("method_args", [{"train_no_mask_embed": True}, {"faithful": True}])
def test_an_adapter_to_start_from_is_trained_whole(method_args, flags_of, tmp_path):
    flags = flags_of("sam_adapter", dict.fromkeys(method_args, "true"), {})
    recipe = parse_recipe(flags)
    data = load_data(recipe)
    _, model, processor = load_model(recipe, data)
    save_adapter(model, tmp_path / "first")
    processor.save_pretrained(tmp_path / "first")
    loaded = load_adapted(str(tmp_path / "first"), trainable=True).model
    names = {name for name, p in loaded.named_parameters() if p.requires_grad}
    assert names == {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("no_mask_embed" in name for name in names)


@pytest.mark.parametrize("part", ["iou_prediction_head", "output_hypernetworks_mlps.2"])
def test_what_no_loss_reaches_cannot_be_saved_as_trained(part, flags_of):
    recipe = parse_recipe(flags_of("lora", {"modules_to_save": f"[{part}]"}, {}))
    with pytest.raises(UserError, match=f"no loss reaches mask_decoder.{part}"):
        load_model(recipe, load_data(recipe))
