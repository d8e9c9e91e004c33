"""Autocast by the recipe's word, and what is said of a CPU that only emulates it."""

import pytest
import torch

from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference import precision
from hf_sam_adapt.inference.precision import autocast


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(precision.logger, "warning_once", lines.append)
    return lines


@pytest.mark.parametrize("has", [False, True])
@pytest.mark.parametrize("name", ["no", "bf16", "fp16"])
def test_a_cpu_without_the_arithmetic_is_named(monkeypatch, said, name, has):
    monkeypatch.setattr(precision, "MULTIPLIES", {"bf16": lambda: has, "fp16": lambda: has})
    precision.warn_if_emulated(name, CUDA)
    assert not said
    with autocast(name, CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name, torch.float32)
    if has or name == "no":
        assert not said
    else:
        assert len(said) == 1 and name in said[0] and "slower" in said[0]


def test_unknown_precision():
    with pytest.raises(UserError, match=r"fp8.*use no, bf16, fp16"):
        autocast("fp8", CPU)
