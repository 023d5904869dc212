"""Packages that only some commands need, which pip installs as an extra of this one."""

import importlib.util
from collections.abc import Sequence

from neobert_train.errors import InputError


def require_packages(extra: str, packages: Sequence[str], purpose: str) -> None:
    """Look for packages without importing them.

    Args:
        extra: of neobert_train, which brings them.
        packages: the names under which they are imported.
        purpose: what needs them, as the user wrote it.

    Raises:
        InputError: one is missing; says how to install it.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{purpose} needs packages that are not installed ({', '.join(missing)}): "
            f"`make install` in the repository brings them, or pip install -e '.[{extra}]'"
        )
