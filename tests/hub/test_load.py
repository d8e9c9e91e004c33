"""Loading by Hub id: files of one commit, a cut download that goes on, no pickles, and one line when it fails."""

import pickle
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from peft import PeftModel
from PIL import Image
from sams import perturb

from hf_sam_adapt import ModaConfig, ModaModel, SamAdapterConfig, SamAdaptProcessor
from hf_sam_adapt.cli import main
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.hub.push import push_folder
from hf_sam_adapt.inference.loading import build_model, load_adapted, load_base, save_adapter
from hf_sam_adapt.repository import HubName, find_file


WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def published(connected, sam_folder, tmp_path):
    """The model `me/base` and the adapter `me/adapter` of it; returns the adapter's folder."""
    connected.add_folder("me/base", Path(sam_folder))
    model = perturb(build_model("decoder", {}, load_base("me/base")[0]), std=0.05)
    folder = tmp_path / "adapter"
    save_adapter(model, folder)
    load_base("me/base")[1].save_pretrained(folder)
    push_folder(folder, "me/adapter")
    connected.requests.clear()
    return folder


def masks(model) -> torch.Tensor:
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.requires_grad_(False).eval()(pixel_values=image, multimask_output=False).pred_masks


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("gpt2", HubName("gpt2")),
        ("me/x", HubName("me/x")),
        ("me/x@v1", HubName("me/x", "v1")),
        ("me/x/polyp/a", HubName("me/x", None, "polyp/a")),
        ("me/x@v1/polyp", HubName("me/x", "v1", "polyp")),
        ("me/x@refs/pr/3/polyp", HubName("me/x", "refs/pr/3", "polyp")),
    ],
)
def test_names(path, expected):
    assert HubName.parse(path) == expected


def test_other_names_are_refused():
    for path in ("/tmp/nothing", "me//x", "", "me/x@"):
        with pytest.raises(UserError, match="neither a folder nor"):
            HubName.parse(path)


def test_a_cut_download_goes_on_where_it_ended(connected, published, clock, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    size = (published / WEIGHTS).stat().st_size
    connected.fail("GET /objects/", cut_after=size // 2, times=1)
    assert find_file("me/adapter", WEIGHTS).read_bytes() == (published / WEIGHTS).read_bytes()
    ranges = [int(found[1]) for found in map(re.compile(r"bytes=(\d+)-$").search, connected.requests) if found]
    assert len(ranges) == 1 and 0 < ranges[0] <= size // 2


def test_files_are_of_one_commit(connected, published, monkeypatch):
    """A push between the config and the weights does not mix the two."""
    from hf_sam_adapt.inference import loading

    expected, real = masks(load_adapted(str(published)).model), loading.load_base

    def push_meanwhile(*args):
        perturbed = perturb(build_model("decoder", {}, real("me/base")[0]), seed=5, std=0.5)
        save_adapter(perturbed, published)
        push_folder(published, "me/adapter")
        return real(*args)

    monkeypatch.setattr(loading, "load_base", push_meanwhile)
    assert torch.equal(masks(load_adapted("me/adapter").model), expected)
    monkeypatch.setattr(loading, "load_base", real)
    assert not torch.equal(masks(load_adapted("me/adapter").model), expected)


def test_a_repository_with_only_a_pickle_is_refused(connected, published, tmp_path):
    files = connected.files("me/adapter")
    pickled = pickle.dumps({"x": 1})
    connected.add("me/pickled", {"adapter_config.json": files["adapter_config.json"], "adapter_model.bin": pickled})
    assert main(["predict", "--adapter", "me/pickled", str(_picture(tmp_path)), "--output_dir", str(tmp_path)]) == 2
    with pytest.raises(UserError, match=r"adapter_model\.bin"):
        load_adapted("me/pickled")
    pool = ModaModel(load_base("me/base")[0], ModaConfig(inner=SamAdapterConfig(scale_factor=8), reject=0.0))
    pool.add_domain("red")
    pool.observe(torch.randn(2, 3, 64, 64))
    pool.finish_domain()
    pool.push_to_hub("me/pool")
    for missing in (WEIGHTS, f"red/{WEIGHTS}"):
        files = connected.files("me/pool")
        files[missing.replace(WEIGHTS, "adapter_model.bin")] = files.pop(missing)
        connected.add("me/pickled-pool", files)
        with pytest.raises(UserError, match="a pickle is not loaded"):
            ModaModel.from_pretrained(load_base("me/base")[0], "me/pickled-pool")
    assert not any("adapter_model.bin" in request for request in connected.requests)


@pytest.mark.parametrize("place", ["folder", "Hub"])
def test_a_domain_alone_has_the_processor_of_its_pool(place, connected, published, tmp_path):
    base, processor = load_base("me/base")
    pool = ModaModel(base, ModaConfig(inner=SamAdapterConfig(scale_factor=8), reject=0.0))
    pool.add_domain("red")
    pool.observe(torch.randn(2, 3, 64, 64))
    pool.finish_domain()
    pool.save_pretrained(tmp_path / "pool")
    assert processor.resize == "pad"
    SamAdaptProcessor(image_size=64, patch_size=8, resize="squash").save_pretrained(tmp_path / "pool")
    push_folder(tmp_path / "pool", "me/pool")
    loaded = load_adapted("me/pool/red" if place == "Hub" else str(tmp_path / "pool" / "red"))
    assert loaded.processor.resize == "squash"
    assert torch.equal(
        masks(loaded.model), masks(PeftModel.from_pretrained(load_base("me/base")[0], "me/pool", subfolder="red"))
    )


FAILURES = {
    "401": ("HEAD /me/adapter/", 401, {}, "does not accept the token"),
    "403": ("HEAD /me/adapter/", 403, {}, "403"),
    "404": (
        "HEAD /me/adapter/",
        404,
        {"headers": {"X-Error-Code": "RepoNotFound"}},
        "neither a folder nor",
    ),
    "gated": ("HEAD /me/adapter/", 403, {"headers": {"X-Error-Code": "GatedRepo"}}, "accept its terms"),
    "429": ("HEAD /me/adapter/", 429, {"headers": {"Retry-After": "3"}}, "429"),
    "500": ("HEAD /me/adapter/", 500, {}, "500"),
    "500 of the storage": ("GET /objects/", 500, {}, "500"),
    "cut": ("HEAD /me/adapter/", 0, {"cut": True}, "connection"),
    "cut in the storage": ("GET /objects/", 0, {"cut": True}, "connection"),
    "500 of the base": ("/me/base/", 500, {}, "500"),
    "cut base": ("/me/base/", 0, {"cut": True}, "connection"),
    "cut base weights": ("GET /objects/", 0, {"cut": True}, "connection"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failures_are_one_line_and_the_next_try_works(case, connect, published, clock, tmp_path, capsys):
    pattern, status, how, message = FAILURES[case]
    connected = connect(tmp_path / case.replace(" ", ""))
    connected.fail(pattern, status, **how)
    command = ["predict", "--adapter", "me/adapter", str(_picture(tmp_path)), "--output_dir", str(tmp_path / "out")]
    assert main(command) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and message in errors[0], errors
    assert connected.token not in errors[0] and "signature" not in errors[0]
    assert clock.passed < 200
    connected.faults.clear()
    assert main(command) == 0
    assert len(list((tmp_path / "out").glob("*_mask.png"))) == 1


def test_offline_is_the_cache_or_an_error(connected, published, monkeypatch):
    expected = masks(load_adapted("me/adapter").model)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(masks(load_adapted("me/adapter").model), expected)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        load_adapted("me/unseen")
    # Whether the repository has such a file is not known, and a default in its place could be wrong.
    with pytest.raises(UserError, match="unheard_of"):
        find_file("me/adapter", "unheard_of.json")


def test_private_work_is_for_those_who_are_logged_in(connected, published, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    with pytest.raises(UserError, match="hf auth login"):
        load_adapted("me/adapter")
    with pytest.raises(UserError, match="no revision 'v7'"):
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
        monkeypatch.setenv("HF_TOKEN", connected.token)
        load_adapted("me/adapter@v7")


def test_commands_take_ids(connected, published, make_dataset, tmp_path):
    data = str(make_dataset(train=4, val=2, test=2))
    assert main(["evaluate", "me/adapter", "--dataset", data, "--output_dir", str(tmp_path / "scores")]) == 0
    assert (tmp_path / "scores/metrics.json").is_file()
    assert main(["evaluate", "--model", "me/base", "--dataset", data]) == 0
    short = ["--max_steps", "1", "--batch_size", "2", "--dataset", data]
    assert main(["train", "--adapter", "me/adapter", *short, "--output_dir", str(tmp_path / "more")]) == 0
    assert load_adapted(str(tmp_path / "more")).base_name == "me/base"
    with pytest.raises(UserError, match="is an adapter, not a base model"):
        load_base("me/adapter")


def _picture(folder):
    path = folder / "picture.png"
    Image.new("RGB", (40, 30), (90, 10, 10)).save(path)
    return path
