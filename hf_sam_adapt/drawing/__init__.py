"""Drawn pictures with exact masks: what `tiny` is pre-trained on, and parts of the `synthetic:` domains."""

from .scenes import Scene, draw_scene


__all__ = ["Scene", "draw_scene"]
