"""What `push` publishes, and what it does when the Hub or the network is against it."""

import hashlib
import io
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file
from sams import perturb, random_sam

from hf_sam_adapt import ModaConfig, ModaModel, SamDecoderConfig, upload
from hf_sam_adapt.cli import main
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.loading import build_model, load_base, save_adapter
from hf_sam_adapt.reporting.report import panels, save_panels


FILES = {
    "README.md": b"---\nlibrary_name: hf-sam-adapt\n---\n# mine\n",
    "notes.json": b"{}",
    "samples.png": b"\x89PNG\r\n\x1a\nx",
}
SECRETS = [
    "evil.pkl",
    "adapter_model.bin",
    "token.txt",
    ".hidden.json",
    "splits.json",  # names the images
    "checkpoints/step_2/optimizer.bin",
    "checkpoints/step_2/state.json",
    "logs/events.json",
    "polyp/adapter_model.safetensors",
]


@pytest.fixture
def folder(tmp_path, sam_folder):
    """An adapter with a card, and beside it what must stay at home."""
    path = tmp_path / "work" / "polyp run"
    base, processor = load_base(sam_folder)
    base.name_or_path = "me/small-sam"
    save_adapter(perturb(build_model("decoder", {}, base)), path)
    processor.save_pretrained(path)
    for name, content in FILES.items():
        (path / name).write_bytes(content)
    for name in SECRETS:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(pickle.dumps(["secret"]))
    return path


def digest(folder) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(str(path).encode() + path.read_bytes() for path in files)).hexdigest()


def push(folder, capsys, *flags) -> tuple[int, str, list[str]]:
    """Exit status, output, and the lines of errors, without the notes."""
    status = main(["push", str(folder), *flags])
    out, err = capsys.readouterr()
    return status, out, [line for line in err.splitlines() if not line.startswith("note:")]


def test_names_of_images_stay_at_home(connected, folder, capsys):
    figure, axes = panels([(40, 60)], 2)
    axes[0][0].imshow(np.zeros((40, 60)))
    save_panels(folder / "samples.png", figure, axes, ["patient_7"])
    named = (folder / "samples.png").read_bytes()
    assert push(folder, capsys, "--repo", "me/polyp")[0] == 0
    pushed = connected.files("me/polyp")["samples.png"]
    assert (folder / "samples.png").read_bytes() == named
    one, other = (np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in (named, pushed))
    assert (one[:22, 62:320] < 100).any() and (other[:22, 62:320] == 255).all()
    assert np.array_equal(one[22:], other[22:])


def test_pushed_files_and_privacy(connected, folder, capsys):
    before = digest(folder)
    status, out, errors = push(folder, capsys, "--repo", "me/polyp")
    assert (status, errors) == (0, [])
    found = connected.files("me/polyp")
    own = {"adapter_config.json", "adapter_model.safetensors", "preprocessor_config.json"}
    assert set(found) == own | FILES.keys()
    assert all(content == (folder / name).read_bytes() for name, content in found.items())
    repository = connected.repositories["model", "me/polyp"]
    assert repository.private and len(repository.commits) == 2  # the Hub's own, and ours
    assert "me/polyp (private)" in out
    assert digest(folder) == before

    requests = len(connected.uploads)
    assert push(folder, capsys, "--repo", "me/polyp")[0] == 0  # nothing new: no commit, nothing sent
    assert len(repository.commits) == 2 and len(connected.uploads) == requests
    (folder / "notes.json").write_text("[1]")
    assert push(folder, capsys, "--repo", "me/polyp", "--revision", "v/2")[0] == 0
    assert connected.uploads[requests:] == ["notes.json"]
    assert connected.files("me/polyp", "v/2")["notes.json"] == b"[1]"
    assert connected.files("me/polyp")["notes.json"] == b"{}"

    shutil.move(folder, folder.with_name("open"))
    status = main(["push", str(folder.with_name("open")), "--public"])
    out, err = capsys.readouterr()
    assert "samples.png shows images of the data set to everybody" in err
    assert status == 0 and "me/open (public)" in out and not connected.repositories["model", "me/open"].private


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "notes.json", "samples.png", "README.md"])
def test_a_pickle_under_an_allowed_name_is_not_published(name, connected, folder, capsys):
    (folder / name).write_bytes(pickle.dumps({"x": 1}))
    status, _, errors = push(folder, capsys, "--repo", "me/polyp")
    assert status == 2 and len(errors) == 1 and f"{name} is no" in errors[0]
    assert connected.requests == []


def test_what_is_wrong_is_said_before_the_first_request(connected, folder, capsys, tmp_path, monkeypatch):
    def refused(path, message, *flags):
        status, out, errors = push(path, capsys, *(flags or ("--repo", "me/x")))
        assert status == 2 and len(errors) == 1 and message in errors[0], errors
        assert connected.token not in out + errors[0]

    refused(tmp_path / "nothing", "is not a folder")
    refused(tmp_path, "holds neither an adapter nor a model")
    refused(folder, "not a repository name", "--repo", "me/a/b")
    config = json.loads((folder / "adapter_config.json").read_text())
    for base in (None, ""):
        (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
        refused(folder, "names no base model")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    weights = (folder / "adapter_model.safetensors").rename(folder / "moved.safetensors")
    refused(folder, "no adapter_model.safetensors")
    weights.rename(folder / "adapter_model.safetensors")
    (tmp_path / "continual" / "pool").mkdir(parents=True)
    refused(tmp_path / "continual", f"push {tmp_path / 'continual' / 'pool'}")
    monkeypatch.delenv("HF_TOKEN")
    refused(folder, "hf auth login")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(folder, "HF_HUB_OFFLINE is set")
    assert connected.requests == []


FAILURES = {
    "401": ("POST /api/repos/create", 401, {}, "(401)"),
    "403": ("POST /api/models/.*/preupload", 403, {}, "(403"),
    "404": ("POST /api/models/.*/preupload", 404, {"headers": {"X-Error-Code": "RepoNotFound"}}, "(404"),
    "429": ("POST /api/repos/create", 429, {"headers": {"Retry-After": "7"}}, "(429)"),
    "500 of the commit": ("POST .*/commit/", 500, {}, "(500"),
    "500 of the storage": ("PUT /upload/", 500, {}, "(500"),
    "503 of the batch": ("POST .*/objects/batch", 503, {}, "(503"),
    "400 of the card": ("POST /api/validate-yaml", 400, {}, "README.md"),
    "cut": ("POST /api/repos/create", 0, {"cut": True}, "connection"),
    "cut in the commit": ("POST .*/commit/", 0, {"cut": True}, "connection"),
    "cut in the storage": ("PUT /upload/", 0, {"cut": True}, "connection"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failed_push_loses_nothing_and_a_second_one_completes(case, connected, clock, folder, capsys):
    pattern, status, how, message = FAILURES[case]
    connected.fail(pattern, status, **how)
    before = digest(folder)
    code, out, errors = push(folder, capsys, "--repo", "me/polyp", "--public")
    assert (code, len(errors), out) == (2, 1, ""), errors
    assert message in errors[0]
    assert f"push again with: hf-sam-adapt push '{folder}' --repo me/polyp --public" in errors[0]
    assert connected.token not in errors[0] and "signature" not in errors[0]
    assert digest(folder) == before
    assert bool(clock.sleeps) == (status not in (400, 401, 403, 404)), clock.sleeps
    assert clock.passed < 200
    if ("model", "me/polyp") in connected.repositories:
        assert connected.files("me/polyp") == {}  # all or nothing

    connected.faults.clear()
    assert push(folder, capsys, "--repo", "me/polyp", "--public")[0] == 0
    assert len(connected.files("me/polyp")) == 6


PASSING = {
    "429": ("POST /api/repos/create", {"status": 429, "headers": {"Retry-After": "7"}, "times": 2}),
    "500 of the commit": ("POST .*/commit/", {"times": 2}),
    "cut in the commit": ("POST .*/commit/", {"cut": True, "times": 2}),
    "answer of the commit lost": ("POST .*/commit/", {"lost": True, "times": 1}),
    "500 of the storage": ("PUT /upload/", {"times": 2}),
    "slow": ("POST|PUT|GET", {"seconds": 0.05}),
}


@pytest.mark.parametrize("case", PASSING)
def test_what_passes_is_waited_for(case, connected, clock, folder, capsys):
    pattern, how = PASSING[case]
    connected.fail(pattern, **how)
    assert push(folder, capsys, "--repo", "me/polyp")[::2] == (0, [])
    assert len(connected.files("me/polyp")) == 6
    assert connected.repositories["model", "me/polyp"].titles == ["initial commit", "Upload with hf_sam_adapt"]
    assert clock.sleeps == ([7.0, 7.0] if case == "429" else clock.sleeps)


def test_a_hub_that_falls_silent_is_given_up(connected, folder, capsys, monkeypatch):
    monkeypatch.setattr(upload, "_SILENCE", 0.2)
    monkeypatch.setattr(upload, "_PATIENCE", 0.1)
    connected.fail("POST /api/repos/create", seconds=30)
    status, _, errors = push(folder, capsys, "--repo", "me/polyp")
    assert status == 2 and "Timeout" in errors[0]
    connected.faults.clear()
    assert push(folder, capsys, "--repo", "me/polyp")[0] == 0
    assert len(connected.files("me/polyp")) == 6


def test_who_may_not_write(connected, folder, capsys, monkeypatch):
    _, _, errors = push(folder, capsys, "--repo", "google/polyp")
    assert "(403" in errors[0] and "google" in errors[0]
    monkeypatch.setenv("HF_TOKEN", connected.read_token)
    assert "(403" in push(folder, capsys, "--repo", "me/polyp")[2][0]
    monkeypatch.setenv("HF_TOKEN", "hf_unknowntoken")
    _, _, errors = push(folder, capsys, "--repo", "me/polyp")
    assert "(401)" in errors[0] and "hf_unknowntoken" not in errors[0]
    assert connected.repositories == {}


def test_a_pool_is_pushed_with_its_domains_alone(connected, tmp_path, capsys):
    pool = ModaModel(random_sam(), ModaConfig(inner=SamDecoderConfig(decoder="hq"), reject=0.0))
    pool.moda_config.base_model_name_or_path = "me/small-sam"
    for name in ("red", "green"):
        pool.add_domain(name)
        pool.observe(torch.randn(4, 3, 64, 64))
        pool.finish_domain()
    address = pool.push_to_hub("me/pool")
    files = {"adapter_config.json", "adapter_model.safetensors"}
    expected = files | {f"{name}/{file}" for name in ("red", "green") for file in files}
    assert set(connected.files("me/pool")) == expected
    assert address.startswith(connected.endpoint) and connected.repositories["model", "me/pool"].private

    folder = tmp_path / "pool"
    pool.save_pretrained(folder)
    (folder / "tasks").mkdir()
    for name in ("red/secret.bin", "tasks/adapter_model.safetensors"):
        (folder / name).write_bytes(b"x")
    assert push(folder, capsys, "--repo", "me/other")[0] == 0
    assert set(connected.files("me/other")) == expected
    shutil.rmtree(folder / "green")
    status, _, errors = push(folder, capsys, "--repo", "me/third")
    assert status == 2 and "green/ holds no adapter" in errors[0]

    connected.fail("POST .*/commit/", 403)
    with pytest.raises(UserError, match=r"push again with: push_to_hub\('me/pool2'\)"):
        pool.push_to_hub("me/pool2")


def test_what_an_earlier_push_left_goes(connected, folder, sam_folder, capsys, tmp_path):
    assert main(["push", str(folder), "--repo", "me/polyp"]) == 0
    model = tmp_path / "whole"
    save_adapter(load_base(sam_folder)[0], model)
    capsys.readouterr()
    assert main(["push", str(model), "--repo", "me/polyp"]) == 0
    there = set(connected.files("me/polyp"))
    assert {"config.json", "model.safetensors"} <= there and "notes.json" in there  # the author's own
    assert not there & {"adapter_config.json", "adapter_model.safetensors"}
    assert "Removed" in (said := capsys.readouterr().out) and "adapter_config.json" in said


def test_a_local_base_model_is_said(connected, folder, sam_folder, capsys):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": sam_folder}))
    assert main(["push", str(folder), "--repo", "me/polyp"]) == 0
    assert f"note: {folder / 'adapter_config.json'} names the folder {sam_folder}" in capsys.readouterr().err
    elsewhere = {**config, "base_model_name_or_path": "/scratch/me/sam"}
    (folder / "adapter_config.json").write_text(json.dumps(elsewhere))
    assert main(["push", str(folder), "--repo", "me/polyp"]) == 0
    assert "names the folder /scratch/me/sam as base model, which nobody else has" in capsys.readouterr().err


def test_half_written_files_are_found(folder, tmp_path):
    save_file({"x": torch.zeros(100)}, folder / "more.safetensors")
    content = (folder / "more.safetensors").read_bytes()
    assert "more.safetensors" in upload.pushed_files(folder)
    (folder / "more.safetensors").write_bytes(content[:-7])
    with pytest.raises(UserError, match="is not a safetensors file"):
        upload.pushed_files(folder)
    (folder / "more.safetensors").unlink()
    Image.new("RGB", (4, 4)).save(folder / "samples.png", format="JPEG")
    with pytest.raises(UserError, match="is not a png file"):
        upload.pushed_files(folder)
