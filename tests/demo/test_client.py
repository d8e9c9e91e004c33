"""The demo's endpoints through `gradio_client`: the masks of `predict`, the router's choice, a training."""

import zipfile
from datetime import timedelta

import numpy as np
import pytest
from PIL import Image

from hf_sam_adapt.cli.predict import predict
from hf_sam_adapt.data.synthetic import draw_sample
from hf_sam_adapt.demo.catalog import built_in_folder


gradio_client = pytest.importorskip("gradio_client")
pytestmark = pytest.mark.xdist_group("demo")


@pytest.fixture(scope="module")
def client(served):
    return gradio_client.Client(served.url, verbose=False, analytics_enabled=False)


@pytest.mark.parametrize(
    ("adapter", "points", "box", "flags"),
    [
        ("", [[120, 80, 1]], None, {"model": "tiny", "point": [120, 80]}),
        ("radar-fields", [], None, {}),
        ("radar-fields", [], [150, 100, 20, 30], {"box": [20, 30, 150, 100]}),
        ("three-domains", [], None, {}),
        ("land-cover", [], None, {}),
    ],
)
def test_segment_equals_predict(client, drawn, tmp_path, adapter, points, box, flags):
    path = drawn("landcover" if adapter == "land-cover" else "speckle", 7)
    folder = str(built_in_folder() / adapter) if adapter else None
    (record,) = predict([str(path)], folder, output_dir=tmp_path / "out", progress=False, **flags)
    mask, overlay, about = client.predict(
        gradio_client.handle_file(path), adapter, points, box, "", api_name="/segment"
    )
    assert np.array_equal(np.array(Image.open(mask)), np.array(Image.open(tmp_path / "out" / record["mask"])))
    if adapter:  # of plain SAM it has the page's colour for it
        assert np.array_equal(
            np.array(Image.open(overlay)), np.array(Image.open(tmp_path / "out" / record["overlay"]))
        )
    assert about["iou_estimate"] == pytest.approx(record.get("iou_estimate"))
    assert about["domain"] == record.get("domain")
    assert about.get("classes") == record.get("classes")
    assert about.get("foreground") == pytest.approx(record.get("foreground"))


def test_adapters_have_the_names_of_the_list(client, served, drawn):
    image = gradio_client.handle_file(drawn("speckle", 7))
    for choice in served.app.choices:
        found = []
        for name in (choice.value, choice.label, choice.label.split(" · ")[0]):
            mask, *_ = client.predict(image, name, [], None, "", api_name="/segment")
            found.append(np.asarray(Image.open(mask)))
        assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


def test_bad_calls_end_in_one_line(client, drawn, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    large = tmp_path / "large.png"
    Image.new("L", (3000, 2000)).save(large)
    good = gradio_client.handle_file(drawn("polyp"))
    for image, adapter, points, box, domain, message in (
        (gradio_client.handle_file(broken), "", [], None, "", "broken.png: not a readable image"),
        (gradio_client.handle_file(large), "", [], None, "", "more than the 4 million"),
        (good, "radar", [], None, "", "no such adapter here; use one of"),
        (good, "no such/adapter/at all", [], None, "", "neither a folder nor"),
        (good, "", [[1, 2, 1]], [1, 2, 3, 4], "", "both given"),
        (good, "", [[1, 2]], None, "", "points are"),
        (good, "three-domains", [], None, "roads", "not in the pool"),
    ):
        with pytest.raises(gradio_client.exceptions.AppError, match=message):
            client.predict(image, adapter, points, box, domain, api_name="/segment")


def test_route(client, drawn):
    domains = {"speckle": "radar", "polyp": "polyp", "shadow": "shadow"}
    files = [gradio_client.handle_file(drawn(domain, 11)) for domain in domains]
    files.append(gradio_client.handle_file(drawn("camouflage", 5)))
    *found, unknown = client.predict(files, "", api_name="/route")
    assert unknown["domain"] == "base" and unknown["distance"] > unknown["threshold"]
    assert [one["domain"] for one in found] == list(domains.values())
    for one in found:
        assert sum(one["scores"].values()) == pytest.approx(1)
        assert 0 < one["distance"] <= one["threshold"] == unknown["threshold"]
        assert max(one["scores"], key=one["scores"].get) == one["domain"]


@pytest.mark.slow
def test_adapt(client, tmp_path):
    images, masks = [], []
    for number in range(4):
        for name, array, files in zip(
            ("", "_mask"), draw_sample("speckle", "val", number, size=(96, 96)), (images, masks)
        ):
            path = tmp_path / f"{number}{name}.png"
            Image.fromarray(array * 255 if name else array).save(path)
            files.append(gradio_client.handle_file(path))
    archive, about = client.predict(images, masks, "hq", 20, api_name="/adapt")
    assert about["state"] == "finished"
    assert about["test"]["none"]["adapted"]["iou"] > about["test"]["none"]["zero_shot"]["iou"] + 0.2
    assert "adapter/adapter_model.safetensors" in zipfile.ZipFile(archive).namelist()
    with pytest.raises(gradio_client.exceptions.AppError, match="choose one mask for each image"):
        client.predict(images, masks[:2], "hq", 20, api_name="/adapt")


def test_what_visitors_leave_is_removed(served, drawn, monkeypatch):
    passing = gradio_client.Client(served.url, verbose=False, analytics_enabled=False)
    image = gradio_client.handle_file(drawn("polyp", 3))
    passing.predict(image, "", [], None, "", api_name="/segment")
    holder = served.page.app.state_holder
    state = holder[passing.session_hash]
    ((block, session, expired),) = state.state_components
    assert not expired and session.files.is_dir()
    holder.delete_all_expired_state()
    folder = session.files
    assert folder.is_dir()
    lifetime, last = state._state_ttl[block._id]
    state._state_ttl[block._id] = lifetime, last - timedelta(seconds=lifetime + 1)
    holder.delete_all_expired_state()
    assert not folder.exists()
    state._state_ttl[block._id] = lifetime, last  # gradio looks for expired ones by itself, too
    passing.predict(image, "", [], None, "", api_name="/segment")  # begins anew
