"""The benchmarks of speed and memory, one after the other: within nine minutes on a GPU, with torch, transformers,
accelerate and peft installed.

    python benchmarks/all.py
"""

import subprocess
import sys
from pathlib import Path


SCRIPTS = (("attention.py",), ("conv_lora_branch.py",), ("step_table.py", "--minutes", "5"))
CPU_SCRIPTS = (("attention.py",), ("conv_lora_branch.py",), ("step_table.py",))


def main() -> None:
    import torch

    failed = []
    for name, *arguments in SCRIPTS if torch.cuda.is_available() else CPU_SCRIPTS:
        done = subprocess.run([sys.executable, Path(__file__).with_name(name), *arguments])
        if done.returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
