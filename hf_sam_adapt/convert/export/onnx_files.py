"""ONNX files of the parts, in full, half or 8-bit precision, and onnxruntime on them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import UserError, first_line
from .parts import Part
from .programs import Run, program_of


OLDEST_OPSET = 18  # of torch's exporter
_ONE_FILE = 1_800_000_000  # bytes; a protobuf message holds no 2 GB
# The decoder keeps fp32: it has a few per cent of the weights, and coordinates need the precision.
REDUCED = ("encoder", "promptless", "router")


def check_opset(opset: int) -> None:
    """Raise `UserError` for an opset that the exporter or the installed onnx does not know."""
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        problem = "too old" if opset < OLDEST_OPSET else "newer than the installed onnx"
        raise UserError(f"{opset} is {problem}", key="opset", fix=f"choose {OLDEST_OPSET} to {newest}")


def write_onnx(part: Part, folder: Path, opset: int, precision: str) -> Path:
    """Write `<part>.onnx`; beyond 2 GB the weights lie beside it, in `<part>.onnx.data`.

    Args:
        precision: "no" for fp32; "fp16" or "int8" for encoders and promptless parts, see `REDUCED`.

    Raises:
        UserError: something in the part has no counterpart in ONNX.
    """
    path = folder / f"{part.name}.onnx"
    path.parent.mkdir(exist_ok=True)
    program = program_of(part)
    try:
        with _quietly():
            graph = torch.onnx.export(
                program,
                dynamic_shapes={key: part.dynamic.get(key) for key in part.inputs},  # the names of the free axes
                dynamo=True,
                opset_version=opset,
                verbose=False,
                input_names=list(part.inputs),
                output_names=list(part.outputs),
            )
    except torch.onnx.OnnxExporterError as error:
        raise UserError(
            f"the exporter cannot write {part.name}: {first_line(error)}", key="format", fix="use --format torch"
        ) from error
    size = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    assert graph is not None  # with dynamo
    _tidy(graph.model, part)
    graph.save(path, external_data=size > _ONE_FILE)
    if precision != "no" and part.kind in REDUCED:
        with _quietly():
            (_to_fp16 if precision == "fp16" else _to_int8)(path)
    return path


def _tidy(model: Any, part: Part) -> None:
    """Drop the exporter's records, which are most of a small file and name folders of this machine; add defaults."""
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(model)
    for value in model.graph.inputs:
        if value.name in part.defaults:
            value.const_value = onnx_ir.tensor(part.defaults[value.name], name=value.name)
            model.graph.register_initializer(value)


def onnx_runner(part: Part, path: Path) -> Run:
    """onnxruntime on the CPU.

    Raises:
        UserError: the installed onnxruntime does not take the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common class
        raise UserError(f"onnxruntime does not take {path.name}: {first_line(error)}", key="opset") from error

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return session.run(list(part.outputs), {key: inputs[key] for key in part.inputs})

    return run


def _to_fp16(path: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(onnx.load(path), keep_io_types=True, disable_shape_infer=True)
    _replace(model, path)


def _to_int8(path: Path) -> None:
    """Dynamic quantisation of the products with weights, which convolutions on CPUs lack."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    new = path.with_suffix(".int8")
    quantize_dynamic(path, new, op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8, per_channel=True)
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)
    new.replace(path)


def _replace(model: Any, path: Path) -> None:
    import onnx

    data = path.with_name(f"{path.name}.data")
    data.unlink(missing_ok=True)
    large = model.ByteSize() > _ONE_FILE
    onnx.save(model, path, save_as_external_data=large, location=data.name if large else None)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's talk of torchvision, constants and its own steps."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
