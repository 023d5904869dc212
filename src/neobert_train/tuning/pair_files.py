"""The files that hold pairs and triplets of texts."""

from neobert_train.config.embed_schema import PairsConfig
from neobert_train.data.sources.formats import find_format
from neobert_train.data.sources.listing import describe_left_out, list_paths
from neobert_train.data.sources.rows import READERS, list_row_suffixes
from neobert_train.errors import InputError
from neobert_train.storage.stored_files import Network, StoredFile


def list_pair_files(config: PairsConfig, prefix: str) -> list[StoredFile]:
    """Return the files of a set of data.

    Args:
        config: of the set.
        prefix: of its settings, for messages.

    Raises:
        InputError: a path names nothing to read.
    """
    listing = list_paths(config.paths, Network(), lambda path: find_format(path) in READERS)
    problems = list(listing.problems)
    for file in listing.files:
        if find_format(file.path) not in READERS:
            suffixes = ", ".join(list_row_suffixes())
            problems.append(f"{file.name}: its name must end in {suffixes}")
    if listing.left_out and not listing.files:
        problems.append(f"nothing is read: {describe_left_out(listing.left_out)}")
    if problems:
        raise InputError.from_problems([f"{prefix}paths: {problem}" for problem in problems])
    return listing.files
