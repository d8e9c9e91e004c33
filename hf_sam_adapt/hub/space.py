"""Publishing a Space: its folder, and the wheel of this package that its `requirements.txt` names."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Literal

from huggingface_hub import CardData, RepoCard, metadata_load

from ..data.walk import files_below
from ..errors import UserError
from ..upload import check_can_push, push_again, upload


SPACE_SUFFIXES = (".py", ".txt", ".md", ".png", ".jpg", ".json", ".yaml", ".safetensors")
SpaceSdk = Literal["docker", "gradio"]
_DOCKERFILE = "Dockerfile"
_BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE")


def push_space(
    folder: str | Path,
    repo: str | None = None,
    *,
    private: bool = True,
    revision: str | None = None,
    sdk: SpaceSdk | None = None,
) -> str:
    """Publish a Space with the package of the checkout that it lies in, in one commit.

    Args:
        folder: with `app.py`, a `README.md` whose head names the `sdk`, and a `requirements.txt` that names the wheel
            as a file.
        repo: `owner/name`; `name` is in the account of the token, None is the folder's name there.
        private: of a repository that is created; one that exists stays as it is.
        revision: branch, created from `main` if it does not exist.
        sdk: what it runs on in place of the `sdk` of its README. A Docker Space installs the wheel. A Gradio Space is
            built with `requirements.txt` alone, so it gets the package's files beside `app.py` and the names of what
            they need.

    Returns:
        Address of the commit.

    Raises:
        UserError: no Space there, no checkout around it, another wheel than the one that is named, or the Hub refused.
    """
    folder = Path(folder)
    files = space_files(folder)
    head = metadata_load(files["README.md"]) or {}
    if head.get("sdk") is None:
        raise UserError(
            f"{folder / 'README.md'} names no sdk in its head", key="push", fix="add `sdk: docker` or `sdk: gradio`"
        )
    repo = repo or folder.resolve().name
    check_can_push(repo)
    flags = ("" if private else " --public") + (f" --revision {shlex.quote(revision)}" if revision else "")
    flags += f" --space_sdk {sdk}" if sdk else ""
    sdk = sdk or head["sdk"]
    again = f"hf-sam-adapt push {shlex.quote(str(folder))} --repo {repo} --repo_type space{flags}"
    with tempfile.TemporaryDirectory() as stage:
        wheel = build_wheel(checkout_of(folder), Path(stage))
        named = [line.split("[")[0].strip() for line in files["requirements.txt"].read_text().splitlines()]
        if f"./{wheel.name}" not in named:
            raise UserError(
                f"{files['requirements.txt']} does not name ./{wheel.name}, the wheel of this checkout", key="push"
            )
        chosen = gradio_files(files, wheel, Path(stage)) if sdk == "gradio" else files | {wheel.name: wheel}
        try:
            return upload(
                lambda name: chosen, repo, private=private, revision=revision, repo_type="space", space_sdk=sdk
            )
        except UserError as error:
            raise push_again(error, again, folder) from error


def gradio_files(files: dict[str, Path], wheel: Path, stage: Path) -> dict[str, Path]:
    """The files of a Docker Space as those of a Gradio one, which can run on ZeroGPU.

    Args:
        files: path in the repository -> file.
        wheel: of this package.
        stage: a folder for what is written anew.

    Raises:
        UserError: `requirements.txt` does not pin gradio, whose version the head names.
    """
    requirements = files["requirements.txt"].read_text().split()
    pins = dict(line.split("==") for line in requirements if "==" in line)
    if "gradio" not in pins:
        raise UserError(f"{files['requirements.txt']} does not pin gradio", key="push", fix="add gradio==VERSION")
    unpacked = stage / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    (metadata,) = unpacked.glob("*.dist-info/METADATA")
    # ZeroGPU has its own choice of torch, so that is not pinned; the builder takes gradio from the head.
    needed = [
        line for line in requirements_of(metadata.read_text(), ("train", "demo")) if not line.startswith("gradio")
    ]
    written = stage / "gradio"
    written.mkdir()
    pinned = [line for line in requirements if "==" in line and not line.startswith(("gradio", "torch"))]
    (written / "requirements.txt").write_text("\n".join([*needed, *pinned]) + "\n")
    card = RepoCard.load(files["README.md"], ignore_metadata_errors=True)
    head = card.data.to_dict() | {"sdk": "gradio", "sdk_version": pins["gradio"], "app_file": "app.py"}
    head = {key: value for key, value in head.items() if key not in ("app_port", "suggested_hardware")}
    card.data = CardData(**head, suggested_hardware="zero-a10g")
    card.save(written / "README.md")
    package = {
        path.relative_to(unpacked).as_posix(): path
        for path in sorted(unpacked.rglob("*"))
        if path.is_file() and metadata.parent not in path.parents
    }
    kept = {inside: path for inside, path in files.items() if inside != _DOCKERFILE}
    return kept | package | {path.name: path for path in written.iterdir()}


def requirements_of(metadata: str, extras: tuple[str, ...]) -> list[str]:
    """What a wheel's METADATA asks for, by itself and with `extras`, without its own name."""
    found = []
    for line in metadata.splitlines():
        if line.startswith("Requires-Dist: "):
            requirement, _, marker = line.removeprefix("Requires-Dist: ").partition("; ")
            wanted = not marker or any(f'extra == "{extra}"' in marker for extra in extras)
            if wanted and not requirement.startswith("hf-sam-adapt"):
                found.append(requirement)
    return list(dict.fromkeys(found))


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
        if (path.suffix in SPACE_SUFFIXES or inside.name == _DOCKERFILE)
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
