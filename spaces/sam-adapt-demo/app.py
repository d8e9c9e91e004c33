"""The Space: `hf-sam-adapt demo` with the settings of its variables."""

import os


# Visitors type names of adapters: what a token of the Space's owner could read is not theirs to load.
os.environ.setdefault("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")

from hf_sam_adapt.demo.gpu import on_zero_gpu  # before torch is imported
from hf_sam_adapt.demo.page import serve
from hf_sam_adapt.demo.settings import DemoArguments


MOST_BORROWED = 120  # seconds of a training with a GPU that others wait for

if __name__ == "__main__":
    limits = {"max_seconds": MOST_BORROWED} if on_zero_gpu() else {}
    serve(DemoArguments(server_port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")), **limits))
