"""A missing extra is told with the line that installs it."""

import pytest

from neobert_train.errors import InputError
from neobert_train.extras import require_packages


def test_what_is_missing_is_named_with_the_line_that_installs_it():
    with pytest.raises(InputError) as error:
        require_packages("evaluation", ("json", "no_such_package", "nor_this"), "embed")
    assert str(error.value) == (
        "embed needs packages that are not installed (no_such_package, nor_this): "
        "`make install` in the repository brings them, or pip install -e '.[evaluation]'"
    )


def test_what_is_there_is_accepted():
    require_packages("evaluation", ("json",), "embed")
