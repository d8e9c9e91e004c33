# /// script
# requires-python = ">=3.10"
# dependencies = ["hf-sam-adapt[train]"]
# ///
"""Puts what the demo needs of its three runs into the package, weights in half precision:

hf-sam-adapt train --config recipes/demo_radar_fields.yaml
hf-sam-adapt train --config recipes/demo_land_cover.yaml
hf-sam-adapt continual --config recipes/demo_three_domains.yaml
python recipes/demo_adapters.py
"""

import shutil
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from hf_sam_adapt.demo.catalog import built_in_folder


RUNS = {"radar-fields": "radar-fields", "land-cover": "land-cover", "three-domains": "three-domains/pool"}
KEPT = ("adapter_config.json", "preprocessor_config.json")


def copy_adapter(source: Path, target: Path) -> None:
    """Copy an adapter in half precision, or a pool with its domains, without what only its training needs."""
    target.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        if (source / name).is_file():
            shutil.copy(source / name, target / name)
    domains = sorted(path.parent for path in source.glob("*/adapter_config.json"))
    with safe_open(source / "adapter_model.safetensors", framework="pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
    if not domains:  # a router compares distances with a threshold: it stays as it is
        tensors = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
    save_file(tensors, target / "adapter_model.safetensors", metadata)
    for domain in domains:
        copy_adapter(domain, target / domain.name)


def main(runs: Path) -> None:
    for name, run in RUNS.items():
        copy_adapter(runs / run, built_in_folder() / name)
    size = sum(path.stat().st_size for path in built_in_folder().rglob("*.safetensors"))
    print(f"{built_in_folder()}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
