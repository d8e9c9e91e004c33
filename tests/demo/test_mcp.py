"""The demo's MCP server: its tools, and a call of one."""

import asyncio
import base64
import re

import pytest
from PIL import Image

from hf_sam_adapt import errors
from hf_sam_adapt.cli import main
from hf_sam_adapt.data.synthetic import draw_sample


pytest.importorskip("gradio")
pytest.importorskip("mcp")


@pytest.fixture(scope="module")
def address():
    from hf_sam_adapt.demo.app import DemoApp
    from hf_sam_adapt.demo.page import open_page
    from hf_sam_adapt.demo.settings import DemoArguments

    page = open_page(DemoApp(DemoArguments(mcp=True)))
    yield f"{page.local_url}gradio_api/mcp/"
    page.close()


def asked(address, question):
    """What `question(session)` returns of a client's session."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def run():
        async with streamable_http_client(address) as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            return await question(session)

    return asyncio.run(run())


def test_tools_are_the_endpoints_with_their_arguments(address):
    tools = {tool.name: tool for tool in asked(address, lambda session: session.list_tools()).tools}
    assert tools.keys() == {"segment", "route", "adapt"}
    segment = tools["segment"]
    assert segment.description.startswith("Segment an image, as `hf-sam-adapt predict` does.")
    assert list(segment.inputSchema["properties"]) == ["image", "adapter", "points", "box", "domain"]


def test_a_tool_segments_an_image(address, tmp_path):
    Image.fromarray(draw_sample("polyp", "test", 0)[0]).save(tmp_path / "image.png")
    image = f"data:image/png;base64,{base64.b64encode((tmp_path / 'image.png').read_bytes()).decode()}"
    arguments = {"image": image, "adapter": "", "points": [[60, 60, 1]], "box": [], "domain": ""}
    answer = asked(address, lambda session: session.call_tool("segment", arguments))
    assert not answer.isError
    said = " ".join(part.text for part in answer.content if part.type == "text")
    assert 0 < float(re.search(r"'foreground': ([\d.e-]+)", said)[1]) < 1


def test_a_tool_says_what_is_wrong(address, tmp_path):
    arguments = {"image": "data:image/png;base64,AAAA", "adapter": "nonsense", "points": [], "box": [], "domain": ""}
    answer = asked(address, lambda session: session.call_tool("segment", arguments))
    assert answer.isError


def test_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == "mcp" else object())
    assert main(["demo", "--mcp"]) == 2
    said = "error: demo --mcp needs mcp, which is not installed; run pip install 'hf-sam-adapt[mcp]'\n"
    assert capsys.readouterr().err == said
