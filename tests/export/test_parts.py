"""The parts of every method, run as modules one after the other, against the model itself; nothing is exported."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from sams import random_sam
from test_export_methods import CASES

from hf_sam_adapt import ModaConfig, SamAdapterConfig, SamAdaptProcessor, SamDecoderConfig
from hf_sam_adapt.convert.export.check import ExportedParts, TestImages, compare
from hf_sam_adapt.convert.export.parts import merged, parts_of
from hf_sam_adapt.inference.loading import Loaded
from hf_sam_adapt.tuners.moda import ModaModel


def run_as_modules(loaded, domains=None):
    """What `export` has after writing, with the modules themselves in place of files."""
    classes = loaded.classes is not None
    try:
        model = merged(loaded.model)
    except NotImplementedError:
        model = loaded.model
    parts = {part.name: part for part in parts_of(model, loaded.processor, classes=classes, promptless=True)}

    def opened(part):
        def run(inputs):
            assert inputs.keys() == part.inputs.keys()
            with torch.no_grad():
                outputs = part.module(**{key: torch.from_numpy(value) for key, value in inputs.items()})
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            assert len(outputs) == len(part.outputs)
            return [value.numpy() for value in outputs]

        return lambda: run

    files = {name: (part, opened(part)) for name, part in parts.items()}
    return ExportedParts(files, loaded.processor, classes, "pixels", domains)


@pytest.mark.parametrize("name", CASES)
def test_parts_are_the_model(name):
    config = CASES[name]()
    if getattr(config, "image_size", None) is not None:
        config.image_size = 48
    model = get_peft_model(random_sam(), config).eval()
    if isinstance(config, LoraConfig):
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
    processor = SamAdaptProcessor(getattr(config, "image_size", None) or 64, 8)
    loaded = Loaded(model, processor, model.peft_config["default"], "sam")
    kinds = ["none"] if loaded.classes is not None else ["none", "box", "point"]
    found, _ = compare(loaded, run_as_modules(loaded), TestImages.of(None, None, loaded, 2), kinds)
    assert [one.kind for one in found] == kinds
    assert all(one.difference < 1e-4 and one.pixels <= 1e-3 for one in found), found


POOLS = {
    "hq": SamDecoderConfig(decoder="hq", init_weights=False),
    "sam_adapter": SamAdapterConfig(init_weights=False),
}


@pytest.mark.parametrize("router", ["probe", "joint"])
@pytest.mark.parametrize("inner", POOLS)
def test_every_domain_of_a_pool(inner, router):
    pool, processor = ModaModel(random_sam(), ModaConfig(inner=POOLS[inner], router=router)).eval(), None
    for place, name in enumerate(("one", "two")):
        pool.add_domain(name)
        pool.observe(torch.randn(4, 3, 64, 64) + 2 * place)
        pool.finish_domain()
    processor = SamAdaptProcessor(64, 8)
    loaded = Loaded(pool, processor, pool.moda_config, "sam")
    exported = run_as_modules(loaded, pool.domains)
    assert exported.tried == ["one", "two", "base"]
    assert ("one/encoder" in exported.parts) == (inner == "sam_adapter") and "base/encoder" not in exported.parts
    found, same = compare(loaded, exported, TestImages.of(None, None, loaded, 2), ["none", "box", "point"])
    assert same == 1.0 and all(one.difference < 1e-4 for one in found)
    images = torch.randn(3, 3, 64, 64) + 2 * torch.tensor([0.0, 1.0, 5.0])[:, None, None, None]
    given = exported.parts["router"][1]()({"image": images.numpy()})
    routing = pool.route(images)
    places = dict(zip(exported.parts["router"][0].outputs, given))
    assert pool.names_of(torch.from_numpy(places["domain"])) == routing.domains
    assert np.abs(places["scores"] - routing.scores.numpy()).max() < 1e-5
