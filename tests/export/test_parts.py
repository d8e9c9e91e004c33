"""The parts of every method, run as modules one after the other, against the model itself; nothing is exported."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from sams import RANDOM_SAMS
from test_export_methods import CASES

from hf_sam_adapt import ModaConfig, SamAdapterConfig, SamAdaptProcessor, SamDecoderConfig
from hf_sam_adapt.convert.export.check import ExportedParts, TestImages, compare
from hf_sam_adapt.convert.export.parts import merged, parts_of
from hf_sam_adapt.inference.loading import Loaded
from hf_sam_adapt.sam.families import encoder_shape, family_of, family_of_type
from hf_sam_adapt.tuners.moda import ModaModel


# What a SAM has that takes another way through its graph.
ONLY_SAM = ("sam_adapter, legacy", "sam_adapter, other size")


def cases_of(kind):
    """The cases of `test_export_methods` that a family can have, and what it has alone."""
    if kind == "sam":
        return CASES
    cases = {name: case for name, case in CASES.items() if name not in ONLY_SAM and "hq" not in name}
    qkv = family_of_type(kind, kind).attention_names
    cases["lora"] = lambda: LoraConfig(r=4, target_modules=qkv, modules_to_save=["mask_decoder"])
    if kind == "sam2":
        cases["sam_adapter, faithful"] = lambda: SamAdapterConfig(faithful=True, init_weights=False)
    return cases


def small(kind):
    """A small SAM of a family and its processor."""
    sam = RANDOM_SAMS[kind](**({"blocks_per_stage": [1, 2, 2, 3]} if kind == "sam2" else {}))
    family_of(sam).mend(sam)
    shape = encoder_shape(sam)
    return sam, SamAdaptProcessor(shape.image_size, shape.patch_size, **family_of(sam).processor)


def run_as_modules(loaded, domains=None, encoder_input="pixels"):
    """What `export` has after writing, with the modules themselves in place of files."""
    classes = loaded.classes is not None
    try:
        model = merged(loaded.model)
    except NotImplementedError:
        model = loaded.model
    parts = parts_of(model, loaded.processor, classes=classes, promptless=True, encoder_input=encoder_input)

    def opened(part):
        def run(inputs):
            assert inputs.keys() == part.inputs.keys()
            with torch.no_grad():
                outputs = part.module(**{key: torch.from_numpy(value) for key, value in inputs.items()})
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            assert len(outputs) == len(part.outputs)
            return [value.numpy() for value in outputs]

        return lambda: run

    files = {part.name: (part, opened(part)) for part in parts}
    return ExportedParts(files, loaded.processor, classes, encoder_input, domains)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in RANDOM_SAMS for name in cases_of(kind)])
def test_parts_are_the_model(kind, name):
    config, (sam, processor) = cases_of(kind)[name](), small(kind)
    if getattr(config, "image_size", None) is not None:
        config.image_size = 48
        processor = SamAdaptProcessor(48, 8)
    model = get_peft_model(sam, config).eval()
    if isinstance(config, LoraConfig):
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
    loaded = Loaded(model, processor, model.peft_config["default"], "sam")
    kinds = ["none"] if loaded.classes is not None else ["none", "box", "point"]
    found, _ = compare(loaded, run_as_modules(loaded), TestImages.of(None, None, loaded, 2), kinds)
    assert [one.kind for one in found] == kinds
    assert all(one.difference < 1e-4 and one.pixels <= 1e-3 for one in found), found


@pytest.mark.parametrize("kind", RANDOM_SAMS)
def test_an_encoder_takes_an_annotators_image(kind):
    sam, processor = small(kind)
    loaded = Loaded(sam, processor, None, "sam")
    exported = run_as_modules(loaded, encoder_input="image")
    found, _ = compare(loaded, exported, TestImages.of(None, None, loaded, 2), ["none", "box"])
    assert all(one.difference < 1e-4 for one in found), found


POOLS = {
    "hq": SamDecoderConfig(decoder="hq", init_weights=False),
    "sam_adapter": SamAdapterConfig(init_weights=False),
}


@pytest.mark.parametrize(
    ("kind", "inner", "router"),
    [
        *(("sam", inner, router) for inner in POOLS for router in ("probe", "joint")),
        ("sam_hq", "sam_adapter", "joint"),
        *((kind, "sam_adapter", "probe") for kind in ("sam_hq", "sam2", "sam3_tracker")),
    ],
)
def test_every_domain_of_a_pool(kind, inner, router):
    sam, processor = small(kind)
    pool, side = ModaModel(sam, ModaConfig(inner=POOLS[inner], router=router)).eval(), processor.image_size
    for place, name in enumerate(("one", "two")):
        pool.add_domain(name)
        pool.observe(torch.randn(4, 3, side, side) + 2 * place)
        pool.finish_domain()
    loaded = Loaded(pool, processor, pool.moda_config, "sam")
    exported = run_as_modules(loaded, pool.domains)
    assert exported.tried == ["one", "two", "base"]
    assert ("one/encoder" in exported.parts) == (inner == "sam_adapter") and "base/encoder" not in exported.parts
    found, same = compare(loaded, exported, TestImages.of(None, None, loaded, 2), ["none", "box", "point"])
    assert same == 1.0 and all(one.difference < 1e-4 for one in found)
    images = torch.randn(3, 3, side, side) + 2 * torch.tensor([0.0, 1.0, 5.0])[:, None, None, None]
    given = exported.parts["router"][1]()({"image": images.numpy()})
    routing = pool.route(images)
    places = dict(zip(exported.parts["router"][0].outputs, given))
    assert pool.names_of(torch.from_numpy(places["domain"])) == routing.domains
    assert np.abs(places["scores"] - routing.scores.numpy()).max() < 1e-5
