"""Commits to the Hub: what may be published, and uploads that are tried again while the Hub is busy."""

from __future__ import annotations

import json
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_session,
    get_token,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError, safe_open

from .data.walk import is_leftover
from .errors import UserError, first_line
from .repository import domains_of, is_local
from .sam.base_names import TINY


T = TypeVar("T")

# Everything else (checkpoints, logs, pickles, a stray token file) stays where it is.
PUSHED_SUFFIXES = (".safetensors", ".json", ".yaml", ".md", ".png")
# Names of the user's images, which may be patients'; the recipe's seed draws the same splits again.
KEPT_AT_HOME = ("splits.json",)
_EVAL_RESULTS = ".eval_results"
# What runs, adapters and models consist of; what of an earlier one is no more would be loaded in place of the new.
_OWN_FILES = re.compile(
    r"(adapter_config|config|generation_config|preprocessor_config|processor_config|metrics|continual|doctor)\.json"
    r"|(adapter_)?model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|recipe\.yaml"
    r"|(samples|curve|confusion|experts|f_measure|matrix|curves)\.png|\.eval_results/[^/]+\.yaml"
)
_PATIENCE = 60.0  # seconds of new tries after the first failure
_SILENCE = 60.0  # seconds without a byte after which a connection counts as lost; the client would wait for ever
_PNG = b"\x89PNG\r\n\x1a\n"


def upload_folder(
    folder: str | Path,
    repo: str | None = None,
    *,
    texts: Callable[[dict[str, Path], str, Path], dict[str, Path]] | None = None,
    private: bool = True,
    revision: str | None = None,
    token: str | None = None,
    again: str | None = None,
) -> str:
    """`hub.push_folder` of a folder whose texts are published as `texts` makes them; None = as they are.

    Args:
        texts: from `pushed_files`, the repository's full name and an empty folder to path in the repository -> file.

    Returns:
        Address of the commit.

    Raises:
        UserError: nothing to publish, a damaged file, or the Hub refused it or could not be reached.
    """
    folder = Path(folder)
    files = pushed_files(folder)
    repo = repo or folder.resolve().name
    check_can_push(repo, token)
    if not private and "samples.png" in files:
        print(f"note: {folder / 'samples.png'} shows images of the data set to everybody", file=sys.stderr)
    if again is None:
        flags = ("" if private else " --public") + (f" --revision {shlex.quote(revision)}" if revision else "")
        again = f"hf-sam-adapt push {shlex.quote(str(folder))} --repo {repo}{flags}"
    try:
        with tempfile.TemporaryDirectory() as stage:
            return upload(
                lambda name: files | (texts(files, name, Path(stage)) if texts else {}),
                repo,
                private=private,
                revision=revision,
                token=token,
            )
    except UserError as error:
        raise push_again(error, again, folder) from error


def push_again(error: UserError, command: str, folder: Path | None = None) -> UserError:
    """The error of a push, with what to type once its cause is gone, and that nothing happened to `folder`."""
    said = error.fix or error.problem
    said = said if folder is None else f"{said}. {folder} is untouched"
    again = f"push again with: {command}"
    if error.fix:
        return error.replace(key="push", fix=f"{said}; {again}")
    return error.replace(key="push", problem=said, fix=again)


def check_can_push(repo: str, token: str | None = None) -> None:
    """Find without a request what would make every push fail.

    Raises:
        UserError: no valid name of a repository, no token, or no network wanted.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo!r} is not a repository name, owner/name ({first_line(error)})", key="push") from error
    if constants.HF_HUB_OFFLINE:
        raise _offline(key="push")
    if (token or get_token()) is None:
        raise UserError("no token", key="push", fix="log in with `hf auth login`, or set HF_TOKEN")


def pushed_files(folder: Path) -> dict[str, Path]:
    """Path in the repository -> file, of what may be published.

    Raises:
        UserError: no run, adapter, pool or model there; it names no base model; or a file is not what its name says.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder", key="push", fix="name a run, an adapter, a pool or a model folder"
        )
    places = ["", _EVAL_RESULTS, *_check_contents(folder)]
    files = {}
    for place in places:
        inside = folder / place
        for path in sorted(inside.iterdir()) if inside.is_dir() else ():
            hidden = is_leftover(path.name) or path.name in KEPT_AT_HOME
            if path.is_file() and path.suffix in PUSHED_SUFFIXES and not hidden:
                _check_format(path)
                files[f"{place}/{path.name}" if place else path.name] = path
    return files


def upload(
    files: Callable[[str], dict[str, Path]],
    repo: str,
    *,
    private: bool = True,
    revision: str | None = None,
    token: str | None = None,
    repo_type: str = "model",
    space_sdk: str | None = None,
) -> str:
    """Commit files to a repository at once, creating it if needed; tried again while the Hub is busy or away.

    Args:
        files: from the repository's full name to path in the repository -> file.
        repo_type, space_sdk: `model`, or `space` and what it runs on.

    Returns:
        Address of the commit, which is printed too.

    Raises:
        UserError: what the Hub or the network said, in one line.
    """
    api = HfApi(token=token, library_name="hf-sam-adapt")

    def commit() -> CommitInfo:
        # Not upload_folder, which may make several commits. A commit whose answer was lost is not made twice: the
        # client leaves out files that the repository holds already.
        operations: list[CommitOperationAdd | CommitOperationDelete]
        operations = [CommitOperationAdd(inside, str(path)) for inside, path in chosen.items()]
        operations += [CommitOperationDelete(inside) for inside in stale]
        return api.create_commit(
            name, operations, commit_message="Upload with hf_sam_adapt", repo_type=repo_type, revision=revision
        )

    with _quiet():
        created = _patiently(
            lambda: api.create_repo(repo, private=private, exist_ok=True, repo_type=repo_type, space_sdk=space_sdk)
        )
        name = created.repo_id
        chosen = files(name)
        if revision is not None:
            _patiently(lambda: api.create_branch(name, branch=revision, repo_type=repo_type, exist_ok=True))
        stale: list[str] = []
        if repo_type == "model":
            there = _patiently(lambda: api.list_repo_files(name, revision=revision, repo_type=repo_type))
            stale = _of_an_earlier_push(there, chosen)
        done = _patiently(commit)
        seen = "private" if _patiently(lambda: api.repo_info(name, repo_type=repo_type)).private else "public"
    if stale:
        print(f"Removed {len(stale)} files there that an earlier push had left: {', '.join(stale)}")
    print(f"Pushed {len(chosen)} files to {created} ({seen}): {done.commit_url}")
    return done.commit_url


def _of_an_earlier_push(there: Sequence[str], chosen: Collection[str]) -> list[str]:
    """The files in a repository that make up a run, an adapter or a pool, and are not of the one that comes now."""
    domains = {str(Path(path).parent) for path in there if path.endswith("/adapter_config.json")}
    own = [path for path in there if _OWN_FILES.fullmatch(path) or str(Path(path).parent) in domains]
    return sorted(set(own) - set(chosen))


def _check_contents(folder: Path) -> list[str]:
    """The folders of a pool's domains, none for another complete adapter or model."""
    config_file, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    if not config_file.is_file():
        names = ("config.json", "model.safetensors"), ("config.json", "model.safetensors.index.json")
        if any(all((folder / name).is_file() for name in both) for both in names):
            return []
        part = next((name for name in ("pool", "tasks") if (folder / name).is_dir()), None)
        hint = (
            None if part is None else f"of a continual run push {folder / part}{'' if part == 'pool' else '/<task>'}"
        )
        raise UserError(f"{folder} holds neither an adapter nor a model with safetensors", key="push", fix=hint)
    if not weights.is_file():
        raise UserError(f"{folder} holds adapter_config.json but no adapter_model.safetensors", key="push")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{config_file} is not JSON ({first_line(error)})", key="push") from error
    base = config.get("base_model_name_or_path")
    if not base:
        raise UserError(
            f"{config_file} names no base model", key="push", fix="set base_model_name_or_path to its Hub id"
        )
    if base != TINY and is_local(base):
        print(
            f"note: {config_file} names the folder {base} as base model, which nobody else has: push that too and set "
            "base_model_name_or_path to its Hub id",
            file=sys.stderr,
        )
    if not config.get("pool"):
        return []
    _check_format(weights)
    domains = domains_of(weights) or []
    for domain in domains:
        if not (folder / domain / weights.name).is_file() or not (folder / domain / config_file.name).is_file():
            raise UserError(f"the pool {folder} is incomplete: {domain}/ holds no adapter", key="push")
    return domains


def _check_format(path: Path) -> None:
    """A file of another format under an allowed name (a pickle, half a file) is an error."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                return
        content = path.read_bytes()
        if path.suffix == ".png":
            fine = content.startswith(_PNG)
        else:
            text = content.decode("utf-8")
            fine = path.suffix != ".json" or json.loads(text) is not None
    except (SafetensorError, ValueError):
        fine = False
    if not fine:
        raise UserError(f"{path} is not a {path.suffix[1:]} file", key="push", fix="remove or repair it")


@contextmanager
def _quiet() -> Iterator[None]:
    """The client's own reports of each try end in one error of ours; progress is for people."""
    level, bars = hub_logging.get_verbosity(), not are_progress_bars_disabled()
    hub_logging.set_verbosity_error()
    if bars and not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)
        if bars:
            enable_progress_bars()


def _patiently(action: Callable[[], T]) -> T:
    """`action()`, called again for a while after 429, a server's error or a lost connection.

    The client itself does so for the content of files, not for creating a repository or the commit.
    """
    start, wait = time.monotonic(), 1.0
    while True:
        session = get_session()
        session.timeout = session.timeout if session.timeout.read is not None else _SILENCE
        try:
            return action()
        except (HTTPError, OSError, RuntimeError, ValueError) as raised:
            # Failed uploads of large files arrive in a RuntimeError, which is nobody's own otherwise.
            error = raised.__cause__ if isinstance(raised, RuntimeError) else raised
            if not isinstance(error, (HTTPError, OSError, ValueError)):
                raise
            status = _status(error)
            lost = status is None and isinstance(error, HTTPError)
            passing = lost or status in (408, 429) or (status or 0) >= 500
            pause = _retry_after(error) or wait
            if not passing or time.monotonic() - start + pause > _PATIENCE:
                raise _refusal(error) from raised
        time.sleep(pause)
        wait = min(2 * wait, 16.0)


def _status(error: BaseException) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _retry_after(error: BaseException) -> float | None:
    if not isinstance(error, HfHubHTTPError):
        return None
    value = error.response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None


def _refusal(error: BaseException) -> UserError:
    """What went wrong and what to do about it; never with an address, which may be signed."""
    status = _status(error)
    if status is None:
        if isinstance(error, OfflineModeIsEnabled):
            return _offline()
        if isinstance(error, HTTPError):
            return UserError(f"the connection to {constants.ENDPOINT} failed ({type(error).__name__}: {error})")
        return UserError(str(error))
    said = error.server_message or f"status {status}"  # type: ignore[attr-defined]
    if status == 401:
        return UserError("the Hub does not accept the token (401)", fix="log in with `hf auth login`")
    if status == 403:
        return UserError(f"the token may not write there (403: {said})", fix="take one with write access to it")
    if status == 404:
        return UserError(f"there is no such repository or branch, or the token may not see it (404: {said})")
    if status == 429:
        return UserError("the Hub has had too many requests from you (429)", fix="wait a while")
    if status >= 500:
        return UserError(f"the Hub is out of order ({status}: {said})")
    return UserError(f"the Hub refused it ({status}: {said})")


def _offline(key: str | None = None) -> UserError:
    return UserError("HF_HUB_OFFLINE is set", key=key, fix="unset it to reach the Hub")
