"""Files of models and adapters, in local folders and on the Hub."""

from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from .errors import UserError


def find_file(path: str, name: str, revision: str | None = None) -> Path | None:
    """A file in a local folder or a Hub repository (downloaded, or from the cache when offline); None if absent.

    Args:
        path: folder, Hub id `owner/name`, or `owner/name/folder` in such a repository.

    Raises:
        UserError: neither a folder nor a repository that can be read.
    """
    if Path(path).is_dir():
        local = Path(path) / name
        return local if local.is_file() else None
    *repository, inside = path.split("/", 2) if path.count("/") > 1 else (path, "")
    try:
        found = hf_hub_download("/".join(repository), f"{inside}/{name}" if inside else name, revision=revision)
        return Path(found)
    except (LocalEntryNotFoundError, EntryNotFoundError):
        return None
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(f"{path} is neither a folder nor a repository on the Hub that can be read") from error
