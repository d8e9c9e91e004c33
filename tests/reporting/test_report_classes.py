"""Pictures of classes: overlays, their legends, the contact sheet, and samples.png of a class-wise run."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from hf_sam_adapt.doctor.contact_sheet import save_contact_sheet
from hf_sam_adapt.names import class_names
from hf_sam_adapt.reporting.class_maps import (
    class_colours,
    class_legend,
    class_overlay,
    print_class_table,
    with_legend,
)
from hf_sam_adapt.reporting.report import IGNORED_COLOUR


@pytest.fixture
def labelled():
    """An image uint8 (64, 90, 3) and its label map of 0, 1, 3 and 255."""
    image = np.random.default_rng(0).integers(0, 256, (64, 90, 3)).astype(np.uint8)
    labels = np.zeros((64, 90), np.uint8)
    labels[5:20, 5:40], labels[30:50, 10:60], labels[:, 80:] = 1, 3, 255
    return image, labels


def holds(picture, colour):
    """How many pixels have a colour exactly."""
    return int((picture == np.asarray(colour)).all(axis=-1).sum())


def test_class_zero_is_not_tinted_and_the_others_are(labelled):
    image, labels = labelled
    shown = class_overlay(image, labels, 4)
    assert np.array_equal(shown[labels == 0], image[labels == 0])
    for label in (1, 3, 255):
        assert holds(shown, class_colours(4)[label]) > 50  # its outline
        inside = labels == label
        expected = 0.55 * image[inside].astype(float) + 0.45 * class_colours(4)[label]
        tinted = np.abs(shown[inside] - expected).max(axis=-1) <= 1
        assert tinted.mean() > 0.7


@pytest.mark.parametrize("names", [["soil", "crop", "weed", "road"], ["a", "same", "b", "same"], ["x" * 60] * 4])
@pytest.mark.parametrize("width", [20, 90, 600])
def test_legends_name_what_is_there(labelled, names, width):
    labels = np.asarray(Image.fromarray(labelled[1]).resize((width, 64), Image.Resampling.NEAREST))
    legend = class_legend(labels, names)
    assert [name for name, _ in legend] == [names[0], names[1], names[3], "ignored"]
    assert [colour for _, colour in legend] == [None, *(tuple(class_colours(4)[label]) for label in (1, 3, 255))]
    picture = np.full((64, width, 3), 7, np.uint8)
    shown = with_legend(picture, legend)
    assert np.array_equal(shown[:64, :width], picture)
    assert (shown[:64, width:] == 255).all()
    strip = shown[64:]
    for _, colour in legend[1:]:
        assert holds(strip, colour) >= 100
    # The last name ends before the border: nothing is cut off.
    assert (strip[:, -1] == 255).all() and (strip[-1] == 255).all()
    assert (strip.max(axis=-1) < 100).sum() > 20


def test_contact_sheets_have_a_legend(labelled, tmp_path):
    image, labels = labelled
    keys = {"augmentations": ["none"], "normalization": None, "channels": None, "image_size": 64, "resize": "pad"}
    for names, colours in (
        (["soil", "crop", "weed", "road"], [class_colours(4)[label] for label in (1, 3)]),
        (None, [IGNORED_COLOUR]),
    ):
        mask = labels if names else np.where(labels == 3, 1, labels)
        split = [SimpleNamespace(image=image, mask=mask, id=f"field{number}") for number in range(3)]
        save_contact_sheet(tmp_path / "sheet.png", split, names=names, seed=0, **keys)
        sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
        assert sheet.shape[1] == 3 * 256 and sheet.shape[0] > 270
        for colour in colours:
            assert holds(sheet[:270], colour) > 100 and holds(sheet[270:], colour) > 100


def test_brackets_in_names_are_no_markup(capsys):
    one = {"iou": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5, "pixels": 3}
    names = ["background", "tissue [red]", "[/b]"]
    print_class_table({"per_class": {str(label): one for label in range(3)}, "miou": 0, "oa": 0, "fwiou": 0}, names)
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)


def test_class_names_without_names():
    assert class_names(3, None) == ["0", "1", "2"]
