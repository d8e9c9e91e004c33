"""Which mask SAM 2 and 3 return when they are asked for one.

In `eval()` their decoders put one of the masks of tokens 1 to 3 in the place of that of token 0 where the latter
changes much with its threshold ("dynamic multimask via stability"). Token 0 is the one that adapters train.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .families import find_mask_decoder


FLAG = "dynamic_multimask_via_stability"


def choosing_decoders(sam: nn.Module) -> list[nn.Module]:
    """The mask decoders in a SAM that may return another mask than that of token 0; none in SAM and SAM-HQ."""
    decoder = find_mask_decoder(sam)
    return [] if decoder is None else [module for module in decoder.modules() if vars(module).get(FLAG, False)]


@contextmanager
def mask_of_token_0(sam: nn.Module) -> Iterator[None]:
    """Within, a SAM asked for one mask returns that of token 0, in `eval()` as in training."""
    decoders = choosing_decoders(sam)
    set_choice(decoders, False)
    try:
        yield
    finally:
        set_choice(decoders, True)


def set_choice(decoders: list[nn.Module], choosing: bool) -> None:
    for decoder in decoders:
        setattr(decoder, FLAG, choosing)


def stop_choosing(sam: Any) -> None:
    """Let a SAM return the mask of token 0 from now on, also after it is saved and loaded."""
    decoders = choosing_decoders(sam)
    set_choice(decoders, False)
    if decoders:
        setattr(sam.config.mask_decoder_config, FLAG, False)
