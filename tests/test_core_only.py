"""An installation without any extra: what works there works, and what does not names the extra that it needs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "hf_sam_adapt")
LIBRARY = """
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

absent = ("datasets", "evaluate", "matplotlib", "scipy", "gradio")
assert not [name for name in absent if find_spec(name) is not None]

import hf_sam_adapt
from peft import PeftModel, get_peft_model
from hf_sam_adapt import ConvLoraConfig, SamAdaptPredictor, load_segmentation_dataset, load_tiny_sam
from hf_sam_adapt.errors import UserError

assert (Path(hf_sam_adapt.__file__).parent / "py.typed").is_file()
assert "site-packages" in hf_sam_adapt.__file__
sam, processor = load_tiny_sam()
adapted = get_peft_model(sam, ConvLoraConfig(r=3))
adapted.save_pretrained("adapter")
processor.save_pretrained("adapter")
PeftModel.from_pretrained(load_tiny_sam()[0], "adapter")
image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
Image.fromarray(image).save("photo.png")
(result,) = SamAdaptPredictor.from_pretrained("adapter", model="tiny").predict([image])
assert result.mask.shape == (40, 60)
try:
    load_segmentation_dataset("synthetic:polyp")
except UserError as error:
    assert "hf-sam-adapt[train]" in str(error)
else:
    raise AssertionError("read without datasets")
"""
WORKS = {
    "export-tiny": ["tiny"],
    "predict": ["photo.png", "--adapter", "adapter", "--model", "tiny", "--output_dir", "masks"],
}
NEEDS = {
    "train": (["--dataset", "synthetic:polyp", "--output_dir", "run"], "train"),
    "continual": (["--domains", "synthetic:polyp", "--output_dir", "runs"], "train"),
    "evaluate": (["adapter", "--model", "tiny", "--dataset", "synthetic:polyp"], "train"),
    "doctor": (["synthetic:polyp"], "train"),
    "estimate": (["--dataset", "synthetic:polyp"], "train"),
    "demo": ([], "demo"),
    "convert": (["--from", "labelme", "photos", "--out", "converted"], "train"),
}


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    """`run(*arguments) -> CompletedProcess` of the Python of a fresh environment, in an empty folder."""
    folder = tmp_path_factory.mktemp("core")
    source, work, venv = folder / "source", folder / "work", folder / "venv"
    work.mkdir()
    for name in BUILT_FROM:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    install = [venv / "bin/python", "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    subprocess.run([*install, source], check=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def run(*arguments):
        command = [venv / "bin/python", *arguments]
        return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)

    done = run("-c", LIBRARY)
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.slow
@pytest.mark.xdist_group("core_only")
@pytest.mark.timeout(1800)
def test_without_extras_everything_works_or_names_its_extra(core):
    command = ("-m", "hf_sam_adapt.cli")
    for name, argv in WORKS.items():
        done = core(*command, name, *argv)
        assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("Next: "), (name, done.stderr)
    for name, (argv, extra) in NEEDS.items():
        done = core(*command, name, *argv)
        assert done.returncode == 2 and done.stdout == "", (name, done.stderr)
        assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"error: {name} "), done.stderr
        assert " needs " in done.stderr and " installed; " in done.stderr
        assert done.stderr.endswith(f"run pip install 'hf-sam-adapt[{extra}]'\n")
    done = core(*command, "push", "adapter", "--repo", "me/adapter")
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: "), done.stderr
    for name in (*WORKS, *NEEDS, "push"):
        assert core(*command, name, "--help").returncode == 0
