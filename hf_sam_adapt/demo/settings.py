"""What a demo is started with: flags of `hf-sam-adapt demo`, or environment variables on a Space."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..config.arguments import option
from ..config.paths import MODEL
from ..errors import UserError


MODEL_VARIABLE = "HF_SAM_ADAPT_DEMO_MODEL"
ADAPTERS_VARIABLE = "HF_SAM_ADAPT_DEMO_ADAPTERS"
CANCELLED = "cancelled"  # a file in the folder of a training that shall end


@dataclass
class DemoArguments:
    """Arguments of `demo`.

    Raises:
        UserError: a limit below 1.
    """

    adapters: list[str] = option(
        [],
        f"Adapters to offer, run folders, folders of runs, or Hub ids; unset = those in ${ADAPTERS_VARIABLE}.",
        path=MODEL,
    )
    model: str | None = option(
        None, f"Plain SAM to start from, tiny, a folder, or a Hub id; unset = ${MODEL_VARIABLE}, or tiny.", path=MODEL
    )
    server_name: str = option("127.0.0.1", "Address to listen on; 0.0.0.0 = every one of this machine.")
    server_port: int | None = option(None, "Port to listen on; unset = the first free one from 7860.")
    mcp: bool = option(False, "Also serve segment, route and adapt as tools of an MCP server.")
    max_megapixels: int = option(50, "Largest image, in millions of pixels.")
    max_megabytes: int = option(30, "Largest file that can be uploaded, in MB.")
    max_seconds: int = option(600, "Longest training in the page, in seconds.")

    def __post_init__(self) -> None:
        for name in ("max_megapixels", "max_megabytes", "max_seconds"):
            if getattr(self, name) < 1:
                raise UserError(f"{getattr(self, name)} is below 1", key=name)
        self.adapters = self.adapters or _named(os.environ.get(ADAPTERS_VARIABLE, ""))
        self.model = self.model or os.environ.get(MODEL_VARIABLE) or "tiny"


def _named(text: str) -> list[str]:
    """The names between commas, or between spaces where these are not in the name of a folder."""
    parts = [part.strip() for part in text.split(",")]
    return [name for part in parts for name in ([part] if Path(part).expanduser().is_dir() else part.split()) if name]


def on_a_space() -> bool:
    """Whether this runs as a Space, where whoever uses the page is not the one who owns the machine."""
    return "SPACE_ID" in os.environ
