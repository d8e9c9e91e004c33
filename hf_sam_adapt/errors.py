"""The one exception of the package that is meant for the person at the keyboard."""

import sys
from collections.abc import Callable


class UserError(ValueError):
    """Bad input from the user.

    The message is one line: what is wrong, where (file or key), and how to mend it. The command line prints it
    without a traceback and exits with status 2.
    """


def first_line(error: BaseException) -> str:
    """What a library's error says, for a part of our message: its first line, or its kind if it says nothing."""
    said = str(error).strip()
    return said.splitlines()[0][:160] if said else type(error).__name__


def exit_status(action: Callable[[], object]) -> int:
    """Exit status of `action`, its `UserError` printed as one line; `recipes/train.py` ends the same way.

    An action that returns a number sets the status itself.
    """
    try:
        result = action()
    except UserError as error:
        # One that a DataLoader's worker raised arrives with the worker's traceback before its message.
        message = str(error).rsplit("UserError: ", 1)[-1]
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return result if isinstance(result, int) else 0
