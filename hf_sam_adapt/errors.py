"""The one exception of the package that is meant for the person at the keyboard."""


class UserError(ValueError):
    """Bad input from the user.

    The message is one line: what is wrong, where (file or key), and how to mend it. The command line prints it
    without a traceback and exits with status 2.
    """
