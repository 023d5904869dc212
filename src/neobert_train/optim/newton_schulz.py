"""The nearest orthogonal matrix, by the Newton-Schulz iteration of Muon."""

import torch
from torch import Tensor

# Of the polynomial a x + b x^3 + c x^5 of singular values, chosen for its slope at zero; it brings
# them to between 0.7 and 1.2 (https://kellerjordan.github.io/posts/muon).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_SMALLEST_NORM = 1e-7


def orthogonalise(matrices: Tensor, num_steps: int) -> Tensor:
    """Return about U V^T of every matrix U S V^T.

    On a GPU the products are in bf16, elsewhere in the dtype of the matrices, since few CPUs are
    faster in bf16. Matrices are never stacked by processes, so that the result does not depend on
    their number.

    Args:
        matrices: [num_matrices, rows, columns].
        num_steps: of the iteration.

    Returns:
        The same shape and dtype.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices  # the Gram matrix below is that of the shorter side
    # The Frobenius norm bounds the largest singular value, which has to be at most 1.
    norms = torch.linalg.matrix_norm(x, keepdim=True)
    x = x / norms.clamp(min=_SMALLEST_NORM)
    if x.is_cuda:
        x = x.bfloat16()
    for _ in range(num_steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).to(matrices.dtype)


def count_flops(num_matrices: int, rows: int, columns: int, num_steps: int) -> int:
    """Return the operations of `orthogonalise`, two for each multiplication of its products."""
    short, long = sorted((rows, columns))
    return num_matrices * num_steps * (4 * short * short * long + 2 * short**3)
