"""Publishing a Space: its folder, and the wheel of this package that its `requirements.txt` names."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from huggingface_hub import metadata_load

from ..data.walk import files_below
from ..errors import UserError
from ..upload import check_can_push, push_again, upload


PUSHED_SUFFIXES = (".py", ".txt", ".md", ".png", ".jpg", ".json", ".yaml", ".safetensors")
_DOCKERFILE = "Dockerfile"
_BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE")


def push_space(
    folder: str | Path, repo: str | None = None, *, private: bool = True, revision: str | None = None
) -> str:
    """Publish a Space with the wheel built from the checkout that it lies in, in one commit.

    Args:
        folder: with `app.py`, a `README.md` whose head names the `sdk`, and a `requirements.txt` that names the wheel
            as a file. Only a Docker Space can install that: Gradio Spaces are built with `requirements.txt` alone.
        repo: `owner/name`; `name` is in the account of the token, None is the folder's name there.
        private: of a repository that is created; one that exists stays as it is.
        revision: branch, created from `main` if it does not exist.

    Returns:
        Address of the commit.

    Raises:
        UserError: no Space there, no checkout around it, another wheel than the one that is named, or the Hub refused.
    """
    folder = Path(folder)
    files = space_files(folder)
    sdk = (metadata_load(files["README.md"]) or {}).get("sdk")
    if sdk is None:
        raise UserError(
            f"{folder / 'README.md'} names no sdk in its head", key="push", fix="add `sdk: docker` or `sdk: gradio`"
        )
    repo = repo or folder.resolve().name
    check_can_push(repo)
    flags = ("" if private else " --public") + (f" --revision {shlex.quote(revision)}" if revision else "")
    again = f"hf-sam-adapt push {shlex.quote(str(folder))} --repo {repo} --repo_type space{flags}"
    with tempfile.TemporaryDirectory() as stage:
        wheel = build_wheel(checkout_of(folder), Path(stage))
        named = [line.split("[")[0].strip() for line in files["requirements.txt"].read_text().splitlines()]
        if f"./{wheel.name}" not in named:
            raise UserError(
                f"{files['requirements.txt']} does not name ./{wheel.name}, the wheel of this checkout", key="push"
            )
        chosen = files | {wheel.name: wheel}
        try:
            return upload(
                lambda name: chosen, repo, private=private, revision=revision, repo_type="space", space_sdk=sdk
            )
        except UserError as error:
            raise push_again(error, again, folder) from error


def space_files(folder: Path) -> dict[str, Path]:
    """Path in the repository -> file; hidden files and caches stay at home.

    Raises:
        UserError: no folder of a Space.
    """
    missing = [name for name in ("README.md", "app.py", "requirements.txt") if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} is not a Space: it holds no {', '.join(missing)}", key="push")
    files = {path.relative_to(folder): path for path in sorted(files_below(folder))}
    return {
        inside.as_posix(): path
        for inside, path in files.items()
        if (path.suffix in PUSHED_SUFFIXES or inside.name == _DOCKERFILE)
        and not any(part.startswith("__") for part in inside.parts)
    }


def checkout_of(folder: Path) -> Path:
    """The checkout of this package that `folder` lies in.

    Raises:
        UserError: it lies in none.
    """
    for parent in folder.resolve().parents:
        if (parent / "pyproject.toml").is_file() and (parent / "hf_sam_adapt").is_dir():
            return parent
    raise UserError(
        f"{folder} lies in no checkout of this package, of which a Space brings the wheel along", key="push"
    )


def build_wheel(checkout: Path, folder: Path) -> Path:
    """Build the package's wheel into `folder`, out of a copy, so that no old build gets in and none is left behind.

    Raises:
        UserError: the build failed.
    """
    copy = folder / "checkout"
    copy.mkdir()
    for name in _BUILT_FROM:
        shutil.copy(checkout / name, copy)
    shutil.copytree(checkout / "hf_sam_adapt", copy / "hf_sam_adapt", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(copy)]
    result = subprocess.run(command, capture_output=True, text=True)
    found = list(folder.glob("*.whl"))
    if result.returncode or len(found) != 1:
        reason = (result.stderr.strip().splitlines() or ["no wheel came out"])[-1]
        raise UserError(f"the wheel of {checkout} could not be built: {reason}", key="push")
    return found[0]
