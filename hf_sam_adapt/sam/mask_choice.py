"""Which mask SAM 2 and 3 return when they are asked for one.

In `eval()` their decoders put one of the masks of tokens 1 to 3 in the place of that of token 0 where the latter
changes much with its threshold ("dynamic multimask via stability"). Token 0 is the one that adapters train.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .families import find_mask_decoder
from .per_thread import PerThread


FLAG = "dynamic_multimask_via_stability"
SHARED = "_hf_sam_adapt_mask_choice"


class MaskChoice(PerThread):
    """Stands for the flag of a decoder that may choose another mask; false in threads that want that of token 0."""

    token_0 = False

    def __bool__(self) -> bool:
        return not self.token_0


def mask_choices(sam: nn.Module) -> list[MaskChoice]:
    """Of the mask decoders of a SAM that may return another mask than that of token 0; none of SAM and SAM-HQ."""
    choices = []
    for own in map(vars, _decoders(sam)):
        if own[FLAG] is True:
            # Two threads that come here at once get the same.
            own[FLAG] = own.setdefault(SHARED, MaskChoice())
        if isinstance(own[FLAG], MaskChoice):
            choices.append(own[FLAG])
    return choices


def _decoders(sam: nn.Module) -> list[nn.Module]:
    """transformers' mask decoder, inside what tuners wrap around it, and the copies of it that PEFT has made."""
    config = getattr(getattr(sam, "config", None), "mask_decoder_config", None)
    decoder = find_mask_decoder(sam) if hasattr(config, FLAG) else None
    return [] if decoder is None else [module for module in decoder.modules() if FLAG in vars(module)]


@contextmanager
def mask_of_token_0(sam: nn.Module) -> Iterator[None]:
    """Within, a SAM asked for one mask by this thread returns that of token 0, in `eval()` as in training."""
    choices = mask_choices(sam)
    before = [choice.token_0 for choice in choices]
    set_token_0(choices, [True] * len(choices))
    try:
        yield
    finally:
        set_token_0(choices, before)


def set_token_0(choices: list[MaskChoice], wanted: list[bool]) -> None:
    for choice, token_0 in zip(choices, wanted):
        choice.token_0 = token_0


def let_choose(sam: nn.Module) -> None:
    """Give a SAM's decoders the flag that they came with."""
    for own in map(vars, _decoders(sam)):
        if own.pop(SHARED, None) is not None and own[FLAG]:
            own[FLAG] = True


def stop_choosing(sam: Any) -> None:
    """Let a SAM return the mask of token 0 from now on, also after it is saved and loaded."""
    for decoder in _decoders(sam):
        if getattr(decoder, FLAG):
            setattr(decoder, FLAG, False)
            setattr(sam.config.mask_decoder_config, FLAG, False)
