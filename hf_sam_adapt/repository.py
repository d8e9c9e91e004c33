"""Files of models and adapters, in local folders and on the Hub."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import _CACHED_NO_EXIST, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import safe_open

from .errors import UserError, one_line
from .files import check_domain_name


DOMAINS = "domains"  # entry of the metadata of a pool's router file
_HUB_NAME = re.compile(r"(?P<id>[^/@]+(/[^/@]+)?)(@(?P<revision>refs/[^/]+/[^/]+|[^/@]+))?(/(?P<folder>[^/@][^@]*))?")


@dataclass(frozen=True)
class HubName:
    """`owner/name`, with a revision `owner/name@v1`, with a folder in it `owner/name/folder`, or with both."""

    id: str
    revision: str | None = None
    folder: str | None = None

    @classmethod
    def parse(cls, path: str) -> HubName:
        """Raises `UserError` where `path` has another form."""
        match = _HUB_NAME.fullmatch(path)
        if match is None:
            raise UserError(f"{path!r} is neither a folder nor the name of a repository, owner/name")
        return cls(match["id"], match["revision"], match["folder"])


def find_file(path: str, name: str, revision: str | None = None) -> Path | None:
    """A file in a local folder or a Hub repository (downloaded, or from the cache when offline); None if absent.

    Args:
        path: folder, or what `HubName` describes.
        revision: branch, tag or commit, before the one in `path`.

    Raises:
        UserError: neither a folder nor a repository that can be read; or the Hub cannot be reached, and the cache does
            not tell whether the file exists.
    """
    if Path(path).is_dir():
        local = Path(path) / name
        return local if local.is_file() else None
    hub = HubName.parse(path)
    revision = revision or hub.revision
    file = f"{hub.folder}/{name}" if hub.folder else name
    try:
        return Path(hf_hub_download(hub.id, file, revision=revision))
    except LocalEntryNotFoundError as error:
        if try_to_load_from_cache(hub.id, file, revision=revision) is _CACHED_NO_EXIST:
            return None
        if constants.HF_HUB_OFFLINE:
            raise UserError(
                f"{path} is neither a folder nor a repository whose {file} is in the cache, and HF_HUB_OFFLINE is set"
            ) from error
        raise UserError(f"{_trouble(error.__cause__ or error)}, and {file} is not in the cache", where=path) from error
    except EntryNotFoundError:
        return None
    except RevisionNotFoundError as error:
        raise UserError(f"the repository has no revision {revision!r}", where=path) from error
    except GatedRepoError as error:
        raise UserError(
            "its authors ask for consent",
            where=path,
            fix="accept its terms on its page on the Hub, and log in with `hf auth login`",
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"{path} is neither a folder nor a repository on the Hub that can be read",
            fix="if it is private, log in with `hf auth login`",
        ) from error
    except (HTTPError, OSError) as error:
        refused = isinstance(error, HfHubHTTPError) and error.response.status_code == 401
        fix = "log in with `hf auth login`" if refused else "nothing is lost, try again"
        raise UserError(_trouble(error), where=path, fix=fix) from error


def commit_of(file: Path) -> str | None:
    """The commit that a downloaded file is of, for asking for others of the same; None for a file of the user's."""
    return next((folder.name for folder in file.parents if folder.parent.name == "snapshots"), None)


def _trouble(error: BaseException) -> str:
    """What went wrong with a request, in a few words and without its address, which may be signed."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return "the Hub does not accept the token (401)"
        return f"the Hub answers {status}"
    if isinstance(error, HTTPError):
        return f"the connection to {constants.ENDPOINT} failed ({type(error).__name__})"
    return one_line(error)


def domains_of(weights: Path) -> list[str] | None:
    """The domains that a router's file names; None for the file of anything else.

    Raises:
        UserError: what it names cannot be domains, whose folders lie in the pool's.
    """
    with safe_open(weights, framework="pt") as file:
        listed = (file.metadata() or {}).get(DOMAINS)
    if listed is None:
        return None
    domains = json.loads(listed)
    if not isinstance(domains, list):
        raise UserError(f"{weights} does not list its domains", fix="the file is damaged")
    for index, name in enumerate(domains):
        check_domain_name(name, domains[:index])
    return domains


def is_local(name: str) -> bool:
    """Whether what a recipe names is a folder or file of this machine rather than on the Hub."""
    path = Path(name).expanduser()
    other = "@" not in name and name.count("/") != 1  # a revision may hold slashes
    return path.exists() or path.is_absolute() or other or name.startswith(".")
