"""The one exception of the package that is meant for the person at the keyboard."""


class UserError(ValueError):
    """Bad input from the user.

    The message is one line: what is wrong, where (file or key), and how to mend it. The command line prints it
    without a traceback and exits with status 2.
    """


def first_line(error: BaseException) -> str:
    """What a library's error says, for a part of our message: its first line, or its kind if it says nothing."""
    said = str(error).strip()
    return said.splitlines()[0][:160] if said else type(error).__name__
