"""The loop of docs/label_loop.md on real images: adapt, rank, correct the least sure, take them back, adapt again."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from hf_sam_adapt.cli import main
from hf_sam_adapt.data.outlines import outlines


LABELLED, POOL, CORRECTED, STEPS = 24, 16, 6, 8


@pytest.mark.slow
def test_correcting_what_is_least_sure(real_data, tmp_path):
    source = real_data / "polyp/train"
    stems = sorted(path.stem for path in (source / "images").iterdir())[: LABELLED + POOL]
    truth = {stem: np.asarray(Image.open(source / f"masks/{stem}.png")) > 0 for stem in stems}
    for folder, chosen in (("labelled/train", stems[:LABELLED]), ("pool", stems[LABELLED:])):
        for part, suffix in (("images", "jpg"), ("masks", "png")):
            (tmp_path / folder / part).mkdir(parents=True)
            for stem in chosen:
                shutil.copy(source / part / f"{stem}.{suffix}", tmp_path / folder / part)
    data, pool, first = tmp_path / "labelled", tmp_path / "pool/images", tmp_path / "first"
    train = ["train", "--dataset", str(data), "--max_steps", str(STEPS), "--seed", "0"]
    assert main([*train, "--output_dir", str(first)]) == 0
    out = tmp_path / "to_correct"
    argv = ["predict", str(pool), "--adapter", str(first), "--output_dir", str(out), "--format", "labelme"]
    assert main([*argv, "--rank", "uncertain"]) == 0
    files = sorted((out / "labelme").glob("*.json"))
    assert len(files) == POOL
    corrected = []
    for path in files[:CORRECTED]:  # what labelme writes after a person has drawn the truth
        content = json.loads(path.read_text())
        stem = path.stem.partition("_")[2]
        rings = [outline.joined().tolist() for outline in outlines(truth[stem])]
        content["shapes"] = [{"label": "object", "points": ring, "shape_type": "polygon"} for ring in rings]
        content["flags"]["checked"] = True
        path.write_text(json.dumps(content))
        corrected.append(stem)
    assert main(["convert", "--from", "labelme", str(out / "labelme"), "--out", str(tmp_path / "corrected")]) == 0
    masks = sorted((tmp_path / "corrected/masks").iterdir())
    assert sorted(path.stem.partition("_")[2] for path in masks) == sorted(corrected)
    for path in masks:
        assert np.array_equal(np.asarray(Image.open(path)), truth[path.stem.partition("_")[2]])
    for part in ("images", "masks"):
        shutil.copytree(tmp_path / "corrected" / part, data / "train" / part, dirs_exist_ok=True)
    second = tmp_path / "second"
    assert main([*train, "--adapter", str(first), "--output_dir", str(second)]) == 0
    learned = [ids for name, ids in json.loads((second / "splits.json").read_text()).items() if name != "test"]
    assert {path.stem for path in masks} <= {stem for ids in learned for stem in ids}
    assert json.loads((second / "metrics.json").read_text())["test"]["none"]["adapted"]["iou"] > 0
