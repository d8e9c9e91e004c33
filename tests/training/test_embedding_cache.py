"""Cached embeddings: equal losses, one pass of the encoder, no stale row, nothing half-written, constant memory."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from launching import ROOT
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from sams import random_sam

import hf_sam_adapt.inference.embeddings.cache
import hf_sam_adapt.inference.embeddings.store
import hf_sam_adapt.inference.forward
import hf_sam_adapt.training.loop
from hf_sam_adapt.config.recipe import parse_recipe
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.evaluation import evaluate
from hf_sam_adapt.inference.embeddings.cache import EmbeddingCache, cache_key, check_cacheable, image_digest
from hf_sam_adapt.inference.embeddings.split import EmbeddedSplit
from hf_sam_adapt.inference.embeddings.store import EmbeddingStore
from hf_sam_adapt.inference.forward import encode
from hf_sam_adapt.inference.loading import build_model
from hf_sam_adapt.sam.processing import SamAdaptProcessor
from hf_sam_adapt.training import train
from hf_sam_adapt.training.loop import TrainingLoop


ADAPTER = "adapter_model.safetensors"
DECODER = {"method": "decoder", "augment": "none", "prompts": ["none", "box", "point", "mask"]}
HQ = {**DECODER, "method_args.decoder": "hq"}
DECODER_LORA = {
    "method": "lora",
    "augment": "none",
    "method_args.target_modules": r"mask_decoder\.transformer\.layers\.\d+\.self_attn\.[qv]_proj",
    "method_args.modules_to_save": "null",
}


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SAM_ADAPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def losses(monkeypatch):
    """The loss of every optimizer step, appended as it is computed."""
    found, original = [], TrainingLoop._optimizer_step

    def step(self, *arguments):
        figures = original(self, *arguments)
        found.append(tuple(figures.tolist()))
        return figures

    monkeypatch.setattr(TrainingLoop, "_optimizer_step", step)
    return found


@pytest.fixture
def encoded(monkeypatch):
    """Numbers of images in the batches that were encoded for the cache."""
    counts = []

    def counting(model, pixel_values):
        counts.append(len(pixel_values))
        return encode(model, pixel_values)

    monkeypatch.setattr(hf_sam_adapt.inference.embeddings.cache, "encode", counting)
    return counts


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())["test"]


@pytest.mark.parametrize(
    "keys",
    [
        DECODER,
        pytest.param({**DECODER, "precision": "bf16"}, marks=pytest.mark.slow),
        DECODER_LORA,
        pytest.param(HQ, marks=pytest.mark.slow),
        {**HQ, "precision": "bf16"},
    ],
    ids=["fp32", "bf16", "lora", "hq", "hq-bf16"],
)
def test_losses_and_scores_equal_those_without_cache(keys, short_recipe, losses):
    keys = {**keys, "batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 4, "learning_rate": 1e-2}
    plain = train(parse_recipe(short_recipe("plain", **keys)))
    expected = losses.copy()
    losses.clear()
    cached = train(parse_recipe(short_recipe("cached", **keys, cache_embeddings="true")))
    assert len(losses) == 4 and len({loss for loss, _ in losses}) == 4
    assert np.allclose(losses, expected, rtol=1e-6, atol=0)
    for kind, scores in metrics_of(plain).items():
        for name, values in scores.items():
            assert metrics_of(cached)[kind][name] == pytest.approx(values, abs=1e-4), (kind, name)
    one, two = load_file(plain / ADAPTER), load_file(cached / ADAPTER)
    assert all(torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-6) for name in one)


def test_each_image_is_encoded_once_and_a_second_run_reuses_it(
    short_recipe, encoded, cache_folder, capsys, monkeypatch
):
    def never(*arguments):
        raise AssertionError("the encoder runs in a training step")

    monkeypatch.setattr(hf_sam_adapt.inference.forward, "encode", never)
    train(parse_recipe(short_recipe("one", **DECODER, max_steps=12, cache_embeddings="true")))
    assert sum(encoded) == 10 + 4 + 5  # training, validation and test images
    (folder,) = (cache_folder / "embeddings").iterdir()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Embeddings of")]
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6
    assert lines[0].startswith("Embeddings of 14 images: 14 computed, 0 reused; ")
    assert lines[1] == f"Embeddings of 5 images: 5 computed, 0 reused; {folder} holds 19, {size:.1f} MB."
    train(parse_recipe(short_recipe("two", **DECODER, seed=1, cache_embeddings="true")))
    assert sum(encoded) == 19 and "14 images: 0 computed, 14 reused" in capsys.readouterr().out


@pytest.mark.slow
def test_early_maps_are_kept_beside_the_embeddings_that_all_decoders_share(
    short_recipe, encoded, cache_folder, capsys
):
    def folders():
        return {path.name: len(list(path.glob("*.safetensors"))) for path in (cache_folder / "embeddings").iterdir()}

    train(parse_recipe(short_recipe("full", **DECODER, max_steps=1, cache_embeddings="true")))
    (shared,) = before = folders()
    train(parse_recipe(short_recipe("hq", **HQ, max_steps=1, cache_embeddings="true")))
    assert sum(encoded) == 2 * 19
    assert folders().keys() == {shared, f"{shared}_block1"} and folders()[shared] == before[shared]
    other = {**HQ, "method_args.early_layer": 0}
    train(parse_recipe(short_recipe("other", **other, max_steps=1, cache_embeddings="true")))
    assert sum(encoded) == 3 * 19 and folders().keys() == {shared, f"{shared}_block0", f"{shared}_block1"}
    capsys.readouterr()
    train(parse_recipe(short_recipe("again", **HQ, max_steps=1, cache_embeddings="true")))
    assert sum(encoded) == 3 * 19 and "14 images: 0 computed, 14 reused" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"method": "sam_adapter", "augment": "none"}, "trains the image encoder"),
        ({"method": "lora", "augment": "none"}, "trains the image encoder"),
        ({"method": "full", "augment": "none"}, "trains the image encoder"),
        ({"method": "decoder"}, "augment flip scale colour would change the images"),
        ({"method": "decoder", "augment": "flip"}, "augment flip would change the images"),
    ],
)
def test_what_changes_embeddings_is_refused_before_anything_is_written(
    keys, message, short_recipe, cache_folder, tmp_path
):
    with pytest.raises(UserError, match=f"cache_embeddings: .*{message}") as refusal:
        train(parse_recipe(short_recipe(**keys, cache_embeddings="true")))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists() and not cache_folder.exists()


def test_an_adapter_in_the_encoder_is_refused_though_frozen():
    model = build_model("sam_adapter", {}, random_sam()).requires_grad_(False)
    with pytest.raises(UserError, match="an adapter acts in the image encoder"):
        check_cacheable(model)
    config = LoraConfig(target_modules=r"mask_decoder\.transformer.*q_proj")
    check_cacheable(get_peft_model(random_sam(), config))
    with pytest.raises(UserError, match="dropout"):
        check_cacheable(random_sam(attention_dropout=0.1).requires_grad_(False))


def test_the_key_follows_weights_processor_and_precision(sam_folder):
    def key(sam=None, precision="no", **processor):
        sam = random_sam() if sam is None else sam
        return cache_key(sam, SamAdaptProcessor(**{"image_size": 64, "patch_size": 8, **processor}), precision)

    changed = random_sam()
    with torch.no_grad():
        changed.vision_encoder.neck.conv2.weight[0, 0, 0, 0] += 1e-3
    decoder = random_sam()
    with torch.no_grad():
        decoder.mask_decoder.mask_tokens.weight.add_(1)
    same = [
        key(),
        key(decoder),
        key(type(decoder).from_pretrained(sam_folder)),
        key(build_model("decoder", {}, decoder)),
    ]
    others = [
        key(changed),
        key(random_sam(window=2)),
        key(precision="bf16"),
        key(resize="squash"),
        key(image_mean=(0.4, 0.4, 0.4)),
    ]
    assert len(set(same)) == 1 and len({*others, same[0]}) == 6


def test_the_digest_follows_the_pixels():
    rng = np.random.default_rng(torch.initial_seed())
    image = rng.integers(0, 256, (20, 30, 3), np.uint8)
    changed = image.copy()
    changed[rng.integers(20), rng.integers(30), rng.integers(3)] += 1
    assert image_digest(image) == image_digest(image[:, ::-1][:, ::-1])
    assert len({image_digest(array) for array in (image, changed, image.reshape(30, 20, 3), image[:, ::-1])}) == 4


def test_embedded_samples_are_the_images_of_their_split(disc_split, processor, encoded):
    model = build_model("decoder", {}, random_sam())
    twice = disc_split.select([3, 1, 3, 0, 1])
    (embedded,) = EmbeddingCache(model, processor, batch_size=2).embed(twice)
    assert sum(encoded) == 3 and len(embedded) == 5 and embedded.ids == twice.ids
    for index in (4, 0, 3, -1):
        sample, image = embedded[index], twice[index]
        with torch.no_grad():
            expected = encode(model, processor([image.image])["pixel_values"])[0]
        assert torch.allclose(sample.embedding.maps, expected.maps, rtol=1e-5, atol=1e-5)
        assert np.array_equal(sample.mask, image.mask) and (sample.id, sample.index) == (image.id, image.index)
    fresh = EmbeddedSplit(twice, embedded.store, embedded.digests)  # no mask in memory yet
    assert all(np.array_equal(fresh[i].mask, twice[i].mask) for i in (0, 1, 0))


def test_embeddings_do_not_stand_for_another_encoder(disc_split, processor):
    (embedded,) = EmbeddingCache(random_sam(), processor).embed(disc_split)
    with pytest.raises(ValueError, match="encoder of its own"):
        evaluate(random_sam(), processor, embedded, ["none"], zero_shot_model=random_sam(1))


def fill(store, rows):
    for digest, embedding in rows:
        store.write(digest, embedding)


def stored_bytes(row):
    return len(safetensors.torch.save({"embedding": row}))


def random_rows(count, dtype=torch.float32, shape=(4, 3, 3)):
    return {f"{number:04x}": torch.randn(shape).to(dtype) for number in range(count)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_come_back_bit_for_bit(dtype, tmp_path):
    rows = random_rows(50, dtype)
    fill(EmbeddingStore(tmp_path / "store"), rows.items())
    store = EmbeddingStore(tmp_path / "store")
    assert len(store) == 50 == len(list(store.folder.glob("*.safetensors")))
    for digest in np.random.default_rng(torch.initial_seed()).permutation(list(rows)):
        read = store.read(digest)
        assert read.dtype == dtype and torch.equal(read, rows[digest])
    assert "absent" not in store and store.num_bytes == sum(map(stored_bytes, rows.values()))


def test_what_is_torn_is_not_read(tmp_path):
    rows = random_rows(5)
    fill(EmbeddingStore(tmp_path), rows.items())
    last, header, empty, missing = (tmp_path / f"000{number}.safetensors" for number in range(4))
    last.write_bytes(last.read_bytes()[:-1])
    header.write_bytes(header.read_bytes()[:20])
    empty.write_bytes(b"")
    missing.unlink()
    store = EmbeddingStore(tmp_path)
    assert [digest for digest in rows if digest in store] == ["0004"]
    fill(store, [item for item in rows.items() if item[0] not in store])
    assert all(torch.equal(store.read(digest), row) for digest, row in rows.items())


def test_abandoned_files_are_removed_and_those_of_other_builds_are_not(tmp_path):
    old, recent = (tmp_path / name for name in (".tmp_old.safetensors", ".tmp_recent.safetensors"))
    for path in (old, recent):
        path.write_bytes(b"1234")
    os.utime(old, (time.time() - 2e5,) * 2)
    fill(EmbeddingStore(tmp_path), random_rows(2).items())
    assert recent.exists() and not old.exists()


needs_fork = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="runs in a forked process of Linux")


def in_a_child(function, *arguments):
    """Run `function` in a forked process; how that ended, as `subprocess` counts it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function(*arguments)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def numbered(number, shape=(4, 3, 3)):
    return f"{number:04x}", torch.full(shape, float(number))


def build_until_killed(folder):
    store = EmbeddingStore(folder)
    for number in range(50):
        store.write(*numbered(number))
        if number == 36:
            os.kill(os.getpid(), signal.SIGKILL)


@needs_fork
def test_a_killed_build_loses_nothing_that_it_wrote_and_is_continued(tmp_path):
    assert in_a_child(build_until_killed, tmp_path) == -signal.SIGKILL
    store = EmbeddingStore(tmp_path)
    assert len(store) == 37
    missing = {digest: row for digest, row in map(numbered, range(50)) if digest not in store}
    assert len(missing) == 13
    fill(store, missing.items())
    assert all(torch.equal(store.read(digest), row) for digest, row in map(numbered, range(50)))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_run_keeps_its_embeddings_and_starts_again(
    error, short_recipe, encoded, monkeypatch, tmp_path, capsys
):
    counting = hf_sam_adapt.inference.embeddings.cache.encode

    def failing(model, pixel_values):
        if sum(encoded) >= 6:
            raise error
        return counting(model, pixel_values)

    argv = short_recipe(**DECODER, cache_embeddings="true")
    with monkeypatch.context() as patch:
        patch.setattr(hf_sam_adapt.inference.embeddings.cache, "encode", failing)
        with pytest.raises(error):
            train(parse_recipe(argv))
    assert not (tmp_path / "run").exists()
    train(parse_recipe(argv))
    assert sum(encoded) == 19 and "14 images: 8 computed, 6 reused" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_one_clear_line(short_recipe, cache_folder, tmp_path):
    cache_folder.write_text("a file")
    with pytest.raises(UserError, match=re.escape(f"cannot write to {cache_folder}")) as refusal:
        train(parse_recipe(short_recipe(**DECODER, cache_embeddings="true")))
    assert "HF_SAM_ADAPT_CACHE" in str(refusal.value) and not (tmp_path / "run").exists()


def test_a_run_resumed_from_a_checkpoint_equals_the_straight_one(short_recipe, monkeypatch):
    class Stopped(Exception):
        pass

    original = hf_sam_adapt.training.loop.seed_micro_step

    def stop(seed, step, micro_step, rank):
        if step == 5:
            raise Stopped
        original(seed, step, micro_step, rank)

    keys = {**DECODER, "max_steps": 8, "cache_embeddings": "true", "learning_rate": 1e-2}
    straight = train(parse_recipe(short_recipe("straight", **keys)))
    with monkeypatch.context() as patch:
        patch.setattr(hf_sam_adapt.training.loop, "seed_micro_step", stop)
        with pytest.raises(Stopped):
            train(parse_recipe(short_recipe("broken", **keys)))
    resumed = train(parse_recipe(short_recipe("broken", **keys, resume_from_checkpoint="latest")))
    assert (resumed / ADAPTER).read_bytes() == (straight / ADAPTER).read_bytes()
    assert metrics_of(resumed) == metrics_of(straight)


def peak_memory():
    """Bytes of this process that were resident at once."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024


def build_and_read_many(folder, report):
    shape, order = (64, 8, 8), torch.randperm(10_000).tolist()
    warm = EmbeddingStore(folder.with_name("warm"))
    fill(warm, (numbered(number, shape) for number in range(100)))
    warm.read(numbered(0, shape)[0])
    before = peak_memory()
    fill(EmbeddingStore(folder), (numbered(number, shape) for number in range(10_000)))
    store = EmbeddingStore(folder)
    for number in order:
        digest, row = numbered(number, shape)
        assert torch.equal(store.read(digest), row)
    report.write_text(f"{store.num_bytes} {peak_memory() - before}")


@needs_fork
def test_ten_thousand_embeddings_take_constant_memory(tmp_path):
    report = tmp_path / "report"
    assert in_a_child(build_and_read_many, tmp_path / "store", report) == 0
    stored, grown = map(int, report.read_text().split())
    assert stored == 10_000 * stored_bytes(torch.zeros(64, 8, 8))  # 164 MB
    assert grown < 20e6


@pytest.mark.slow
@pytest.mark.xdist_group("torchrun")
def test_two_processes_share_the_work(short_recipe, command_line, tmp_path, monkeypatch):
    keys = {**DECODER, "cache_embeddings": "true", "max_steps": 3}
    one = command_line("train", *short_recipe("one", **keys, batch_size=4))
    assert one.returncode == 0, one.stderr
    monkeypatch.setenv("HF_SAM_ADAPT_CACHE", str(tmp_path / "other"))
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    script = ROOT / "recipes" / "train.py"
    two = command_line(*short_recipe("two", **keys, batch_size=2), launcher=(*launch, script))
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("14 images: 14 computed, 0 reused") == 1
    weights = [load_file(tmp_path / name / ADAPTER) for name in ("one", "two")]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=2e-5) for name in weights[0])
