"""The documentation site: it builds without a warning, has every page, and a browser shows it."""

import functools
import http.server
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

import hf_sam_adapt
from hf_sam_adapt.cli.commands import COMMANDS


ROOT = Path(__file__).parents[2]
CHROMIUM = "/usr/bin/chromium"
SCREENSHOTS = Path(os.environ.get("HF_SAM_ADAPT_SCREENSHOTS", f"{tempfile.gettempdir()}/hf_sam_adapt_screenshots"))


@pytest.fixture(scope="module")
def hooks():
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / ".ci/site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_new_page_is_in_the_navigation_once(hooks):
    places = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    made = ["commands.md", *(f"reference/{hooks.slug(title)}.md" for title in hooks.API)]
    every = [*places, "index.md", *made, "a_new_task.md"]
    found = [place for group in hooks.navigation(every) for places in group.values() for place in places]
    assert sorted(found) == sorted(every)
    tasks = next(group["How to"] for group in hooks.navigation(every) if "How to" in group)
    assert "a_new_task.md" in tasks and "training.md" in tasks
    readers = next(group["Guides"] for group in hooks.navigation(every) if "Guides" in group)
    assert readers == hooks.READERS


def test_what_the_package_exports_is_in_the_reference(hooks):
    shown = [name for names in hooks.API.values() for name in names]
    assert set(hf_sam_adapt.__all__) <= set(shown) and len(set(shown)) == len(shown)


def test_commands_are_shown_as_their_help_is(hooks):
    page = hooks.commands_page()
    assert re.findall(r"^## (\S+)$", page, re.MULTILINE) == list(COMMANDS)
    assert "--learning_rate FLOAT" in page and "everyday:" in page


@pytest.mark.parametrize(
    ("place", "link", "leads"),
    [
        ("training.md", "../benchmarks/RESULTS.md#x", "measurements.md#x"),
        ("index.md", "docs/training.md", "training.md"),
        ("index.md", "docs/quickstart.png", "quickstart.png"),
        ("cards/moda.md", "../benchmarks/RESULTS.md", "../measurements.md"),
        ("training.md", "doctor.md", "doctor.md"),
        ("prompts.md", "../benchmarks/mixed_prompts.py", "https://example.org/blob/main/benchmarks/mixed_prompts.py"),
        ("training.md", "#presets", "#presets"),
        ("training.md", "https://a.b/c.md", "https://a.b/c.md"),
    ],
)
def test_links_of_the_repository_lead_to_pages_of_the_site(hooks, place, link, leads):
    from types import SimpleNamespace

    page = SimpleNamespace(file=SimpleNamespace(src_uri=place))
    config = SimpleNamespace(extra={"social": [{"link": "https://example.org"}]})
    text = hooks.on_page_markdown(f"see [this]({link}), not `[that]({link})`", page, config, None)
    assert text == f"see [this]({leads}), not `[that]({link})`"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Folder of the site, built as `make docs` builds it."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


def test_make_docs_ends_at_a_warning():
    """`--quiet` would hide warnings from `--strict`."""
    (command,) = re.findall(r"^\t.*mkdocs build(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert command.split() == ["--strict"]


@pytest.mark.slow
@pytest.mark.xdist_group("site")
def test_the_site_has_every_page_and_finds_words(site):
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    for path in (ROOT / "docs").glob("*.md"):
        assert f"{path.stem}/index.html" in pages
    assert {
        "commands/index.html",
        "reference/methods/index.html",
        "cards/moda/index.html",
        "measurements/index.html",
    } < {*pages}
    index = (site / "search/search_index.json").read_text()
    for word in ("doctor", "max_grad_norm", "straight_through", "SamAdaptPredictor"):
        assert word in index
    reference = (site / "reference/methods/index.html").read_text()
    assert "convolution experts between A and B" in reference and "balance_loss_coef" in reference
    assert all((site / name).is_file() for name in ("quickstart.png", "demo.png"))


@pytest.mark.slow
@pytest.mark.xdist_group("site")
@pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"no {CHROMIUM}: apt-get install chromium")
def test_a_browser_shows_the_site_without_another_server(site):
    sync_api = pytest.importorskip("playwright.sync_api")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    elsewhere, errors = [], []
    SCREENSHOTS.mkdir(exist_ok=True)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.on("request", lambda request: elsewhere.append(request.url) if address not in request.url else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        for place in ("", "fifty_images/", "reference/methods/", "commands/"):
            page.goto(f"{address}/{place}")
            assert page.locator("h1").first.inner_text()
            broken = (
                "[...document.images].filter(image => image.complete && !image.naturalWidth).map(image => image.src)"
            )
            assert page.evaluate(broken) == []
            page.screenshot(path=SCREENSHOTS / f"site_{place.strip('/').replace('/', '_') or 'index'}.png")
        page.goto(address)
        page.locator("[data-md-component=search-query]").first.fill("early_stopping")
        page.wait_for_selector(".md-search-result__item", timeout=30_000)
        page.screenshot(path=SCREENSHOTS / "site_search.png")
        browser.close()
    server.shutdown()
    assert [url for url in elsewhere if not url.startswith("data:")] == []
    assert errors == []
