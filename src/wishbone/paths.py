"""Paths as people write them: `~` is a home directory, and what no file system takes is refused in words."""

from __future__ import annotations

import os
from pathlib import Path

from wishbone.errors import RequestError

SHOWN = 80


def user_path(name: str | Path) -> Path:
    """Return the path with `~` replaced. Whether something is there remains to be seen.

    Raises:
        RequestError: `~name` of a user who is not known, a name that is too long or holds what no name may hold, links
            in a circle, or a directory that may not be searched.
    """
    try:
        path = Path(name).expanduser()
    except RuntimeError:
        raise RequestError(
            f"{_shown(name)}: there is no home directory of such a user; write the path without ~"
        ) from None
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RequestError(f"{_shown(name)} cannot be looked up ({reason}); check the path") from None
    except ValueError:
        raise RequestError(f"{_shown(name)} holds a character that no path may hold; correct the path") from None
    return path


def _shown(name: str | Path) -> str:
    """The name in quotes; of a long one both ends."""
    text = os.fspath(name)
    return repr(text if len(text) <= 2 * SHOWN else f"{text[:SHOWN]} ... {text[-SHOWN:]}")
