"""The one exception of the package that is meant for the person at the keyboard."""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any


# What the extras of pyproject.toml install, by the names that are imported.
EXTRAS = {
    "train": ("datasets", "evaluate", "matplotlib", "psutil", "rich", "scipy", "tifffile"),
    "demo": ("gradio",),
    "mcp": ("mcp",),
    "instances": ("pycocotools",),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "volumes": ("nibabel", "pydicom"),
    "geo": ("pyogrio", "rasterio", "shapely", "tifffile"),
}


class UserError(ValueError):
    """Bad input from the user.

    As text it is one line: where, what is wrong, and how to fix it. The command line prints it without a traceback
    and exits with status 2.

    Args:
        problem: what is wrong.
        key: the recipe key or flag that it is about.
        where: the file or other place.
        fix: what the user can do.
        code: a stable name of the kind of error, for programs; unset = that of the key.
    """

    def __init__(
        self,
        problem: str,
        *,
        key: str | None = None,
        where: object = None,
        fix: str | None = None,
        code: str | None = None,
    ) -> None:
        self.problem, self.key, self.fix = problem, key, fix
        self.where = None if where is None else str(where)
        self._code = code
        place = "".join(f"{part}: " for part in (key, self.where) if part)
        super().__init__(f"{place}{problem}{f'; {fix}' if fix else ''}")

    @property
    def code(self) -> str:
        return self._code or (self.key or "input").split(",")[0].replace("_", "-").replace(".", "-")

    @property
    def fields(self) -> dict[str, Any]:
        """What it was made of; the code only where it was given."""
        return {
            "problem": self.problem,
            "key": self.key,
            "where": self.where,
            "fix": self.fix,
            "code": self._code,
        }

    def replace(self, **changes: Any) -> "UserError":
        """The same error with other fields, for who knows more about its place than the one who raised it."""
        return UserError(**{**self.fields, **changes})

    def within(self, place: object) -> "UserError":
        """The same error in a larger place, such as a file of a data set."""
        return self.replace(where=f"{place}: {self.where}" if self.where else place)

    def __reduce__(self) -> tuple:
        return _again, (self.fields,)


def _again(fields: dict[str, Any]) -> UserError:
    return UserError(**fields)


def require_extra(extra: str, user: str) -> None:
    """Raise `UserError` unless the packages of an extra of this package are installed, which `user` needs."""
    missing = [name for name in EXTRAS[extra] if find_spec(name) is None]
    if missing:
        raise _not_installed(user, missing, extra)


def _not_installed(user: str, packages: list[str], extra: str) -> UserError:
    verb = "is" if len(packages) == 1 else "are"
    return UserError(
        f"{user} needs {', '.join(packages)}, which {verb} not installed",
        fix=f"run pip install 'hf-sam-adapt[{extra}]'",
        code="missing-extra",
    )


def first_line(error: BaseException) -> str:
    """What a library's error says, for a part of our message: its first line, or its kind if it says nothing."""
    said = str(error).strip()
    return said.splitlines()[0][:160] if said else type(error).__name__


def one_line(error: BaseException) -> str:
    """What a library's error says, on one line."""
    return " ".join(str(error).split())


def exit_status(action: Callable[[], object]) -> int:
    """Exit status of `action`, its `UserError` printed as one line; `recipes/train.py` ends the same way.

    So is what the system refuses, such as a full disk; errors of connections stay as they are. An action that returns
    a number sets the status itself.
    """
    try:
        result = _with_extra_named(action)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.strerror is None or isinstance(error, ConnectionError):
            raise
        file = error.filename2 or error.filename  # of two, where a file was to go
        print(f"error: {'' if file is None else f'{file}: '}{error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return result if isinstance(result, int) else 0


def _with_extra_named(action: Callable[[], object]) -> object:
    """The result of `action`; that a package of an extra is missing where it is first used becomes a `UserError`."""
    try:
        return action()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extra = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
        if extra is None:
            raise
        raise _not_installed("this", [package], extra) from error
