import copy
import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from sams import random_sam, random_vision_sam

from hf_sam_adapt import SamAdapterConfig
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.sam.fingerprint import compute_fingerprint


@pytest.fixture
def saved(tmp_path):
    get_peft_model(random_sam(), SamAdapterConfig(scale_factor=4)).save_pretrained(tmp_path)
    return tmp_path


def test_describes_the_encoder(saved):
    stored = json.loads((saved / "adapter_config.json").read_text())["base_fingerprint"]
    assert stored == compute_fingerprint(random_sam())
    assert (stored["hidden_size"], stored["num_hidden_layers"], stored["patch_size"]) == (32, 3, 8)
    assert len(stored["pos_embed"]) == 64 and len(set(stored["pos_embed"])) == 64
    assert compute_fingerprint(random_vision_sam())["hidden_size"] == 32
    assert set(compute_fingerprint(torch.nn.Linear(2, 2)).values()) == {None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_copies_in_other_dtypes_match(saved, dtype):
    PeftModel.from_pretrained(random_sam().to(dtype), saved)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({"seed": 5}, "other weights"),
        ({"hidden_size": 64}, "hidden_size is 32, this model has 64"),
        ({"layers": 4}, "num_hidden_layers is 3, this model has 4"),
        ({"image_size": 128}, "image_size is 64, this model has 128"),
    ],
)
def test_another_base_raises(saved, base, message):
    with pytest.raises(UserError, match=message):
        PeftModel.from_pretrained(random_sam(**base), saved)


def test_null_parts_are_not_compared(saved):
    config = json.loads((saved / "adapter_config.json").read_text())
    config["base_fingerprint"]["pos_embed"] = None
    (saved / "adapter_config.json").write_text(json.dumps(config))
    PeftModel.from_pretrained(random_sam(seed=5), saved)


def test_a_config_object_may_serve_several_models():
    """Only a fingerprint out of a file is compared: a config reused in code describes its last model."""
    config = SamAdapterConfig(scale_factor=4)
    get_peft_model(random_sam(seed=1), config)
    model = get_peft_model(random_sam(seed=2), copy.deepcopy(config))
    assert model.peft_config["default"].base_fingerprint == compute_fingerprint(random_sam(seed=2))
