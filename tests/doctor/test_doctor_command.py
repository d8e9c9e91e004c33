"""`hf-sam-adapt doctor`: lines, exit status, files, other kinds of data sets, processes and memory."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from corpus import FAULTS, draw, make_corpus
from PIL import Image
from sams import RANDOM_SAMS

from hf_sam_adapt.cli import main
from hf_sam_adapt.config.recipe import Recipe
from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.doctor import examine_dataset
from hf_sam_adapt.doctor.model_input import model_input
from hf_sam_adapt.reporting.report import TRUTH_COLOURS


@pytest.fixture
def root(tmp_path):
    return make_corpus(tmp_path / "data", 5)


def test_lines_status_json_and_sheet(root, tmp_path, capsys):
    argv = ["doctor", str(root), "--image_size", "64", "--json", str(tmp_path / "found.json")]
    assert main([*argv, "--contact_sheet", str(tmp_path / "sheet.png")]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("train: 44 images of 80x64 pixels; foreground ")
    assert shown[3].startswith("nothing found in 55 images") and "s per 1,000" in shown[3]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["ok"] and found["findings"] == [] and found["splits"]["test"]["images"] == 6
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (3 * 270 + 32, 4 * 256, 3)  # and a legend
    contours = [(sheet[:810] == colour).all(axis=-1).sum() for colour in TRUTH_COLOURS]
    assert max(contours) > 12 * 50
    legend = (sheet[810:] == TRUTH_COLOURS[int(np.argmax(contours))]).all(axis=-1)
    assert legend.sum() > 100 and (sheet[810:] == 0).any()  # a swatch and a name

    FAULTS["smaller_mask"].plant(root, "train_03", "")
    FAULTS["empty_mask"].plant(root, "train_04", "")
    assert main([*argv, "--contact_sheet", str(tmp_path / "sheet.png")]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split()[:2] == ["error", "size-mismatch"] and shown[1].split()[:2] == ["warning", "empty-mask"]
    assert f"{root}/train/masks/train_03.png: mask of 78x61 pixels, its image has 80x64" in shown[0]
    found = json.loads((tmp_path / "found.json").read_text())
    assert not found["ok"] and [one["code"] for one in found["findings"]] == ["size-mismatch", "empty-mask"]
    assert set(found["findings"][0]) == {"severity", "code", "file", "value", "fix"}


def test_images_are_dealt_by_the_seed_of_the_training(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for folder, shape in {"images": (16, 16, 3), "masks": (16, 16)}.items():
        (tmp_path / folder).mkdir()
        for number in range(20):
            Image.fromarray(rng.integers(0, 2, shape, dtype=np.uint8)).save(tmp_path / folder / f"{number}.png")
    dealt = []
    for seed in (0, 3):
        source = examine_dataset(tmp_path, seed=seed, processes=0).source
        dealt.append([Path(row["image"]).name for row in source.tables["test"]])
        test = load_segmentation_dataset(str(tmp_path), seed=seed).test
        assert dealt[-1] == [Path(row["image"]).name for row in test.table]
    assert dealt[0] != dealt[1]
    main(["doctor", str(tmp_path), "--seed", "3"])
    assert "seed 3" in capsys.readouterr().out


def test_a_recipe_says_how_it_is_read(root, tmp_path, capsys):
    config = tmp_path / "recipe.yaml"
    config.write_text(Recipe(dataset=str(root), mask_suffix="_no", num_workers=0).to_yaml())
    argv = ["doctor", "--config", str(config), "--mask_suffix", "_mask"]
    assert main(argv) == 1
    shown = capsys.readouterr().out
    assert "train_00.png and 54 more: image without mask" in shown and "--limit 0 shows all" in shown
    assert len(shown.splitlines()) == 4  # images, masks, the sum, and how to see all
    assert main([*argv, "--limit", "20"]) == 1
    shown = capsys.readouterr().out
    assert shown.count("image without mask") == 20 and "train_19.png and 35 more: " in shown
    assert main([*argv, "--limit", "0"]) == 1
    assert capsys.readouterr().out.count("image without mask") == 44 + 5 + 6


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "doctor needs a data set"),
        (["{root}/nowhere"], "missing folder"),
        (["{root}", "--group_by", "("], "not a regular expression"),
        (["{root}", "--limit", "-1"], "limit: -1"),
        (["{root}", "--json", "nowhere/at/all.json"], "its folder does not exist"),
        (["{root}", "--num_labels", "1"], "num_labels: 1"),
        (["{root}", "--image_size", "50"], "image_size: 50"),
        (["{root}", "--palete", "x"], "did you mean 'palette'"),
    ],
)
def test_bad_usage_is_2(root, argv, message, capsys):
    assert main(["doctor", *(token.format(root=root) for token in argv)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("family", "size", "refused"),
    [("sam3_tracker", 98, None), ("sam3_tracker", 96, 98), ("sam2", 128, None), ("sam2", 112, 128), ("sam", 64, None)],
)
def test_the_size_that_a_models_family_takes(root, tmp_path, capsys, family, size, refused):
    RANDOM_SAMS[family]().save_pretrained(tmp_path / "model")
    argv = ["doctor", str(root), "--model", str(tmp_path / "model"), "--processes", "0", "--image_size", str(size)]
    status = main(argv)
    said = capsys.readouterr().err
    assert (status == 2) == bool(refused)
    assert not refused or f"the nearest is {refused}" in said


@pytest.mark.parametrize(
    ("name", "side", "patch"),
    [
        (None, 256, 16),
        ("facebook/sam-vit-huge", 1024, 16),
        ("syscv-community/sam-hq-vit-base", 1024, 16),
        ("facebook/sam2.1-hiera-tiny", 1024, 16),
        ("facebook/sam3", 1008, 14),
    ],
)
def test_the_input_of_a_model_that_is_not_here(name, side, patch):
    found = model_input(name)
    assert (found.image_size, found.patch_size) == (side, patch)


def test_other_kinds_of_data_sets(tmp_path, capsys):
    assert main(["doctor", "synthetic:polyp", "--model", "tiny", "--processes", "0"]) == 0
    rng = np.random.default_rng(0)
    pairs = [draw(rng) for _ in range(12)]
    pairs[7] = pairs[2]
    columns = {
        "image": [Image.fromarray(image) for image, _ in pairs],
        "mask": [Image.fromarray(mask) for _, mask in pairs],
    }
    table = datasets.Dataset.from_dict(columns)
    table.save_to_disk(tmp_path / "saved")
    capsys.readouterr()
    found = examine_dataset(tmp_path / "saved", mask_size=16, processes=0).findings.ordered()
    assert [one.code for one in found] in (["duplicate"], ["leakage"]) and "row 00000" in found[0].file

    for index, (image, _) in enumerate(pairs):
        Image.fromarray(image).save(tmp_path / f"{index}.jpg")
    box = [[20, 20, 60, 20, 60, 50, 20, 50]]
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 64, "width": 80 - (i == 3)} for i in range(12)],
        "annotations": [{"id": i, "image_id": i, "category_id": 5, "segmentation": box} for i in range(12) if i != 9],
        "categories": [{"id": 5, "name": "thing"}],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    found = examine_dataset(tmp_path, mask_size=16, processes=0).findings.ordered()
    assert {("size-mismatch", "3.jpg"), ("empty-mask", "9.jpg")} <= {(one.code, one.file[-5:]) for one in found}


def test_processes_change_nothing(root):
    FAULTS["flat_image"].plant(root, "train_09", "")
    FAULTS["copy_in_test"].plant(root, "train_10", "")
    alone, many = (examine_dataset(root, mask_size=16, processes=count) for count in (0, 2))
    assert alone.findings.lines() == many.findings.lines() and len(alone.findings.kept) == 2
    assert {name: facts.plain() for name, facts in alone.facts.items()} == {
        name: facts.plain() for name, facts in many.facts.items()
    }


MEMORY = """
import resource, sys
from hf_sam_adapt.doctor import examine_dataset
examine_dataset(sys.argv[1], processes=0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
diagnosis = examine_dataset(sys.argv[2], processes=0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, len(diagnosis.findings.kept))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_files(tmp_path):
    """3,000 images of 100 KB in memory, each with a finding: under 8 MB more than 300, where all would be 300 MB."""
    rng = np.random.default_rng(0)
    for name, count in (("few", 300), ("many", 3000)):
        for kind in ("images", "masks"):
            (tmp_path / name / kind).mkdir(parents=True)
        for number in range(count):
            small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(small).resize((180, 180)).save(tmp_path / name / "images" / f"{number}.jpg")
            Image.fromarray(np.zeros((180, 180), np.uint8)).save(tmp_path / name / "masks" / f"{number}.png")
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "few"), str(tmp_path / "many")]
    grown, kept = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert grown < 8_000 and kept < 100  # ru_maxrss is in KB


PAGE = (Path(__file__).parents[2] / "docs/doctor.md").read_text()


def test_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_corpus(Path("my_polyps"), 8)
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) >= 2
    for command in commands:
        program, *argv = shlex.split(command)
        assert program == "hf-sam-adapt" and main(argv) == 0
    assert Path("found.json").is_file() and Path("batch.png").is_file()
    codes = {fault.code for fault in FAULTS.values()}
    rows = re.findall(r"^\| (`.*?) \|", PAGE, flags=re.MULTILINE)
    listed = {code for row in rows for code in re.findall("`(.*?)`", row)}
    others = "".join((Path(__file__).parent / f"test_{name}.py").read_text() for name in ("rasters", "volume_doctor"))
    codes |= {code for code in listed if f'"{code}"' in others or f"def {code.replace('-', '_')}(" in others}
    assert codes <= listed and listed - codes == {"refused"}


REAL = {
    "camouflage": {},
    "shadow": {},
    "polyp": {},
    "nuclei": {},
    "road_aerial": {},
    # Several views of one tile, and defects of a few pixels.
    "magnetic_tile": {"leakage", "near-duplicate", "tiny-object"},
    "em_neuron": {},
    # Frames of one drive: validation images are drawn one by one, beside the next frame of a car that stands. And
    # specks along the outlines.
    "camvid": {"leakage", "near-duplicate", "tiny-object"},
}
READ = {
    "em_neuron": {"num_labels": 5},
    "camvid": {"num_labels": 11, "label_map": {0: 255} | {value: value - 1 for value in range(1, 12)}},
}


@pytest.mark.slow
@pytest.mark.parametrize("domain", REAL)
def test_no_false_alarms_on_real_data(real_data, domain):
    diagnosis = examine_dataset(real_data / domain, processes=0, **READ.get(domain, {}))
    assert diagnosis.ok and {one.code for one in diagnosis.findings.kept} == set(REAL[domain])
    if domain in READ:
        assert examine_dataset(real_data / domain, processes=0, limit=3).findings.counts["error", "mask-values"] > 50
