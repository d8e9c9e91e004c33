"""The page as a whole, and how it is served."""

from __future__ import annotations

import os


# Read by Gradio when it is imported: nothing is reported to anyone, and no version is looked up.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

from ..errors import UserError, require_extra
from .adapt_tab import AdaptTab
from .api import Api
from .app import DemoApp
from .route_tab import RouteTab
from .segment_tab import SegmentTab
from .session import Session
from .settings import DemoArguments, on_a_space
from .theme import CSS, theme


TITLE = "Adapt Segment Anything"
_KEPT = 3600  # seconds that a visitor's state and files stay after they were last used
_QUEUE = 32  # visitors who may wait


def build_page(app: DemoApp) -> gr.Blocks:
    """The page of a demo, ready for `launch`."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(_KEPT, 2 * _KEPT)) as page:
        session = gr.State(Session(), time_to_live=_KEPT, delete_callback=app.leave)
        Api(app, session)  # first, so that its names are not taken by functions of the tabs
        gr.HTML(
            f"<h1>{TITLE}</h1><p>Small adapters teach SAM the domains where it fails: compare, route, or train one "
            "on five images of yours.</p>",
            elem_id="title",
        )
        with gr.Tabs():
            with gr.Tab("Segment", id="segment"):
                segment = SegmentTab(app, page, session)
            with gr.Tab("Route", id="route"):
                RouteTab(app, session)
            with gr.Tab("Adapt", id="adapt") as tab:
                AdaptTab(app, session, segment.adapter, tab)
    page.queue(max_size=_QUEUE)
    return page


def serve(args: DemoArguments) -> None:
    """Run the demo until it is stopped.

    Raises:
        UserError: a model or adapter that cannot be loaded, or a port that is taken.
    """
    if args.mcp:
        require_extra("mcp", "demo --mcp")
    page = open_page(DemoApp(args))
    print(f"The demo answers on {page.local_url} (Ctrl-C ends it)", flush=True)
    if args.mcp:
        print(f"Its MCP server is {page.local_url}gradio_api/mcp/", flush=True)
    page.block_thread()


def open_page(app: DemoApp) -> gr.Blocks:
    """Start the demo's server in the background; the page's `local_url` says where, its `close()` ends it.

    Raises:
        UserError: the port is taken.
    """
    page, args = build_page(app), app.args
    try:
        page.launch(
            server_name="0.0.0.0" if on_a_space() else args.server_name,
            server_port=args.server_port,
            max_file_size=args.max_megabytes * 1_000_000,
            theme=theme(),
            css=CSS,
            show_error=True,
            quiet=True,
            ssr_mode=False,
            share=False,
            inbrowser=False,
            footer_links=["api"],
            mcp_server=args.mcp,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise UserError(f"{args.server_port} is taken ({error})", key="server_port", fix="name another") from error
    return page
