"""A repository on the hub, or its downloaded copy.

The hub client retries an unreachable hub for most of a minute for each file. So the hub is asked once, with a time
limit, before anything else; if it does not answer, the local copy is used as a directory.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from wishbone.errors import RequestError, one_line

TIMEOUT_SECONDS = 5.0


def find_on_hub(name: str, revision: str | None, *, instead: str, token: str | None = None) -> Path | list[str]:
    """Ask the hub once for the repository `name`; return its file names or, without answer, the local copy's directory.

    Args:
        name: "owner/model".
        revision: branch, tag or commit, or None for the default branch.
        instead: what the user can do if the model is not found; ends the error message.
        token: to ask with; None is the token of `hf auth login`, if there is one.

    Raises:
        RequestError: no such repository or revision, no access, or no hub and no local copy.
    """
    at = f" at revision {revision!r}" if revision else ""
    try:
        info = HfApi().model_info(name, revision=revision, timeout=TIMEOUT_SECONDS, token=token)
        if info.gated:
            hf_hub_download(name, "config.json", revision=revision, etag_timeout=TIMEOUT_SECONDS, token=token)
    except HFValidationError as error:
        raise RequestError(f"{name!r} is neither a path that exists nor a hub id; {instead}") from error
    except GatedRepoError as error:
        raise RequestError(
            f"{name!r} is gated: ask for access on its hub page and log in with `hf auth login`, or {instead}"
        ) from error
    except RevisionNotFoundError as error:
        raise RequestError(f"{name!r} has no revision {revision!r} on the hub; name one that it has") from error
    except RepositoryNotFoundError as error:
        raise RequestError(
            f"{name!r} is neither a path nor a repository on the hub that you have access to (a private one needs "
            f"`hf auth login`); {instead}"
        ) from error
    except (HTTPError, OfflineModeIsEnabled) as error:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(config, str):
            return Path(config).parent
        raise RequestError(f"{name!r}{at} is not on this machine, and {_why(error)}; {instead}") from error
    return [sibling.rfilename for sibling in info.siblings or []]


def _why(error: Exception) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids asking the hub"
    if isinstance(error, HfHubHTTPError):
        return f"the hub answered with an error (HTTP {error.response.status_code})"
    return f"the hub cannot be reached ({one_line(error)})"
