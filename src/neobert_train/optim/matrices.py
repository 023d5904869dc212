"""How a parameter is taken apart into the matrices that an optimiser of whole matrices works on."""

import math
from dataclasses import dataclass

from torch import Tensor

from neobert_train.errors import InputError


@dataclass(frozen=True)
class MatrixLayout:
    """How the rows of a weight [num_rows, num_columns] belong to matrices of their own.

    Two examples, of queries, keys and values in one weight [3 * hidden_size, hidden_size]:

        MatrixLayout((3, num_heads, head_size), apart=(0,), heads=1)   all of q, then all of k, then v
        MatrixLayout((num_heads, 3, head_size), apart=(1,), heads=0)   q, k and v of head 0, of head 1

    Attributes:
        rows: sizes of the dimensions that the rows are viewed as; their product is `num_rows`.
        apart: those dimensions along which independent matrices lie; none for a single matrix.
        heads: the dimension of attention heads; None where the rows are not those of heads.
    """

    rows: tuple[int, ...]
    apart: tuple[int, ...] = ()
    heads: int | None = None

    def group_heads(self, heads_per_matrix: int | None) -> "MatrixLayout":
        """Return the layout whose matrices hold so many heads each; None leaves all together.

        Raises:
            InputError: the heads do not divide evenly.
        """
        if self.heads is None or heads_per_matrix is None:
            return self
        at, num_heads = self.heads, self.rows[self.heads]
        if num_heads % heads_per_matrix:
            raise InputError(
                f"optimizer.heads_per_matrix={heads_per_matrix} does not divide the model's "
                f"{num_heads} heads"
            )
        divided = (num_heads // heads_per_matrix, heads_per_matrix)
        moved = tuple(dim + (dim > at) for dim in self.apart)
        return MatrixLayout(
            (*self.rows[:at], *divided, *self.rows[at + 1 :]), tuple(sorted((*moved, at)))
        )

    @property
    def num_matrices(self) -> int:
        """Number of matrices; each has the same shape."""
        return math.prod(self.rows[dim] for dim in self.apart)

    def take_apart(self, weight: Tensor) -> Tensor:
        """Return [num_matrices, num_rows / num_matrices, num_columns] of [num_rows, num_columns]."""
        viewed = weight.reshape(*self.rows, -1).permute(*self._order, len(self.rows))
        return viewed.reshape(self.num_matrices, -1, viewed.shape[-1])

    def put_together(self, matrices: Tensor) -> Tensor:
        """Return [num_rows, num_columns] of what `take_apart` returned."""
        columns = matrices.shape[-1]
        viewed = matrices.reshape(*(self.rows[dim] for dim in self._order), columns)
        places = [self._order.index(dim) for dim in range(len(self.rows))]
        return viewed.permute(*places, len(self.rows)).reshape(-1, columns)

    @property
    def _order(self) -> list[int]:
        """The dimensions of the rows with those that lie apart in front."""
        within = [dim for dim in range(len(self.rows)) if dim not in self.apart]
        return [*self.apart, *within]
