"""The chunked loss against float64 and torch's own, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

from neobert_train.modeling import cross_entropy
from neobert_train.modeling.cross_entropy import sum_cross_entropy


def make(rows, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator).to(dtype).requires_grad_()
        for shape in ((rows, 16), (50, 16), (50,))
    )
    return hidden, weight, bias, torch.randint(0, 50, (rows,), generator=generator)


def reference(hidden, weight, bias, labels):
    leaves = [x.detach().double().requires_grad_() for x in (hidden, weight, bias)]
    scores = F.linear(*leaves)
    loss = F.cross_entropy(scores, labels, reduction="sum")
    (0.25 * loss).backward()
    return loss, (scores.argmax(-1) == labels).sum(), [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 23])
@pytest.mark.parametrize("block", [3, 8])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 8e-3)])
def test_loss_accuracy_and_gradients_are_those_of_float64_in_any_number_of_chunks(
    rows, block, dtype, tolerance, monkeypatch
):
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", 8)
    monkeypatch.setattr(cross_entropy, "_BLOCK_ROWS_ON_CPU", block)
    *leaves, labels = make(rows, dtype)
    loss, num_correct = sum_cross_entropy(*leaves, labels)
    (0.25 * loss).backward()
    expected, expected_correct, grads = reference(*leaves, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    assert num_correct == expected_correct
    for leaf, grad in zip(leaves, grads, strict=True):
        assert leaf.grad.dtype == dtype
        assert (leaf.grad.double() - grad).norm() <= tolerance * grad.norm() + 1e-12


def test_a_label_with_no_probability_at_all_has_a_finite_loss():
    """Scores 200 apart: the probability underflows, its logarithm must not."""
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight, bias = torch.tensor([[200.0], [0.0], [199.0]]), torch.zeros(3)
    loss, num_correct = sum_cross_entropy(hidden, weight, bias, torch.tensor([1]))
    loss.backward()
    assert loss.item() == pytest.approx(200 + torch.tensor(1 + 2.718281828**-1).log().item())
    assert num_correct == 0
    share = 1 / (1 + 2.718281828**-1)
    assert hidden.grad.item() == pytest.approx(200 * share + 199 * (1 - share))


def test_many_chunks_in_bf16_do_not_round_the_weight_gradient_away(monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", 4)
    *leaves, labels = make(2000, torch.bfloat16)
    sum_cross_entropy(*leaves, labels)[0].backward()
    grad = 4 * reference(*leaves, labels)[2][1]
    assert (leaves[1].grad.double() - grad).norm() < 4e-3 * grad.norm()


def test_nothing_is_kept_without_gradients():
    *leaves, labels = make(5)
    with torch.no_grad():
        loss, _ = sum_cross_entropy(*leaves, labels)
    assert not loss.requires_grad


def test_scores_never_exist_for_all_rows(monkeypatch):
    """Of a vocabulary so large that scores are what counts, only a chunk's are in memory."""
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", 4)
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    *leaves, labels = make(64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sum_cross_entropy(*leaves, labels)
    assert sum(kept) == sum(leaf.numel() for leaf in leaves)  # the gradients, and no [64, 50]
