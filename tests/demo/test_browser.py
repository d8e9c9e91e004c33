"""The page in a headless Chromium: what a visitor does, and what they see of it."""

import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_sam_adapt.demo.catalog import PLAIN
from hf_sam_adapt.demo.examples import EXAMPLES
from hf_sam_adapt.inference.forward import sam_of
from hf_sam_adapt.sam.families import find_vision_encoder


sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
SCREENSHOTS = Path(os.environ.get("HF_SAM_ADAPT_SCREENSHOTS", f"{tempfile.gettempdir()}/hf_sam_adapt_screenshots"))
pytestmark = [
    pytest.mark.xdist_group("demo"),
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"no {CHROMIUM}: apt-get install chromium"),
]
POLYP = next(number for number, example in enumerate(EXAMPLES) if example.domain == "polyp")
LAND = next(number for number, example in enumerate(EXAMPLES) if example.domain == "landcover")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A new, empty profile; requests to other machines are noted and end there."""
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=CHROMIUM,
            args=FLAGS,
            viewport={"width": 1400, "height": 1000},
            accept_downloads=True,
        )
        context.set_default_timeout(60_000)
        context.elsewhere = []

        def local_only(route):
            if re.match(r"(https?://(127\.0\.0\.1|localhost)[:/]|data:|blob:)", route.request.url):
                return route.continue_()
            context.elsewhere.append(route.request.url)
            return route.abort()

        context.route("**/*", local_only)
        yield context
        context.close()


@pytest.fixture
def open_page(browser, served):
    """Returns `open_page()`: a page that shows its first example."""
    pages = []

    def opened():
        page = browser.new_page()
        pages.append(page)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(served.url)
        page.wait_for_selector("#facts .facts")
        page.wait_for_selector("#mask_file:not([disabled])")  # the last thing that the first example does
        loaded(page)
        return page

    yield opened
    for page in pages:
        assert page.errors == []
        assert "Traceback" not in page.content()
        page.close()


def facts(page):
    """Name -> value of the cards under the picture, without the time."""
    cards = page.locator("#facts .facts > div").all_inner_texts()
    return {name: value for name, value in (card.split("\n") for card in cards) if name not in ("Time", "Embedding")}


def after(page, action, look):
    """What `look(page)` gives once `action()` has changed it."""
    before = look(page)
    action()
    for _ in range(300):
        page.wait_for_timeout(100)
        try:
            if (now := look(page)) != before:
                return now
        except (sync_api.Error, ValueError):  # the page is just being changed
            continue
    raise AssertionError(f"nothing changed: {before}; the page says: {page.inner_text('#message')}")


def shown(page, where="#slider"):
    """The pictures of a slider, by their addresses, which their content decides."""
    return [image.get_attribute("src") for image in page.locator(f"{where} img").all()]


def loaded(page):
    """Wait until the image is there; before that it does not know where it is clicked on."""
    page.wait_for_function("document.querySelector('#image img').complete")


def click_at(page, x, y):
    """Click on the image at shares of its width and height."""
    loaded(page)
    image = page.locator("#image img")
    box = image.bounding_box()
    image.click(position={"x": x * box["width"], "y": y * box["height"]})


def choose_example(page, number):
    page.locator("#examples button img").nth(number).click()


def encoder_calls(app):
    """A list that grows with each run of an encoder; every adapter's is watched."""
    calls = []
    for name in (PLAIN, *(choice.value for choice in app.choices)):
        encoder = find_vision_encoder(sam_of(app.entry(name).model))
        encoder.patch_embed.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_points_change_the_mask_and_reuse_the_embedding(open_page, served, tmp_path):
    page = open_page()
    after(page, lambda: choose_example(page, POLYP), shown)
    assert "domain of this image is polyp" in page.inner_text("#message")
    page.wait_for_timeout(500)
    calls = encoder_calls(served.app)
    none = facts(page)
    one = after(page, lambda: click_at(page, 0.25, 0.6), facts)
    pictures = shown(page)
    two = after(page, lambda: click_at(page, 0.8, 0.3), facts)
    assert none != one != two
    assert shown(page) != pictures
    page.get_by_label("Not the object").check()
    after(page, lambda: click_at(page, 0.5, 0.5), shown)
    assert calls == []
    assert page.locator("#facts").inner_text().count("reused") == 1
    assert after(page, lambda: page.click("#undo"), facts) == two
    assert after(page, lambda: page.click("#undo"), facts) == one
    assert after(page, lambda: page.click("#clear"), facts) == none
    page.wait_for_timeout(1000)
    with page.expect_download() as download:
        page.click("#mask_file")
    download.value.save_as(tmp_path / "mask.png")
    mask = np.asarray(Image.open(tmp_path / "mask.png"))
    assert mask.shape[::-1] == Image.open(served.app.examples[POLYP]).size
    share = next(value for name, value in none.items() if name == "Adapted mask")
    assert f"{100 * (mask > 0).mean():.1f} %" == share


def test_box(open_page):
    page = open_page()
    page.get_by_label("Box: two corners").check()
    after(page, lambda: click_at(page, 0.1, 0.05), lambda page: shown(page, "#image"))
    page.wait_for_selector("#message:has-text('opposite corner')")
    page.wait_for_timeout(1000)  # a person's pace: Gradio is still closing the stream of the first click
    before = facts(page)
    assert after(page, lambda: click_at(page, 0.9, 0.45), facts) != before


def test_switch_adapter_and_legend(open_page):
    page = open_page()
    captions = page.inner_text("#caption")
    assert "zero-shot SAM" in captions and "adapted" in captions

    def choose(text):
        page.locator("#adapter input").click()
        page.get_by_role("option", name=re.compile(text)).click()

    after(page, lambda: choose("Plain SAM"), shown)
    assert "adapted" not in page.inner_text("#caption")
    assert re.search(r"IoU estimate\n0\.\d\d", page.inner_text("#facts"))
    after(page, lambda: choose("Radar, polyps"), shown)
    assert page.locator("#domain input").is_visible()
    after(page, lambda: choose_example(page, LAND), shown)
    assert not page.locator("#domain input").is_visible()
    legend = page.locator("#caption").inner_text()
    assert len(re.findall(r"(background|water|field|forest|town) [\d.]+ %", legend)) >= 3
    colours = page.locator("#caption i:not(.none)").evaluate_all("all => all.map(one => one.style.background)")
    assert len(set(colours)) == len(colours) >= 3


def test_typed_adapter_that_is_none(open_page):
    page = open_page()
    page.locator("#adapter input").fill("no such adapter/at all")
    page.locator("#adapter input").press("Enter")
    page.wait_for_selector("#message .bad")
    assert "neither a folder nor" in page.inner_text("#message")


def test_slider_moves(open_page):
    page = open_page()
    page.wait_for_timeout(1000)
    slider = page.locator("#slider")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    before = slider.screenshot()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.62 * box["width"], box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    page.wait_for_timeout(500)
    assert slider.screenshot() != before


def test_broken_and_large_files_leave_a_message(open_page, tmp_path):
    page = open_page()
    (tmp_path / "broken.png").write_bytes(b"this is no image")
    Image.new("RGB", (2500, 2000)).save(tmp_path / "large.png")
    for name, message in (("broken.png", "not a readable image"), ("large.png", "more than the 4 million")):
        if name == "broken.png":
            page.get_by_label("Remove Image").click()
        page.locator("#image input[type=file]").set_input_files(tmp_path / name)
        page.wait_for_selector(f"#message .bad:has-text('{name}')")
        assert message in page.inner_text("#message")
    Image.new("RGB", (64, 48), "white").save(tmp_path / "fine.png")
    page.locator("#image input[type=file]").set_input_files(tmp_path / "fine.png")
    page.wait_for_selector("#message .bad", state="detached")
    assert page.locator("#slider img").count() == 2


@pytest.mark.slow
def test_two_visitors_stay_apart(open_page):
    mine, other = open_page(), open_page()
    after(mine, lambda: choose_example(mine, POLYP), shown)
    one = after(mine, lambda: click_at(mine, 0.3, 0.6), facts)
    after(other, lambda: choose_example(other, LAND), shown)
    other.wait_for_timeout(500)
    assert facts(mine) == one
    after(mine, lambda: mine.click("#clear"), facts)  # had the other's image come in here, it would be segmented now
    assert after(mine, lambda: mine.click("#undo"), facts) == one


def test_route_a_mixed_set(open_page):
    page = open_page()
    page.get_by_role("tab", name="Route").click()
    page.click("#mixed")
    page.wait_for_selector("#override input")
    page.wait_for_selector("#routed img")
    captions = [text.split()[0] for text in page.locator("#routed .caption-label").all_inner_texts()]
    assert captions == ["radar", "polyp", "shadow", "radar", "polyp", "unknown"]
    assert page.get_by_label("radar", exact=True).is_checked()
    probabilities = re.findall(r"(\w+)\n([\d.]+)", page.inner_text("#scores"))
    assert [name for name, _ in probabilities] == ["distance", "radar", "polyp", "shadow"]

    before = shown(page, "#route_slider")
    page.get_by_label("shadow", exact=True).check()
    page.wait_for_selector("#route_message:has-text('the router says radar; you chose shadow')")
    after_ = shown(page, "#route_slider")
    assert before[0] == after_[0] and before[1] != after_[1]
    page.locator("#routed img").last.click()
    page.wait_for_selector("#route_message:has-text('unknown → plain SAM')")
    assert page.get_by_label("plain SAM", exact=True).is_checked()
    text = page.inner_text("#scores")
    distance, threshold = (float(re.search(rf"{name}\s+([\d.]+)", text)[1]) for name in ("distance", "threshold"))
    assert distance > threshold and "were it one of them" in text
    assert page.locator("#scores .faint .bars").count() == 1


def test_paint_a_mask(open_page, served):
    page = open_page()
    page.get_by_role("tab", name="Adapt").click()
    page.get_by_text("No masks? Paint one").click()
    page.click("#add_painted")
    page.wait_for_selector("#gathered .bad:has-text('open one first')")
    page.locator("#editor input[type=file]").first.set_input_files(served.app.taught[0][0])
    page.wait_for_timeout(2500)
    page.click("#add_painted")
    page.wait_for_selector("#gathered .bad:has-text('paint over the object first')")
    box = page.locator("#editor canvas").last.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 20, y)
    page.mouse.down()
    page.mouse.move(x + 25, y + 10, steps=8)
    page.mouse.up()
    page.wait_for_timeout(1000)
    page.click("#add_painted")
    page.wait_for_selector("#pairs img")
    assert "1 image with its mask" in page.inner_text("#gathered")
    page.click("#start")
    page.wait_for_selector("#adapt_message .bad:has-text('give 2 to 12')")


def test_files_are_taken_without_a_button_and_adapt_can_be_pressed_too_early(open_page, served):
    page = open_page()
    page.get_by_role("tab", name="Adapt").click()
    for _ in range(2):  # the first refusal used to keep the session's lock
        page.click("#start")
        page.wait_for_selector("#adapt_message .bad:has-text('0 images with masks: give 2 to 12')")
    images, masks = ([str(path) for path in paths] for paths in zip(*served.app.taught[:3]))
    page.locator("#adapt_images input[type=file]").set_input_files(images)
    page.wait_for_selector("#gathered:has-text('3 images and 0 masks: choose the masks too')")
    page.locator("#adapt_masks input[type=file]").set_input_files(masks[1:])
    page.wait_for_selector("#gathered:has-text('3 images and 2 masks')")
    page.locator("#adapt_masks input[type=file]").first.set_input_files(masks[:1])
    page.wait_for_selector("#gathered:has-text('3 images with masks')")
    page.wait_for_selector("#pairs img >> nth=2")
    assert page.locator("#pairs img").count() == 3
    page.locator("#adapt_images input[type=file]").set_input_files(images[0])
    page.wait_for_selector("#gathered:has-text('1 images and 0 masks')")  # the first three are not taken again


@pytest.mark.slow
def test_adapt_on_five_drawn_images(open_page):
    page = open_page()
    page.get_by_role("tab", name="Adapt").click()
    page.click("#take_drawn")
    page.wait_for_selector("#pairs img")
    assert page.locator("#pairs img").count() == 5
    page.click("#start")
    page.wait_for_selector("#adapt_facts .facts", timeout=120_000)
    assert page.locator("#cancel").is_enabled()
    page.wait_for_selector("#adapt_message:has-text('Done in')", timeout=500_000)
    before, after_ = map(float, re.search(r"([\d.]+) → ([\d.]+)", page.inner_text("#adapt_message")).groups())
    assert after_ > before + 0.3
    assert page.locator("#curve circle").count() == 11  # of zero-shot SAM and ten looks: the last one is there
    assert float(page.locator("#adapt_facts b").nth(1).inner_text()) > before + 0.3
    page.screenshot(path=SCREENSHOTS / "adapt_1400.png", full_page=True)
    page.wait_for_selector("#download:not([disabled])")
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename.endswith(".zip")
    page.get_by_role("tab", name="Segment").click()
    page.locator("#adapter input").click()
    page.get_by_role("option", name=re.compile("Yours")).click()
    page.wait_for_timeout(1000)
    assert page.locator("#message .bad").count() == 0

    page.get_by_role("tab", name="Adapt").click()
    page.click("#start")
    page.wait_for_selector("#adapt_message:has-text('Training, step')", timeout=120_000)
    page.click("#cancel")
    page.wait_for_selector("#adapt_message:has-text('Cancelled')")
    page.wait_for_selector("#start:not([disabled])")


SHOWN = {
    "segment": ["image", "slider", "caption", "message", "facts", "adapter", "domain"],
    "route": ["route_message", "scores", "override", "route_slider", "route_caption"],
    "adapt": ["pairs", "gathered"],
}
LOOK = """name => {
    const part = document.getElementById(name);
    if (!part || !part.offsetParent) return "hidden";
    const inputs = [...part.querySelectorAll("input")].map(one => `${one.value} ${one.checked}`);
    const pictures = [...part.querySelectorAll("img")].map(one => `${one.currentSrc} ${one.complete}`);
    const bars = [...part.querySelectorAll(".chart i")].map(one => one.getBoundingClientRect().width);
    const text = part.innerText.replace(/(Time|Embedding)\\n[^\\n]*/g, "");
    return JSON.stringify([text, inputs, pictures, bars]);
}"""


@pytest.fixture(scope="module")
def alternating(browser, served):
    """Component -> what it shows after each of the clicks A, B, A, B in its tab."""
    page = browser.new_page()
    page.goto(served.url)
    page.wait_for_selector("#mask_file:not([disabled])")
    seen = {}

    def look(tab):
        page.mouse.move(2, 2)
        page.wait_for_timeout(1500)
        for name in SHOWN[tab]:
            seen.setdefault(name, []).append(page.evaluate(LOOK, name))

    for number, text in ((POLYP, "is polyp"), (LAND, "class of every pixel")) * 2:
        choose_example(page, number)
        page.wait_for_selector(f"#message:has-text('{text}')")
        look("segment")
    page.get_by_role("tab", name="Route").click()
    page.click("#mixed")
    page.wait_for_selector("#override input")
    for number, text in ((4, "polyp_8.png"), (5, "camouflage_5.png")) * 2:
        page.locator("#routed img").nth(number).click()
        page.wait_for_selector(f"#route_message:has-text('{text}')")
        look("route")
    page.get_by_role("tab", name="Adapt").click()
    for button, text in (("#take_drawn", "5 images"), ("#clear_pairs", "Upload 2 to 12")) * 2:
        page.click(button)
        page.wait_for_selector(f"#gathered:has-text('{text}')")
        look("adapt")
    page.close()
    return seen


@pytest.mark.parametrize("component", [name for names in SHOWN.values() for name in names])
def test_no_component_shows_the_click_before(alternating, component):
    first, second, third, fourth = alternating[component]
    assert first == third and second == fourth
    assert first != second


@pytest.mark.parametrize("width", [390, *(pytest.param(width, marks=pytest.mark.slow) for width in (800, 1400))])
def test_nothing_jumps_at_the_first_click(open_page, width):
    page = open_page()
    page.set_viewport_size({"width": width, "height": 844})
    page.wait_for_timeout(1000)
    places = """() => [...document.querySelectorAll("[id]")].filter(one => one.offsetParent).map(
        one => [one.id, one.getBoundingClientRect().left + scrollX, one.getBoundingClientRect().top + scrollY])"""
    before = page.evaluate(places)
    after(page, lambda: click_at(page, 0.3, 0.3), lambda page: page.inner_text("#message"))
    page.wait_for_timeout(1500)
    assert page.evaluate(places) == before


def test_on_a_phone_the_result_is_where_it_was_tapped(open_page):
    page = open_page()
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(1000)
    picture = page.locator("#image img").get_attribute("src")
    assert after(page, lambda: click_at(page, 0.4, 0.4), lambda page: page.locator("#image img").get_attribute("src"))
    assert page.locator("#image img").get_attribute("src") != picture  # with the outline
    top = {name: page.locator(f"#{name}").bounding_box() for name in ("image", "message", "slider", "examples")}
    assert 0 <= top["message"]["y"] - top["image"]["y"] < 350
    assert 0 <= top["slider"]["y"] - top["image"]["y"] < 450
    assert 0 <= top["image"]["y"] - top["examples"]["y"] < 200
    page.get_by_role("tab", name="Route").click()
    page.click("#mixed")
    page.wait_for_selector("#override input")
    page.wait_for_timeout(1500)
    top = {name: page.locator(f"#{name}").bounding_box()["y"] for name in ("routed", "route_message", "route_slider")}
    assert 0 <= top["route_message"] - top["routed"] < 300
    assert 0 <= top["route_slider"] - top["routed"] < 550


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 1200, 390])  # the Segment tab at 1200 is docs/demo.png
def test_screenshots(open_page, width):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page = open_page()
    page.set_viewport_size({"width": width, "height": 1000})
    page.wait_for_timeout(500)
    after(page, lambda: click_at(page, 0.45, 0.4), facts)
    for tab, fill, full in (
        ("Segment", None, None),
        ("Route", "#mixed", "#routed"),
        ("Adapt", "#take_drawn", "#pairs"),
    ):
        page.get_by_role("tab", name=tab).click()
        if fill:
            page.click(fill)
            page.wait_for_selector(f"{full} img")
        page.wait_for_timeout(1000)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=SCREENSHOTS / f"{tab.lower()}_{width}.png", full_page=True)


def test_nothing_is_asked_of_other_machines(browser, open_page):
    page = open_page()
    page.get_by_role("tab", name="Adapt").click()
    page.get_by_text("No masks? Paint one").click()
    page.wait_for_timeout(1000)
    assert browser.elsewhere == []
