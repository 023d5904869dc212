"""Where documents lie in a flat batch."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

Derived = TypeVar("Derived")


class Documents:
    """The documents of a flat batch of T tokens, one after the other.

    What an attention kernel derives from their bounds is derived once per batch and kept here, with
    the batch, so that calls from several threads never see each other's.

    Attributes:
        cu_seqlens: [num_documents + 1] int32 from 0 to T, where documents begin and the last one
            ends; documents of no tokens are allowed.
        max_seqlen: at least the tokens of the longest document.
    """

    def __init__(self, cu_seqlens: Tensor, max_seqlen: int) -> None:
        self.cu_seqlens, self.max_seqlen = cu_seqlens, max_seqlen
        self._derived: dict[Any, Any] = {}

    def derive(self, key: Any, function: Callable[[list[int]], Derived]) -> Derived:
        """Return `function(bounds)`, called once per key; the bounds are read on the host for it."""
        if key not in self._derived:
            self._derived[key] = function(self.cu_seqlens.tolist())
        derived: Derived = self._derived[key]
        return derived
