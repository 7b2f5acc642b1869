"""Publishing a directory as a repository on the hub."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from wishbone.errors import RequestError, one_line

MESSAGE = "Trained with Wishbone"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Upload:
    """A repository to publish into, with the options of `HfApi.upload_folder`."""

    repo_id: str
    token: str | bool | None = None
    private: bool | None = None
    commit_message: str | None = MESSAGE
    create_pr: bool = False
    revision: str | None = None

    def send(self, directory: Path, only: str | None = None) -> str:
        """Upload the files that match the pattern `only`, or all, and return the address of the commit.

        Raises:
            RequestError: the hub refuses, or cannot be reached.
        """
        api = HfApi(token=self.token)
        try:
            repository = api.create_repo(self.repo_id, private=self.private, exist_ok=True).repo_id
            if self.revision is not None and not self.create_pr:
                api.create_branch(repository, branch=self.revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository,
                folder_path=directory,
                commit_message=self.commit_message or MESSAGE,
                create_pr=self.create_pr,
                revision=self.revision,
                allow_patterns=only,
            )
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise RequestError(
                f"{self.repo_id!r} could not be published ({one_line(error)}); log in with `hf auth login` or give "
                "token=, and check the name. What was saved on this machine is unharmed"
            ) from error
        address = commit.pr_url or commit.commit_url
        logger.debug("published %s", address)
        return str(address)
