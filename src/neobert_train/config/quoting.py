"""Settings in the form in which they are typed: quoted for Hydra, and for a shell."""

import re
import shlex

# Words and numbers become other types; what else Hydra reads as it stands begins like a path.
_PLAIN = re.compile(
    r"(?!(null|true|false|nan|inf)$|\.\d)[A-Za-z_./][\w./-]*", re.ASCII | re.IGNORECASE
)


def to_override(key: str, value: str) -> str:
    """Return `key=value` from which Hydra reads the very text."""
    return f"{key}={value if _PLAIN.fullmatch(value) else quote(value)}"


def quote(value: str) -> str:
    """Return a text in quotes from which Hydra reads it as it is."""
    # A backslash is itself, unless a quote, an interpolation or the end comes after it.
    escaped = re.sub(r"(\\*)(\"|\$\{)", r"\1\1\\\2", value)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped)
    return f'"{escaped}"'


def to_shell(key: str, value: str) -> str:
    """Return `key=value` as one word of a shell's command line."""
    return shlex.quote(to_override(key, value))
