"""Build wheel and source distribution: `python .ci/build.py FOLDER [TAG]`, what `make dist` runs.

README's relative links and pictures are made absolute in the copy that is built, because PyPI shows it without the
repository. With a tag, such as v0.2.0, nothing is built unless version and changelog agree with it.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "https://github.com/hf-sam-adapt/hf-sam-adapt"
BUILT_FROM = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "hf_sam_adapt")


def version() -> str:
    """The package's, without importing it."""
    (found,) = re.findall(r'^__version__ = "(.+)"$', (ROOT / "hf_sam_adapt/__init__.py").read_text(), re.MULTILINE)
    return found


def what_forbids(tag: str, changelog: str) -> str | None:
    """Why `tag` cannot be released, None where it can."""
    if tag != f"v{version()}":
        return f"the tag {tag} is not v{version()}, the version in hf_sam_adapt/__init__.py"
    if not re.search(rf"^## \[{re.escape(version())}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE):
        return f"CHANGELOG.md has no heading '## [{version()}] - YYYY-MM-DD'"
    return None


def absolute(readme: str, tag: str) -> str:
    """README with links that lead to `tag` in the repository, and pictures from there."""
    readme = re.sub(r"(!\[[^\]]*\]\()(?!https?:|#)", rf"\1{REPOSITORY}/raw/{tag}/", readme)
    return re.sub(r"(?<!!)(\[[^\]]*\]\()(?!https?:|#)", rf"\1{REPOSITORY}/blob/{tag}/", readme)


def build(folder: Path, tag: str) -> None:
    """Write both distributions into `folder`, out of a copy that holds nothing but the sources."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "source"
        copy.mkdir()
        for source in (ROOT / part for part in BUILT_FROM):
            if source.is_dir():
                shutil.copytree(source, copy / source.name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy)
        (copy / "README.md").write_text(absolute((ROOT / "README.md").read_text(), tag))
        subprocess.run([sys.executable, "-m", "build", "--outdir", folder, copy], check=True)


if __name__ == "__main__":
    problem = what_forbids(sys.argv[2], (ROOT / "CHANGELOG.md").read_text()) if len(sys.argv) > 2 else None
    if problem is not None:
        sys.exit(f"error: {problem}")
    build(Path(sys.argv[1]).resolve(), sys.argv[2] if len(sys.argv) > 2 else f"v{version()}")
