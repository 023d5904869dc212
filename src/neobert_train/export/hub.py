"""Upload of an exported folder to the Hugging Face Hub, and what is there already."""

from collections.abc import Mapping
from pathlib import Path

from neobert_train.hub import REQUEST_SECONDS, HubError, bound_waits, describe_hub_error
from neobert_train.run.folders import list_owned_files

MAIN = "main"


def open_repository(repository: str, private: bool) -> None:
    """Create a repository where it does not exist.

    Args:
        repository: `org/name`.
        private: whether a new one is private.

    Raises:
        HubError: no login, no permission or no network.
    """
    from huggingface_hub import HfApi

    bound_waits(REQUEST_SECONDS)
    try:
        HfApi().create_repo(repository, private=private, exist_ok=True)
    except Exception as error:  # whatever the Hub client or the network raises
        raise HubError(describe_hub_error(error, repository)) from error


def describe_access(repository: str, seconds: float) -> str:
    """Return whose token this is, and whether the repository exists; no request takes longer.

    Raises:
        HubError: no login, or no network.
    """
    from huggingface_hub import HfApi

    bound_waits(seconds)
    try:
        user, is_there = HfApi().whoami()["name"], HfApi().repo_exists(repository)
    except Exception as error:  # whatever the Hub client or the network raises
        raise HubError(describe_hub_error(error, repository)) from error
    return f"{repository} {'exists' if is_there else 'will be created'}; logged in as {user}"


def push_to_hub(
    folder: Path, repository: str, revision: str, title: str, digest: str, private: bool
) -> str:
    """Upload what an export wrote as one commit, to a repository that is created where it is missing.

    Args:
        folder: the export; what else lies in it stays where it is.
        repository: `org/name`.
        revision: the branch; a new one begins empty, without what is on others.
        title: of the commit.
        digest: of the checkpoint's weights, by which `find_published` knows the commit.
        private: whether a new repository is private.

    Returns:
        The address of the commit.

    Raises:
        HubError: no login, no permission or no network; the folder stays where it is.
        InputError: the folder's list of what an export wrote is damaged.
    """
    from huggingface_hub import HfApi

    names = list_owned_files(folder)
    open_repository(repository, private)
    api = HfApi()
    try:
        if revision != MAIN:
            initial = api.list_repo_commits(repository)[-1].commit_id
            api.create_branch(repository, branch=revision, revision=initial, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            allow_patterns=names,
            commit_message=title,
            commit_description=_describe_weights(digest),
        )
    except Exception as error:  # whatever the Hub client or the network raises
        raise HubError(describe_hub_error(error, repository, revision)) from error
    return str(commit)


def find_published(repository: str, digests: Mapping[str, str]) -> set[str]:
    """Return the branches of a repository that have a commit of the weights wanted there.

    A branch that merely exists says nothing: the upload to it may have been interrupted, and another
    run may have made it.

    Args:
        repository: `org/name`.
        digests: of the weights wanted, by branch.

    Raises:
        HubError: the Hub cannot be asked.
    """
    from huggingface_hub import HfApi

    bound_waits(REQUEST_SECONDS)
    api = HfApi()
    try:
        branches = {ref.name for ref in api.list_repo_refs(repository).branches}
        return {
            branch
            for branch in branches & digests.keys()
            if any(
                _describe_weights(digests[branch]) in commit.message
                for commit in api.list_repo_commits(repository, revision=branch)
            )
        }
    except Exception as error:  # whatever the Hub client or the network raises
        raise HubError(describe_hub_error(error, repository)) from error


def _describe_weights(digest: str) -> str:
    return f"sha256 of the checkpoint's weights: {digest}"
