"""Packages of extras that are missing are told with the command that installs them."""

import pytest

from neobert_train.errors import InputError
from neobert_train.extras import require_packages


def test_a_missing_package_is_told_with_its_install_line():
    require_packages("evaluation", ["json"], "models=[...]")
    message = (
        r"models=\[...\] needs .*\(no_such_package\): pip install 'neobert_train\[evaluation\]'"
    )
    with pytest.raises(InputError, match=message):
        require_packages("evaluation", ["json", "no_such_package"], "models=[...]")
