"""Runs ONNX files in a process in which torch cannot be imported: `python onnx_process.py FOLDER JOBS.npz OUT.npz`.

Every array of the jobs is called `<job>/<part>/<input>`; what comes back is `<job>/<part>/<output>`.
"""

import sys
from pathlib import Path


def main(folder: Path, jobs: Path, out: Path) -> None:
    sys.modules["torch"] = None  # importing it raises
    import numpy as np
    import onnxruntime

    given, found, sessions = np.load(jobs), {}, {}
    for place in sorted({name.rpartition("/")[0] for name in given.files}):
        part = place.partition("/")[2]
        if part not in sessions:
            sessions[part] = onnxruntime.InferenceSession(folder / f"{part}.onnx", providers=["CPUExecutionProvider"])
        inputs = {name.rpartition("/")[2]: given[name] for name in given.files if name.rpartition("/")[0] == place}
        names = [output.name for output in sessions[part].get_outputs()]
        found |= {f"{place}/{name}": value for name, value in zip(names, sessions[part].run(None, inputs))}
    np.savez(out, **found)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
