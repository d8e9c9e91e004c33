"""The demo's engine: the masks of `predict`, from embeddings that are computed once."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from hf_sam_adapt.cli.predict import predict
from hf_sam_adapt.demo.engine import route_image, segment_image
from hf_sam_adapt.demo.images import read_picture
from hf_sam_adapt.demo.loaded_adapters import LoadedAdapters
from hf_sam_adapt.demo.session import Clicks, ImageState
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.forward import sam_of
from hf_sam_adapt.inference.loading import build_model, load_base, save_adapter
from hf_sam_adapt.sam.families import find_vision_encoder


PROMPTS = {
    "none": (Clicks(), {}),
    "point": (Clicks().with_point(70, 90, 1), {"point": [70, 90]}),
    "box": (Clicks().with_corner(150, 30).with_corner(40, 120), {"box": [40, 30, 150, 120]}),
}


@pytest.fixture(scope="module")
def loaded():
    return LoadedAdapters("tiny", capacity=10)


def state(path):
    return ImageState(read_picture(path, 10**7))


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("name", [None, "sam_adapter", "decoder", "hq", "pool_hq", "pool_encoder"])
def test_masks_equal_predict(loaded, adapters, drawn, tmp_path, name, kind):
    path = drawn("polyp", 3)
    clicks, flags = PROMPTS[kind]
    adapter = adapters.get(name)
    record = predict(
        [str(path)], adapter, model=None if adapter else "tiny", output_dir=tmp_path, progress=False, **flags
    )
    image = state(path)
    for _ in range(2):  # the second time from the embedding
        result = segment_image(image, loaded.get(adapter or ""), clicks.prompt())
        assert np.array_equal(np.array(Image.open(tmp_path / record[0]["mask"])) > 0, result.mask)
        assert result.domain == record[0].get("domain")
        assert result.estimate == pytest.approx(record[0]["iou_estimate"], abs=1e-6)
    assert not result.encoded
    assert 0 < record[0]["foreground"] < 1


def test_label_maps_equal_predict(loaded, adapters, drawn, tmp_path):
    path = drawn("landcover", 1)
    predict([str(path)], adapters["classes"], output_dir=tmp_path, progress=False)
    result = segment_image(state(path), loaded.get(adapters["classes"]), Clicks().with_point(5, 5, 1).prompt())
    assert np.array_equal(np.array(Image.open(tmp_path / f"{path.stem}_mask.png")), result.mask)
    assert result.classes == ["ground", "sea", "ice"]
    assert len(np.unique(result.mask)) > 1
    assert result.estimate is None


def test_estimate_only_where_it_was_trained(loaded, adapters, drawn):
    image, prompt = state(drawn("polyp")), Clicks().with_point(80, 80, 1).prompt()
    found = {name: segment_image(image, loaded.get(folder), prompt).estimate for name, folder in adapters.items()}
    assert [name for name, estimate in found.items() if estimate is not None] == ["decoder"]
    assert segment_image(image, loaded.get(""), prompt).estimate is not None


def test_encoder_runs_once_an_image_and_encoder(adapters, drawn):
    loaded = LoadedAdapters("tiny", capacity=10)
    calls = []
    for name in ("", *adapters.values()):
        encoder = find_vision_encoder(sam_of(loaded.get(name).model))
        encoder.patch_embed.register_forward_hook(lambda *_, name=name: calls.append(name))

    def segment(image, *names):
        calls.clear()
        for click in range(3):
            prompt = Clicks().with_point(60 + 20 * click, 80, 1).prompt()
            for name in names:
                segment_image(image, loaded.get(adapters.get(name, "")), prompt)
        return len(calls)

    image = state(drawn("polyp"))
    assert segment(image, "zero-shot", "decoder", "classes") == 1  # nothing trained in the encoder
    assert segment(image, "zero-shot", "decoder") == 0
    assert segment(image, "hq") == 1  # needs the map of an early block, too
    assert segment(image, "zero-shot", "hq", "decoder") == 0
    assert segment(image, "sam_adapter", "zero-shot", "conv_lora") == 2
    assert segment(image, "pool_hq") == 1  # its router; the embedding is there
    assert segment(image, "pool_encoder") == 2  # its router, and the adapter it chose
    assert segment(image, "zero-shot", *adapters) == 1  # lora, the one adapter that is left
    assert segment(state(drawn("speckle")), "zero-shot", "decoder", "hq") == 2


def test_an_adapter_without_windows_encodes_for_itself(loaded, drawn, tmp_path):
    base, processor = load_base("tiny")
    save_adapter(build_model("decoder", {"global_attention": True}, base), tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    shared, entry, prompt = state(drawn("polyp")), loaded.get(str(tmp_path / "adapter")), PROMPTS["point"][0].prompt()
    segment_image(shared, loaded.get(""), prompt)
    found = segment_image(shared, entry, prompt)
    assert np.array_equal(found.mask, segment_image(state(drawn("polyp")), entry, prompt).mask)
    assert entry.encoder != loaded.get("").encoder


@pytest.mark.parametrize("name", ["pool_hq", "pool_encoder"])
def test_routing_and_override(loaded, adapters, drawn, name):
    pool, prompt = loaded.get(adapters[name]), Clicks().prompt()
    for domain in ("polyp", "speckle"):
        image = state(drawn(domain, 1))
        routing = route_image(image, pool)
        assert routing.domains == [domain]
        assert routing.scores.sum().item() == pytest.approx(1)
        chosen = segment_image(image, pool, prompt)
        assert chosen.domain == domain
        assert np.array_equal(chosen.mask, segment_image(image, pool, prompt, domain).mask)
        plain = segment_image(image, pool, prompt, "base")
        assert np.array_equal(plain.mask, segment_image(image, loaded.get(""), prompt).mask)
        assert not np.array_equal(plain.mask, chosen.mask)
    with pytest.raises(UserError, match="not in the pool"):
        segment_image(image, pool, prompt, "roads")
    with pytest.raises(UserError, match="not a pool"):
        segment_image(image, loaded.get(""), prompt, "roads")
    with pytest.raises(UserError, match="not a pool"):
        route_image(image, loaded.get(adapters["decoder"]))


def test_base_is_shared_and_stays_itself(adapters, drawn):
    loaded, prompt = LoadedAdapters("tiny", capacity=10), Clicks().with_point(90, 90, 1).prompt()
    base = loaded.get("")
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    mask = segment_image(state(drawn("polyp")), base, prompt).mask
    total = sum(parameter.numel() for parameter in base.model.parameters())
    for name, folder in adapters.items():
        entry = loaded.get(folder)
        assert entry.base is base
        segment_image(state(drawn("polyp")), entry, prompt)
        pointers = {parameter.data_ptr() for parameter in base.model.parameters()}
        shared = sum(p.numel() for p in entry.model.parameters() if p.data_ptr() in pointers)
        assert shared > 0.85 * total, name
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.model.state_dict().items())
    assert np.array_equal(segment_image(state(drawn("polyp")), base, prompt).mask, mask)


def test_least_used_adapters_are_put_away(adapters):
    loaded = LoadedAdapters("tiny", capacity=2)
    first = loaded.get(adapters["decoder"])
    loaded.get(adapters["hq"])
    assert loaded.get(adapters["decoder"]) is first
    loaded.get(adapters["conv_lora"])
    assert loaded.get(adapters["decoder"]) is first
    assert len(loaded._adapters) == 2
    assert adapters["hq"] not in loaded._adapters


def test_adapters_that_cannot_be_shown(tmp_path, adapters):
    loaded = LoadedAdapters("tiny")
    with pytest.raises(UserError, match="neither"):
        loaded.get(str(tmp_path))
    with pytest.raises(UserError, match="neither a folder nor"):
        loaded.get("not a name")
    assert not loaded._adapters


def test_calls_at_once_do_not_disturb_each_other(loaded, adapters, drawn):
    prompts = [Clicks().prompt(), Clicks().with_point(80, 90, 1).prompt()]
    names = ["", adapters["pool_hq"], adapters["pool_encoder"], adapters["classes"], adapters["decoder"]]
    jobs = [
        (name, domain, prompt)
        for name in names
        for domain in ((None, "polyp", "speckle", "base") if "pool" in name else (None,))
        for prompt in prompts
    ]
    paths = [drawn("polyp", 4), drawn("speckle", 4)]

    def run(job):
        name, domain, prompt = job
        return [segment_image(state(path), loaded.get(name), prompt, domain).mask for path in paths]

    alone = [run(job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(run, jobs * 2))
    for expected, found in zip(alone * 2, together):
        assert all(np.array_equal(one, other) for one, other in zip(expected, found))


def test_plain_sams_are_put_away_but_the_demos_own(sam_folder, tmp_path):
    loaded = LoadedAdapters("tiny")
    own = loaded.get("")
    for number in range(4):
        (tmp_path / str(number)).symlink_to(sam_folder)
        loaded._base(str(tmp_path / str(number)))
    assert list(loaded._bases) == ["tiny", str(tmp_path / "2"), str(tmp_path / "3")]
    assert loaded.get("") is own
