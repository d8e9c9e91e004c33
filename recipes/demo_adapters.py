# /// script
# requires-python = ">=3.10"
# dependencies = ["hf-sam-adapt[train]"]
# ///
"""Puts what the demo needs of its three runs into the package, weights in half precision, and routes its mixed set:

hf-sam-adapt train --config recipes/demo_radar_fields.yaml
hf-sam-adapt train --config recipes/demo_land_cover.yaml
hf-sam-adapt continual --config recipes/demo_three_domains.yaml
python recipes/demo_adapters.py
"""

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from hf_sam_adapt.data.synthetic import draw_sample
from hf_sam_adapt.demo.catalog import built_in_folder
from hf_sam_adapt.demo.examples import ROUTED
from hf_sam_adapt.inference.predictor import SamAdaptPredictor


RUNS = {"radar-fields": "radar-fields", "land-cover": "land-cover", "three-domains": "three-domains/pool"}
KEPT = ("adapter_config.json", "preprocessor_config.json")
DOMAINS = {"speckle": "radar", "polyp": "polyp", "shadow": "shadow"}  # drawn domain -> its name in the pool
UNKNOWN = "base"
TRIED = 20  # test images of a domain among which fitting ones are looked for


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


def check_mixed_set() -> None:
    """Route the mixed set of the Route tab; exit where an image of it does not show what it is there for."""
    predictor = SamAdaptPredictor.from_pretrained(str(built_in_folder() / "three-domains"))

    def where(domain: str, numbers: Iterable[int]) -> list[str | None]:
        return [one.domain for one in predictor.predict([draw_sample(domain, "test", n)[0] for n in numbers])]

    wrong = []
    for domain, number in ROUTED:
        (found,) = where(domain, [number])
        wanted = DOMAINS.get(domain, UNKNOWN)
        print(f"{domain} {number}: {found}")
        if found != wanted:
            fitting = [n for n, name in enumerate(where(domain, range(TRIED))) if name == wanted]
            wrong.append(
                f"{domain} {number} goes to {found}, not to {wanted}; of its first {TRIED} these do: {fitting}"
            )
    if wrong:
        sys.exit("ROUTED of hf_sam_adapt/demo/examples.py needs other images:\n" + "\n".join(wrong))


def main(runs: Path) -> None:
    for name, run in RUNS.items():
        copy_adapter(runs / run, built_in_folder() / name)
    size = sum(path.stat().st_size for path in built_in_folder().rglob("*.safetensors"))
    print(f"{built_in_folder()}: {size / 1e6:.2f} MB")
    check_mixed_set()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
