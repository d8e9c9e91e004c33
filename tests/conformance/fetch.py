"""Fetch the tests of the installed PEFT: `python tests/conformance/fetch.py` prints the folder that holds them.

Wheels carry no tests, so they come from the source distribution of the same version, of a development version from the
main branch. They are kept in the ignored folder `.conformance/` of the repository and downloaded once per version.
"""

import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path


CACHE = Path(__file__).resolve().parents[2] / ".conformance"


def fetch_tests() -> Path:
    """Return the folder with PEFT's `test_*.py`, downloading the source distribution if it is not there yet."""
    release = f"peft-{version('peft')}"
    tests = CACHE / release / "tests"
    if not tests.is_dir():
        CACHE.mkdir(exist_ok=True)
        if ".dev" in release:
            clone = ["git", "clone", "--quiet", "--depth", "1", "https://github.com/huggingface/peft"]
            subprocess.run([*clone, str(CACHE / release)], check=True, stdout=sys.stderr)
            return tests
        archive = CACHE / f"{release}.tar.gz"
        if not archive.is_file():
            download(release.replace("-", "==", 1))
        with tarfile.open(archive) as members:
            # Python 3.10 and 3.11 have the filter since one of their later releases.
            safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            members.extractall(CACHE, **safely)
    return tests


def download(requirement: str) -> None:
    options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--quiet", "--dest", str(CACHE)]
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    subprocess.run(command, check=True, stdout=sys.stderr)  # stdout is for the folder alone


if __name__ == "__main__":
    print(fetch_tests())
