"""The one exception that means "the input is wrong", as opposed to "the program is wrong", and its one line."""

from importlib.util import find_spec


class InputError(ValueError):
    """Bad input from the user: the message is one line that names the file, the record and the way out.

    The command line prints it and exits with status 2; it never shows a stack trace for it.
    """


def one_line(told: object, limit: int = 300) -> str:
    """What another library's error says, in one line of at most ``limit`` characters."""
    return " ".join(str(told).split())[:limit]


def require(extra: str, *packages: str) -> None:
    """Looks whether packages of an extra are installed, without importing them.

    Raises:
        InputError: one is not.
    """
    for package in packages:
        if find_spec(package) is None:
            raise InputError(f"{package} is not installed; run: pip install 'llava-s2[{extra}]'")
