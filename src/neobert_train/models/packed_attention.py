"""Our attention within packed documents, as a choice among those of transformers."""

import math
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from neobert_train.modeling.attention import attend
from neobert_train.modeling.documents import Documents

PACKED = "neobert_train_packed"


def attend_packed(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: tuple[Documents, str],
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within packed documents, as transformers calls its attention functions.

    Args:
        module: not used.
        query, key, value: [1, heads, T, head_size]; keys and values may have fewer heads.
        attention_mask: none is needed.
        packing: where documents lie among the T tokens, and a name in `modeling.attention.BACKENDS`.
        scaling: of the scores; 1 / sqrt(head_size) by default.
        sliding_window: cannot be had.

    Returns:
        [1, T, heads, head_size], and no weights of attention.
    """
    if sliding_window is not None or getattr(module, "is_causal", False):
        raise NotImplementedError("tokens attend to all of their document")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1:
        k, v = (x.repeat_interleave(repeats, dim=1) for x in (k, v))
    if scaling is not None:
        factor = scaling * math.sqrt(q.shape[-1])
        q = q if math.isclose(factor, 1.0, rel_tol=1e-6) else q * factor
    return attend(q, k, v, *packing)[None], None


ALL_ATTENTION_FUNCTIONS.register(PACKED, attend_packed)
