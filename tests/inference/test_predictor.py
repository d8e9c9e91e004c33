"""The predictor beside transformers' own forward: masks, scores, classes, domains, threads, refusals."""

import threading
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sams import perturb

from hf_sam_adapt import ModaConfig, ModaModel, SamAdaptPredictor
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference import loading
from hf_sam_adapt.inference.loading import build_model, load_adapted, load_base, load_named, save_adapter
from hf_sam_adapt.prompts import Prompt


METHODS = {
    "sam_adapter": {},
    "conv_lora": {"lora_alpha": 8},
    "cwsam": {"num_labels": 3, "id2label": {0: "soil", 1: "crop", 2: "weed"}},
    "decoder": {"decoder": "hq"},
    "lora": {},
    "full": {},
}


@pytest.fixture(scope="module", params=METHODS)
def adapter(request, sam_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predictor") / request.param
    base, processor = load_base(sam_folder)
    save_adapter(perturb(build_model(request.param, METHODS[request.param], base), std=0.2), folder)
    processor.save_pretrained(folder)
    (folder / "recipe.yaml").write_text(f"model: {sam_folder}\n")
    return str(folder)


@pytest.fixture
def images():
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((40, 70), (90, 50), (64, 64))]


def plain_logits(folder: str, image: np.ndarray, **prompt) -> np.ndarray:
    """(n, K, H, W), one image at a time, resized in one step each as SAM does it."""
    loaded = load_adapted(folder)
    inputs = loaded.processor([image])
    with torch.no_grad():
        low = loaded.model(pixel_values=inputs["pixel_values"], multimask_output=False, **prompt).pred_masks[0]
    height, width = inputs["reshaped_input_sizes"][0].tolist()
    full = F.interpolate(low.float(), (64, 64), mode="bilinear")[..., :height, :width]
    return F.interpolate(full, image.shape[:2], mode="bilinear").numpy()


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected))


def test_without_a_prompt(adapter, images, tmp_path):
    predictor = SamAdaptPredictor.from_pretrained(adapter)
    Image.fromarray(images[1]).save(tmp_path / "b.png")
    results = predictor.predict([images[0], tmp_path / "b.png", Image.fromarray(images[2])], batch_size=2)
    for image, result in zip(images, results, strict=True):
        expected = plain_logits(adapter, image)[0]
        assert result.score is None and result.domain is None and result.instances is None
        if predictor.classes is None:
            assert close(result.logits, expected[0]) and result.logits.dtype == np.float32
            assert result.mask.dtype == bool and result.classes is None
            assert np.array_equal(result.mask, result.logits > 0) and result.mask.shape == image.shape[:2]
        else:
            assert close(result.logits, expected) and result.mask.dtype == np.uint8
            assert np.array_equal(result.mask, result.logits.argmax(0))
            shares = {name: (result.mask == label).mean() for label, name in enumerate(("soil", "crop", "weed"))}
            assert result.classes == pytest.approx(shares)


def test_a_box_for_each_image(adapter, images):
    predictor = SamAdaptPredictor.from_pretrained(adapter)
    boxes = [Prompt("box", boxes=np.array([[5, 5, 30, 20 + row]], np.float32)) for row in range(3)]
    if predictor.classes is not None:
        with pytest.raises(UserError, match="box: the model segments 3 classes without prompts"):
            predictor.predict(images, boxes)
        return
    for image, box, result in zip(images, boxes, predictor.predict(images, boxes), strict=True):
        placed = predictor.processor([image], prompts=[box])["prompts"][0].boxes[None]
        assert close(result.logits, plain_logits(adapter, image, input_boxes=placed)[0, 0])


def test_one_encoding_serves_many_prompts(adapter, images, monkeypatch):
    predictor = SamAdaptPredictor.from_pretrained(adapter)
    if predictor.classes is not None:
        pytest.skip("classes take no prompts")
    point = Prompt("point", points=np.array([[[9, 9]]], np.float32), point_labels=np.ones((1, 1), np.int64))
    prompts = [Prompt("none"), point]
    alone = [predictor.predict(images[0], prompt)[0] for prompt in prompts]
    runs = []
    encoder = next(part for name, part in predictor.model.named_modules() if name.endswith("vision_encoder"))
    encoder.register_forward_hook(lambda *args: runs.append(1))
    predictor.set_image(images[0])
    together = predictor.predict(prompts=prompts) + predictor.predict()
    assert len(runs) == 1
    for found, expected in zip(together, [*alone, alone[0]], strict=True):
        assert close(found.logits, expected.logits)


def test_threads_do_not_disturb_each_other(adapter, images):
    predictor = SamAdaptPredictor.from_pretrained(adapter)
    expected = [predictor.predict(image)[0].logits for image in images]
    wrong, done = [], []

    def work(number: int) -> None:
        for turn in range(4):
            place = (number + turn) % len(images)
            predictor.set_image(images[place])
            if not np.array_equal(predictor.predict()[0].logits, expected[place]):
                wrong.append((number, turn))
        done.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong and len(done) == 6


def test_a_plain_sam_estimates_its_iou(sam_folder, images):
    predictor = SamAdaptPredictor.from_pretrained(sam_folder)
    result = predictor.predict(images[0])[0]
    model, processor = load_base(sam_folder)
    with torch.no_grad():
        output = model(pixel_values=processor(images[0])["pixel_values"], multimask_output=False)
    assert result.score == pytest.approx(output.iou_scores.item(), rel=1e-5)


@pytest.fixture(scope="module")
def pool(sam_folder, tmp_path_factory):
    base, processor = load_base(sam_folder)
    model = ModaModel(base, ModaConfig(inner={"peft_type": "SAM_ADAPTER"}, reject=0.0))
    model.peft_config["default"].base_model_name_or_path = sam_folder
    for seed, (name, channel) in enumerate((("reddish", 0), ("bluish", 2)), start=1):
        model.add_domain(name)
        perturb(model, seed=seed)
        model.observe(processor(coloured(channel, 8, seed))["pixel_values"])
        model.finish_domain()
    folder = tmp_path_factory.mktemp("pool")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def coloured(channel: int, count: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 90, (50, 70, 3), dtype=np.uint8) for _ in range(count)]
    for image in images:
        image[..., channel] += 150
    return images


def test_a_pool_routes_or_is_told(pool):
    predictor = SamAdaptPredictor.from_pretrained(pool)
    images = [*coloured(0, 2, 7), *coloured(2, 1, 8)]
    routed = predictor.predict(images)
    assert [result.domain for result in routed] == ["reddish", "reddish", "bluish"]
    for result in routed:
        assert result.router_scores.keys() == {"reddish", "bluish"}
        assert max(result.router_scores, key=result.router_scores.get) == result.domain
        assert sum(result.router_scores.values()) == pytest.approx(1)
    told = predictor.predict(images, domain="bluish")
    assert [result.domain for result in told] == ["bluish"] * 3
    assert told[0].router_scores is None
    assert close(told[2].logits, routed[2].logits) and not close(told[0].logits, routed[0].logits)
    predictor.set_image(images[0], domain="base")
    plain = SamAdaptPredictor(predictor.model.model, predictor.processor)
    assert predictor.predict()[0].domain == "base"
    with pytest.raises(UserError, match="domain: name it in set_image"):
        predictor.predict(domain="bluish")
    with pytest.raises(UserError, match="greenish"):
        predictor.predict(images, domain="greenish")
    assert plain.classes is None


def test_instances():
    predictor = SamAdaptPredictor.from_pretrained("tiny")
    images = [np.full((60, 100, 3), 40, np.uint8), np.full((90, 90, 3), 200, np.uint8)]
    images[0][10:30, 20:50], images[0][35:55, 70:95], images[1][30:70, 20:60] = (
        (230, 60, 60),
        (60, 230, 60),
        (10, 20, 90),
    )
    results = predictor.predict(images, instances="components")
    for result in results:
        union = np.any([instance.mask for instance in result.instances], axis=0) if result.instances else False
        assert not (union & ~result.mask).any()
    scores = sorted(instance.score for result in results for instance in result.instances)
    assert len(scores) > 1
    surest = predictor.predict(images, instances="components", min_score=scores[1])
    assert sorted(instance.score for result in surest for instance in result.instances) == pytest.approx(scores[1:])


BOX = Prompt("box", boxes=np.array([[1, 1, 69, 39]], np.float32))
REFUSED = {
    "outside": (lambda p, i: p.predict(i, BOX), "box: it reaches outside the image, which has 50x90 pixels"),
    "count": (lambda p, i: p.predict(i, [BOX]), "prompts: 1 prompts for 3 images"),
    "no image": (lambda p, i: p.predict(), "images: none given, and this thread has not called set_image"),
    "both": (lambda p, i: p.predict(i[:1], BOX, instances="grid"), "instances, box: instances are found without"),
    "domain": (lambda p, i: p.predict(i, domain="wounds"), "domain: wounds, but the adapter is not a pool"),
}


REFUSED |= {
    "half": (lambda p, i: p.predict(i, batch_size=2.5), "batch_size: 2.5 is not a whole number"),
    "score": (lambda p, i: p.predict(i, min_score=0.9), "min_score: no instances are asked for"),
    "no score": (lambda p, i: p.predict(i, instances="grid", min_score=float("nan")), "min_score: nan is not a score"),
    "threshold": (lambda p, i: p.predict(i, threshold="a"), "threshold: a is not a probability"),
    "number": (lambda p, i: p.predict(5), "images: int is no image"),
    "bytes": (lambda p, i: p.predict(b"file"), "images: bytes is no image"),
    "none of them": (lambda p, i: p.predict([None]), "images: NoneType is no image"),
    "set none": (lambda p, i: p.set_image(None), "images: NoneType is no image"),
    "device": (lambda p, i: SamAdaptPredictor.from_pretrained("tiny", device="gpu"), "device: 'gpu' cannot be used"),
    "no device": (
        lambda p, i: SamAdaptPredictor.from_pretrained("tiny", device="meta:x"),
        "device: 'meta:x' cannot be used",
    ),
    "batch": (lambda p, i: p.predict(i, batch_size=0), "batch_size: 0 is below 1"),
    "points": (lambda p, i: p.predict(i, instances="grid", points_per_side=0), "points_per_side: 0 is below 1"),
    "source": (lambda p, i: p.predict(i, instances="grids"), "instances: 'grids' is unknown; use grid or components"),
    "numbers": (lambda p, i: p.predict(i[0], [[1, 1, 9, 9]]), r"prompts: \[1, 1, 9, 9\] is no Prompt"),
    "empty": (lambda p, i: p.predict(i[0], Prompt("box")), "prompts: no prompt of kind 'box'"),
    "kind": (lambda p, i: p.predict(i[0], Prompt("boxes")), "prompts: no prompt of kind 'boxes'"),
    "mask": (lambda p, i: p.predict(i[0], Prompt.mask(np.ones((9, 9), bool))), "mask of 9x9 for an image of 70x40"),
    "precision": (lambda p, i: SamAdaptPredictor(p.model, p.processor, precision="bf17"), "precision: 'bf17' is unk"),
    "route": (lambda p, i: p.predict(i, route="xx"), "route: 'xx' is unknown; use image or tile"),
    "route of tiles": (lambda p, i: p.predict(i, tile=32, route="xx"), "route: 'xx' is unknown; use image or tile"),
    "no mask": (lambda p, i: Prompt.mask(), "prompt mask: nothing; give arrays"),
    "sizes": (lambda p, i: Prompt.mask(np.ones((3, 4)), np.ones((4, 4))), r"prompt mask: \(3, 4\), \(4, 4\); give"),
    "stack": (lambda p, i: Prompt.mask(np.ones((2, 3, 4))), r"prompt mask: \(2, 3, 4\); give arrays"),
    "three": (lambda p, i: Prompt.box((1, 2, 3)), r"box: \(1, 2, 3\) is not a box"),
    "corners": (lambda p, i: Prompt.box(5, 5, 1, 9), "box: 5 5 1 9 is not a box; give x0 y0 x1 y1 with x0 <= x1"),
    "words": (lambda p, i: Prompt.point("here"), "point: here is not a point; give x y"),
    "ragged": (lambda p, i: Prompt.point((1, 2), (3,)), "is not a point"),
    "nothing": (lambda p, i: Prompt.clicks([]), "point: nothing is not a point"),
    "labels": (lambda p, i: Prompt.clicks([(1, 2)], [2]), r"point: labels \[2\] of 1 points"),
    "grey": (lambda p, i: Prompt.mask(np.full((4, 4), 7)), "values other than 0 and 1"),
}


def test_classes_and_tiles_are_those_of_the_model(sam_folder):
    base, processor = load_base(sam_folder)
    model = build_model("decoder", {"decoder": "class_wise", "num_labels": 3}, base)
    image = np.zeros((40, 60, 3), np.uint8)
    (found,) = SamAdaptPredictor(model, processor).predict(image)
    assert found.mask.dtype == np.uint8 and list(found.classes) == ["0", "1", "2"]
    processor.tiling = {"tile": 32, "overlap": 4}
    predictor = SamAdaptPredictor(model, processor)
    with pytest.warns(UserWarning, match="trained on tiles, and these images are not cut: give tile=32, overlap=4"):
        predictor.predict(image)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        predictor.predict(image, tile=32, overlap=4)


def numbers(kind, **fields):
    """A prompt of plain lists, whatever its shapes."""
    return Prompt(kind, **{name: None if value is None else np.array(value) for name, value in fields.items()})


BAD_PROMPTS = {
    "swapped": (numbers("box", boxes=[[9, 9, 1, 1]]), "box: corners in another order; give x0 y0 x1 y1"),
    "flat box": (numbers("box", boxes=[1, 1, 9, 9]), "prompts: boxes: int64 of shape"),
    "three": (numbers("box", boxes=[[1, 1, 9]]), r"prompts: boxes of shape \(1, 3\) for 1 objects"),
    "no labels": (numbers("point", points=[[[1, 1]]]), "prompts: points and their labels go together"),
    "no points": (numbers("box", boxes=[[1, 1, 9, 9]], point_labels=[[1]]), "points and their labels go together"),
    "pairs": (numbers("point", points=[[1, 1]], point_labels=[[1]]), "prompts: points: int64 of shape"),
    "label 2": (numbers("point", points=[[[1, 1]]], point_labels=[[2]]), "point: labels other than 1"),
    "label -1": (numbers("point", points=[[[1, 1]]], point_labels=[[-1]]), "point: labels other than 1"),
    "few labels": (numbers("point", points=[[[1, 1], [2, 2]]], point_labels=[[1]]), "point_labels of shape"),
    "few rows": (numbers("point", points=[[[1, 1]], [[2, 2]]], point_labels=[[1]]), "point_labels of shape"),
    "no click": (Prompt("point", points=np.ones((1, 0, 2)), point_labels=np.ones((1, 0))), "points of shape"),
    "objects": (
        numbers("box", boxes=[[1, 1, 9, 9]], points=[[[1, 1]], [[2, 2]]], point_labels=[[1], [1]]),
        r"prompts: points of shape \(2, 1, 2\) for 1 objects",
    ),
    "ragged": (Prompt("box", boxes=[[1, 1, 9, 9], [1]]), "boxes: rows of several lengths"),
    "words": (Prompt("box", boxes=np.array([["a", "b", "c", "d"]])), "prompts: boxes: <U1 of shape"),
    "flat mask": (Prompt("mask", masks=np.ones((40, 70), bool)), "prompts: masks: bool of shape"),
    "large mask": (Prompt("mask", masks=np.ones((1, 80, 140), bool)), "mask of 140x80 for an image of 70x40"),
}


@pytest.mark.parametrize("tile", [None, 32])
@pytest.mark.parametrize("case", BAD_PROMPTS)
def test_bad_prompts_are_one_clear_error(sam_folder, images, case, tile):
    prompt, message = BAD_PROMPTS[case]
    with pytest.raises(UserError, match=message):
        SamAdaptPredictor.from_pretrained(sam_folder).predict(images[0], prompt, tile=tile)


def test_a_prompt_without_objects_finds_nothing(sam_folder, images):
    predictor = SamAdaptPredictor.from_pretrained(sam_folder)
    for prompt in (
        Prompt("box", boxes=np.empty((0, 4))),
        Prompt("point", points=np.empty((0, 1, 2)), point_labels=np.empty((0, 1))),
    ):
        for tile in (None, 32):
            assert not predictor.predict(images[0], prompt, tile=tile)[0].mask.any()


def test_a_pool_of_classes_has_no_base(sam_folder):
    base, processor = load_base(sam_folder)
    inner = {"peft_type": "SAM_DECODER", "decoder": "class_wise", "num_labels": 3}
    model = ModaModel(base, ModaConfig(inner=inner, reject=0.0))
    model.add_domain("soil")
    model.observe(processor(coloured(0, 4, 0))["pixel_values"])
    model.finish_domain()
    predictor = SamAdaptPredictor(model.eval(), processor, classes=["a", "b", "c"])
    image = coloured(0, 1, 1)[0]
    assert predictor.predict(image, domain="soil")[0].classes.keys() == {"a", "b", "c"}
    for call in (predictor.predict, predictor.set_image, partial(predictor.predict, tile=32)):
        with pytest.raises(UserError, match="domain: base, but plain SAM has no classes"):
            call(image, domain="base")


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(sam_folder, images, case):
    call, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        call(SamAdaptPredictor.from_pretrained(sam_folder), images)


@pytest.mark.parametrize("name", ["tiny", "plain", "full"])
def test_a_base_for_a_whole_sam_is_refused(sam_folder, tmp_path, name):
    if name == "full":
        save_adapter(build_model("full", {}, load_base(sam_folder)[0]), tmp_path)
        (tmp_path / "recipe.yaml").write_text("method: full\n")
        assert not load_named(str(tmp_path)).has_estimate
    with pytest.raises(UserError, match="is a SAM, not an adapter; leave model out"):
        SamAdaptPredictor.from_pretrained({"plain": sam_folder, "full": tmp_path}.get(name, name), model="tiny")


@pytest.mark.parametrize("model", [None, "tiny"])
@pytest.mark.parametrize("name", ["empty", "missing", "owner/name", "one/two/three@x@y", "pickle", "photo.jpg"])
def test_a_wrong_name_is_one_clear_error(tmp_path, name, model):
    wrong = {"empty": tmp_path, "missing": tmp_path / "nowhere", "pickle": tmp_path / "pickle"}
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "adapter_config.json").write_text('{"base_model_name_or_path": "tiny"}')
    with pytest.raises(UserError) as caught:
        SamAdaptPredictor.from_pretrained(wrong.get(name, name), model=model)
    message = str(caught.value)
    assert str(wrong.get(name, name)) in message and "\n" not in message and len(message) < 300
    expected = {"empty": "holds neither adapter_config.json nor config.json", "pickle": "holds no adapter_model.safet"}
    assert expected.get(name, "neither a folder nor") in message


@pytest.mark.parametrize("cached", [("config.json",), ("adapter_config.json",), ("config.json", "recipe.yaml")])
def test_offline_the_cache_need_not_know_what_is_absent(monkeypatch, cached):
    def find_file(name, file, revision=None):
        if file not in cached:
            raise UserError(f"{file} is not in the cache")
        return tmp_file

    tmp_file, calls = object(), []
    monkeypatch.setattr(loading, "find_file", find_file)
    monkeypatch.setattr(loading.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(loading, "load_base", lambda *args: calls.append("plain") or (None, None))
    monkeypatch.setattr(loading, "load_adapted", lambda *args, **keys: calls.append("adapted"))
    load_named("owner/name")
    assert calls == (["plain"] if cached == ("config.json",) else ["adapted"])
    monkeypatch.setattr(loading.constants, "HF_HUB_OFFLINE", False)
    if "recipe.yaml" not in cached:
        with pytest.raises(UserError, match="not in the cache"):
            load_named("owner/other") if cached == ("config.json",) else find_file("", "config.json")


PLAIN_PROMPTS = {
    "box": (Prompt.box(5, 6, 30, 35), Prompt("box", boxes=np.array([[5, 6, 30, 35]], np.float32))),
    "boxes": (
        Prompt.box((5, 6, 30, 35), (1, 2, 3, 4)),
        Prompt("box", boxes=np.array([[5, 6, 30, 35], [1, 2, 3, 4]], np.float32)),
    ),
    "box array": (Prompt.box(np.arange(8).reshape(2, 4)), Prompt("box", boxes=np.arange(8.0).reshape(2, 4))),
    "point": (
        Prompt.point(20, 10),
        Prompt("point", points=np.array([[[20, 10]]], np.float32), point_labels=np.array([[1]])),
    ),
    "points": (
        Prompt.point((20, 10), (3, 4)),
        Prompt("point", points=np.array([[[20, 10]], [[3, 4]]], np.float32), point_labels=np.array([[1], [1]])),
    ),
    "clicks": (
        Prompt.clicks([(20, 10), (3, 4)], [1, 0]),
        Prompt("point", points=np.array([[[20, 10], [3, 4]]], np.float32), point_labels=np.array([[1, 0]])),
    ),
    "clicks on": (
        Prompt.clicks([[20, 10], [3, 4]]),
        Prompt("point", points=np.array([[[20, 10], [3, 4]]], np.float32), point_labels=np.array([[1, 1]])),
    ),
    "mask": (Prompt.mask(np.eye(5)), Prompt("mask", masks=np.eye(5, dtype=bool)[None])),
}


@pytest.mark.parametrize("name", PLAIN_PROMPTS)
def test_prompts_of_plain_numbers(name):
    short, long = PLAIN_PROMPTS[name]
    assert short.kind == long.kind and len(short) == len(long)
    for field in ("boxes", "points", "point_labels", "masks", "targets"):
        values, expected = getattr(short, field), getattr(long, field)
        assert (values is None) == (expected is None)
        if values is not None:
            assert np.array_equal(values, expected) and values.shape == expected.shape
            assert values.dtype == {"point_labels": np.int64, "masks": bool}.get(field, np.float32)


def test_images_in_any_form(sam_folder, images, tmp_path):
    predictor = SamAdaptPredictor.from_pretrained(sam_folder)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    expected = [result.logits for result in predictor.predict(images)]
    forms = {
        "files": sorted(tmp_path.glob("*.png")),
        "generator": (path for path in sorted(tmp_path.glob("*.png"))),
        "names": tuple(str(tmp_path / f"{number}.png") for number in range(3)),
        "tensors": [torch.from_numpy(image).permute(2, 0, 1) for image in images],
    }
    for name, form in forms.items():
        results = predictor.predict(form, batch_size=2)
        assert all(map(close, (result.logits for result in results), expected)), name
        assert len(results) == 3
    stacked = predictor.predict(np.stack([images[2]] * 2))
    assert len(stacked) == 2 and close(stacked[1].logits, expected[2])
    assert predictor.predict([]) == []


@pytest.mark.parametrize("kind", ["none", "box"])
def test_bf16_is_autocast(adapter, images, kind):
    predictor = SamAdaptPredictor.from_pretrained(adapter, precision="bf16")
    if predictor.classes is not None and kind == "box":
        pytest.skip("classes take no prompts")
    prompt, inputs = Prompt("none"), {}
    if kind == "box":
        prompt = Prompt.box(5, 5, 30, 30)
        inputs = {"input_boxes": predictor.processor(images[0], prompts=prompt)["prompts"][0].boxes[None]}
    (result,) = predictor.predict(images[0], prompt)
    with torch.autocast("cpu", torch.bfloat16):
        expected = plain_logits(adapter, images[0], **inputs)[0]
    expected = expected if predictor.classes is not None else expected[0]
    assert close(result.logits, expected) and result.logits.dtype == np.float32
    exact = plain_logits(adapter, images[0], **inputs)[0]
    assert not close(result.logits, exact if predictor.classes is not None else exact[0])
    binary = predictor.classes is None
    assert np.array_equal(result.mask, result.logits > 0 if binary else result.logits.argmax(0))


def test_encode_and_decode_are_the_halves_of_predict(adapter, images):
    predictor = SamAdaptPredictor.from_pretrained(adapter)
    encoded = predictor.encode(images)
    assert len(encoded) == 3 and len(encoded[[2, 0]]) == 2
    whole = predictor.predict(images, batch_size=3)
    for place, result in zip((2, 0), predictor.decode(encoded[[2, 0]]), strict=True):
        assert np.array_equal(result.mask, whole[place].mask) and close(result.logits, whole[place].logits)
