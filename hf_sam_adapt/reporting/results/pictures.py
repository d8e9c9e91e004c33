"""Masks, overlays and probabilities as PNG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from ...files import whole_file
from ..class_maps import class_colours, class_legend, class_overlay, with_legend
from ..prompts import draw_instances
from ..report import MASK_COLOURS, overlay
from .result import ImageResult, Writer


class PngWriter(Writer):
    """`<name>_mask.png` of 0 and 255 (of classes a palette PNG whose values are the classes), `<name>_overlay.png`,
    and `<name>_probability.png` of 16 bits, 65535 = 1 (of classes one each, `<name>_probability_<label>.png`)."""

    key = "png"

    def files(self, name: str) -> list[str]:
        files = [f"{name}_mask.png", f"{name}_overlay.png"]
        if self.options.probability:
            count = None if self.options.classes is None else len(self.options.classes)
            labels = [""] if count is None else [f"_{label}" for label in range(count)]
            files += [f"{name}_probability{label}.png" for label in labels]
        return files

    def write(self, result: ImageResult) -> dict[str, Any]:
        mask_file, overlay_file, *probability_files = self.files(result.name)
        mask, classes = result.prediction.mask, self.options.classes
        if classes is None:
            picture = Image.fromarray(mask.astype(np.uint8) * 255)
            tinted = overlay(result.image, mask, MASK_COLOURS["adapted"])
        else:
            picture = Image.fromarray(mask)
            picture.putpalette(class_colours(len(classes)).tobytes())
            tinted = class_overlay(result.image, mask, len(classes))
            tinted = with_legend(tinted, class_legend(mask, classes))
        self._save(picture, mask_file)
        self._save(Image.fromarray(tinted), overlay_file)
        about: dict[str, Any] = {"mask": mask_file, "overlay": overlay_file}
        if probability_files:
            maps = result.probabilities.reshape(-1, *mask.shape)  # (1 or K, H, W)
            for file, values in zip(probability_files, maps, strict=True):
                self._save(Image.fromarray((values * 65535).round().astype(np.uint16)), file)
            about["probability"] = probability_files[0] if classes is None else probability_files
        return about

    def _save(self, picture: Image.Image, file: str) -> None:
        with whole_file(self.folder / file) as part:
            picture.save(part, format="PNG")


class InstancePictures(Writer):
    """`<name>_instances.png`, each instance in a colour of its own."""

    key = "instances_png"

    def files(self, name: str) -> list[str]:
        return [f"{name}_instances.png"]

    def is_done(self, record: Mapping[str, Any], name: str) -> bool:
        return "instances" in record and all((self.folder / file).is_file() for file in self.files(name))

    def write(self, result: ImageResult) -> dict[str, Any]:
        instances = result.prediction.instances or []
        with whole_file(self.folder / self.files(result.name)[0]) as part:
            Image.fromarray(draw_instances(result.image, instances)).save(part, format="PNG")
        return {"instances": len(instances)}
