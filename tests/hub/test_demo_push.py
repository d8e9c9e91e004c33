"""Pushing from the demo's page: with the visitor's token, which is forgotten, and never with the machine's."""

from types import SimpleNamespace

import pytest
from sams import perturb

from hf_sam_adapt.demo.session import Session
from hf_sam_adapt.inference.loading import build_model, load_base, save_adapter


gr = pytest.importorskip("gradio")


@pytest.fixture
def tab(tmp_path):
    """The tab, and a visitor whose training has finished."""
    from hf_sam_adapt.demo.adapt_tab import AdaptTab

    with gr.Blocks(analytics_enabled=False), gr.Tab("Adapt") as around:
        app = SimpleNamespace(args=None, max_pixels=10**6, warm=lambda: None)
        built = AdaptTab(app, gr.State(), gr.Dropdown(), around)
    base, processor = load_base("tiny")
    save_adapter(perturb(build_model("conv_lora", {"decoder": "frozen"}, base)), tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter/README.md").write_text("---\nlibrary_name: hf-sam-adapt\n---\n")
    session = Session()
    session.job = SimpleNamespace(adapter=tmp_path / "adapter", progress=lambda: SimpleNamespace(state="finished"))
    return built, session


def test_push_with_the_token_that_was_typed(tab, connected, monkeypatch, capsys):
    built, session = tab
    monkeypatch.delenv("HF_TOKEN")
    update = built.publish(session, " me/five-images ", connected.token)
    assert "Pushed" in update[built.message]
    assert update[built.token] == ""
    assert "adapter_model.safetensors" in connected.files("me/five-images")
    assert connected.repositories["model", "me/five-images"].private
    shown = capsys.readouterr()
    assert connected.token not in shown.out + shown.err + str(update) + str(vars(session))


def test_pushes_that_are_refused(tab, connected, monkeypatch):
    built, session = tab
    monkeypatch.setattr(gr, "Warning", lambda *args, **kwargs: None)
    for token, repo, message in (
        ("", "me/x", "type a token"),  # that of the machine, which is set here, is not used
        ("hf_wrong", "me/x", "does not accept the token"),
        (connected.read_token, "me/x", "may not write"),
        (connected.token, "no name at/all", "not a repository name"),
    ):
        update = built.publish(session, repo, token)
        assert message in update[built.message]
        assert update[built.token] == ""
        assert token == "" or token not in update[built.message]
    assert not connected.repositories
    session.job = None
    assert "no adapter yet" in built.publish(session, "me/x", connected.token)[built.message]
