"""Commands print what they have to say, and nothing of the libraries below them."""

from __future__ import annotations

import warnings


def quiet_libraries() -> None:
    """Turn off transformers' bars of loading weights and the libraries' notes to developers, for this process.

    Bars of downloads stay.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    shows_downloads = not are_progress_bars_disabled()
    logging.disable_progress_bar()
    if shows_downloads:
        enable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
