"""On every family: a training on kept embeddings is the one without them, and the commands beside training run."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sams import RANDOM_SAMS

from hf_sam_adapt.cli import main
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.loading import load_adapted, load_base
from hf_sam_adapt.inference.predictor import SamAdaptPredictor
from hf_sam_adapt.prompts import Prompt


FAMILIES = ["sam_hq", "sam2", "sam3_tracker"]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", FAMILIES)
def test_kept_embeddings_change_nothing(tmp_path, make_dataset, monkeypatch, capsys, model_type):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_SAM_ADAPT_CACHE", str(tmp_path / "cache"))
    data = str(make_dataset(train=4, val=2, test=2))
    RANDOM_SAMS[model_type]().save_pretrained("base")
    keys = ["--model", "base", "--method", "decoder", "--dataset", data, "--max_steps", "2", "--batch_size", "2"]
    keys += ["--prompts", "none", "box", "point", "mask", "--correction_rounds", "1", "--augment", "none"]
    keys += ["--num_workers", "0"]
    assert main(["train", *keys, "--output_dir", "plain"]) == 0
    assert main(["train", *keys, "--output_dir", "kept", "--cache_embeddings", "true"]) == 0
    plain, kept = (load_file(f"{name}/adapter_model.safetensors") for name in ("plain", "kept"))
    for name, value in plain.items():
        torch.testing.assert_close(kept[name], value, rtol=1e-4, atol=1e-5)
    scores = [json.loads(Path(name, "metrics.json").read_text())["test"] for name in ("plain", "kept")]
    for kind, found in scores[0].items():
        assert found["adapted"]["iou"] == pytest.approx(scores[1][kind]["adapted"]["iou"], abs=2e-3)
    folders = {path.name.partition("_")[2] for path in (tmp_path / "cache/embeddings").iterdir()}
    assert folders == {"", *({"early"} if model_type == "sam_hq" else {"skip_0", "skip_1"})}

    assert main(["evaluate", "kept", "--dataset", data, "--prompts", "none", "point", "--clicks", "2"]) == 0
    predict = ["predict", f"{data}/test/images", "--adapter", "kept", "--output_dir", "instances"]
    assert main([*predict, "--instances", "grid", "--points_per_side", "2"]) == 0
    assert main(["estimate", *keys, "--json", "needs.json", "--output_dir", "estimated"]) == 0
    assert json.loads(Path("needs.json").read_text())["trained_parameters"] > 0

    predictor = SamAdaptPredictor.from_loaded(load_adapted("kept"))
    image = torch.randint(0, 256, (48, 64, 3), dtype=torch.uint8).numpy()
    prompts = [Prompt.box((5, 6, 40, 30)), Prompt("none")]
    together = predictor.predict([image, image], prompts)
    predictor.set_image(image)
    for alone, other in zip(predictor.predict(prompts=prompts), together):
        assert alone.mask.shape == (48, 64) and (alone.mask == other.mask).mean() > 0.999


def test_a_folder_that_no_family_describes_is_refused(tmp_path):
    RANDOM_SAMS["sam2"]().vision_encoder.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is of type 'sam2_vision_model'"):
        load_base(str(tmp_path))
