"""Upload of an exported folder to the Hugging Face Hub."""

from pathlib import Path

from neobert_train.errors import InputError
from neobert_train.folders import list_owned_files


def push_to_hub(folder: Path, repository: str, private: bool) -> str:
    """Create the repository when it does not exist, and upload what an export wrote.

    Args:
        folder: the export; what else lies in it stays where it is.
        repository: `org/name`.
        private: whether a new repository is private.

    Returns:
        The address of the commit.

    Raises:
        InputError: no login, no permission or no network; the folder stays where it is.
    """
    from huggingface_hub import HfApi

    names = list_owned_files(folder)
    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=names,
            commit_message="Export from neobert_train",
        )
    except Exception as error:  # whatever the Hub client or the network raises
        raise InputError(
            f"the upload to {repository} failed ({type(error).__name__}); the export stays in "
            f"{folder}. Log in with `hf auth login`, or set HF_TOKEN, and repeat the command"
        ) from error
    return str(commit)
