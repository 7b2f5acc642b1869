"""Paths as people write them, and the room there: `~` is a home directory; what no file system takes is refused."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from wishbone.errors import RequestError, one_line

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
        os.stat(os.path.join(path, "."))  # looks into a directory, too
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RequestError(f"{_shown(name)} cannot be looked up ({reason}); check the path") from None
    except ValueError:
        raise RequestError(f"{_shown(name)} holds a character that no path may hold; correct the path") from None
    return path


def of_windows(name: str) -> str | None:
    """What to do about a path with a drive's letter, such as `C:\\pairs.jsonl`; None where it has none."""
    found = re.fullmatch(r"([A-Za-z]):[\\/]+(.*)", name)
    if not found or os.name == "nt":
        return None
    below = found[2].replace("\\", "/")
    return f"this is a path of Windows; in the Windows Subsystem for Linux it is /mnt/{found[1].lower()}/{below}"


def _shown(name: str | Path) -> str:
    """The name in quotes; of a long one both ends."""
    text = os.fspath(name)
    return repr(text if len(text) <= 2 * SHOWN else f"{text[:SHOWN]} ... {text[-SHOWN:]}")


def files_below(directory: Path) -> Iterator[Path]:
    """Everything below a directory that is no directory, however deep it lies.

    Links to directories are given and not followed. A directory that cannot be listed is given itself.
    """
    waiting = [directory]
    while waiting:
        folder = waiting.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError:
            yield folder
            continue
        for entry in entries:
            if entry.is_symlink() or not _is_directory(entry):
                yield Path(entry.path)
            else:
                waiting.append(Path(entry.path))


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def writable_again(error: Exception) -> str:
    """Say what lets a run write again after an error, as the first half of a sentence."""
    forbidden = isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    return "Let the directory be written to" if forbidden else "Make room on the disk"


def unwritten(place: Path, error: Exception, instead: str = "name another place") -> str:
    """Say that something cannot be written, why, and what to do.

    Args:
        place: of the file or directory.
        error: of the system, or a library's that quotes one.
        instead: what may be done instead.
    """
    error = _of_system(error)
    reason, remedy = error.strerror or one_line(error), ""
    there = next(path for path in (place, *place.absolute().parents) if os.path.lexists(path))
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None):
        reason += f": {room_at(there)}, and it needs more"
        remedy = "make room there, or "
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "let it be written to, or "
    elif error.errno == errno.ENOTDIR:
        reason = f"{there.name} is not a directory"
    elif error.errno == errno.ENOENT and not place.parent.is_dir():
        remedy = f"make the directory {str(place.parent)!r}, or "
    return f"{str(place)!r} cannot be written ({reason}); {remedy}{instead}"


def _of_system(error: Exception) -> OSError:
    """The error of the system behind one of a library, as safetensors quotes it: `... (os error 28)`."""
    if isinstance(error, OSError):
        return error
    quoted = re.search(r"os error (\d{1,4})", str(error))
    return OSError(int(quoted[1]), os.strerror(int(quoted[1]))) if quoted else OSError(one_line(error))


def room_at(directory: Path) -> str:
    """Say how much room a file system has left, as a clause: `3.7 MiB are free`, or that it takes no more files.

    Raises:
        OSError: the directory is not there.
    """
    system = os.statvfs(directory)
    if system.f_files and not system.f_favail:
        return "its file system can hold no more files, whatever their size (no inode is free)"
    return f"{shutil.disk_usage(directory).free / 2**20:,.1f} MiB are free"
