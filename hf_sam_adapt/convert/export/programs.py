"""`torch.export` programs of the parts, and their AOTInductor packages."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ...errors import UserError, first_line
from .parts import Part


Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]  # inputs by name -> outputs in the part's order


def program_of(part: Part) -> torch.export.ExportedProgram:
    """The part as a graph.

    Raises:
        UserError: something in it cannot be traced, such as a guidance feature that a user registered.
    """
    names = {name for axes in part.dynamic.values() for name in axes.values()}
    sizes = {name: torch.export.Dim(name, min=1, max=part.largest.get(name)) for name in names}
    shapes = {key: {axis: sizes[name] for axis, name in part.dynamic.get(key, {}).items()} for key in part.inputs}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # Layers hand tensors on to others by attributes, within one call.
            warnings.filterwarnings("ignore", message="The tensor attribute")
            part.module(**part.inputs)  # fills what the layers keep between calls, which become constants
            return torch.export.export(part.module, (), part.inputs, dynamic_shapes=shapes, strict=False)
    except (RuntimeError, TypeError, ValueError, torch._dynamo.exc.UserError) as error:
        raise UserError(
            f"torch.export cannot trace {part.name}: {first_line(error)}",
            key="format",
            fix="use --format transformers or sam-pth where the adapter merges",
        ) from error


def is_compiled(part: Part, aot: bool) -> bool:
    """Whether a part becomes a package: AOTInductor cannot compile a decoder, whose masks' size is an input."""
    return aot and part.kind != "decoder"


def write_program(part: Part, folder: Path, aot: bool) -> Path:
    """Write `<part>.pt2`, with `aot` as a package compiled for this machine's kind of processor, see `is_compiled`.

    Raises:
        UserError: no C++ compiler, or AOTInductor cannot compile the part.
    """
    path = folder / f"{part.name}.pt2"
    path.parent.mkdir(exist_ok=True)
    program = program_of(part)
    if not is_compiled(part, aot):
        torch.export.save(program, path)
        return path
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise UserError("AOTInductor needs a C++ compiler, such as g++", key="aot", fix="install one, or leave it out")
    try:
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    except Exception as error:  # a compiler's errors are of many classes
        raise UserError(
            f"AOTInductor cannot compile {part.name}: {first_line(error)}", key="aot", fix="leave it out"
        ) from error
    return path


def program_runner(part: Part, path: Path, aot: bool) -> Run:
    """What `write_program` wrote, loaded again."""
    load = torch._inductor.aoti_load_package if is_compiled(part, aot) else _loaded
    call = load(str(path))

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            outputs = call(**{key: torch.from_numpy(inputs[key]) for key in part.inputs})
        return [value.numpy() for value in (outputs if isinstance(outputs, (tuple, list)) else [outputs])]

    return run


def _loaded(path: str) -> Callable:
    return torch.export.load(path).module()
