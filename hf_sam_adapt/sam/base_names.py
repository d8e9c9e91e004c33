"""The name of the embedded base model: `tiny` in every file, its folder wherever a library looks for a model."""

from pathlib import Path


TINY = "tiny"


def tiny_folder() -> Path:
    """The model folder shipped in the package: fp16 safetensors, configs and the model's card."""
    return Path(__file__).parent / "tiny_sam"


def located(name: str | None) -> str | None:
    """A base model's name as PEFT and transformers can load it without the network: for `tiny` its folder."""
    return str(tiny_folder()) if name == TINY else name


def stored(name: str | None) -> str | None:
    """The inverse of `located`, for files that other machines read."""
    return TINY if name == str(tiny_folder()) else name
