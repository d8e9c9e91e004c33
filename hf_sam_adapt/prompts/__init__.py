"""Prompts: what they are, how they are derived from a true mask, and how a user's corrections are simulated."""

from ..names import PROMPT_KINDS
from .centres import at_centres, centres
from .corrections import corrected
from .derive import MAX_OBJECTS, MIN_AREA, components, degrade, derive_prompts, inner_point, tight_box
from .prompt import Prompt, boolean_masks
from .training import instance_masks, training_prompt


__all__ = [
    "MAX_OBJECTS",
    "MIN_AREA",
    "PROMPT_KINDS",
    "Prompt",
    "at_centres",
    "boolean_masks",
    "centres",
    "components",
    "corrected",
    "degrade",
    "derive_prompts",
    "inner_point",
    "instance_masks",
    "tight_box",
    "training_prompt",
]
