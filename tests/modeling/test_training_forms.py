"""The training objective in every form it runs in, against the formulas in float64.

A form is a device, an attention backend, a precision, and whether blocks are compiled and whether
their activations are kept.
"""

import itertools

import pytest
import torch
from float64_reference import build_random_model, double_state, predict

from neobert_train.batch import Batch
from neobert_train.modeling.attention import BACKENDS, find_obstacle
from neobert_train.models.compilation import find_compiler_obstacle
from neobert_train.models.neobert import NeoBERTEncoder
from neobert_train.objectives.masked_lm import MaskedLM

# The lengths at which a CPU changes how it computes attention, documents of one token, and a tail.
LENGTHS = (1, 130, 7, 1, 40, 16, 129)
NUM_TOKENS = 336
# Attention this sharp makes much of small errors: weights that move by one bf16 rounding move the
# gradients by up to 8 %, in float64 as well.
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 0.1}
# The kernels of GPUs round in other places; of a wrong one the gradients are off by their own size.
MORE_ON_A_GPU = 2.0
BACKENDS_OF_DEVICES = [
    ("cpu", "sdpa"),
    *(pytest.param("cuda", name, marks=pytest.mark.gpu) for name in BACKENDS),
]


def build_batch() -> Batch:
    generator = torch.Generator().manual_seed(2)
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0)
    positions = torch.cat([torch.arange(n) for n in (*LENGTHS, NUM_TOKENS - sum(LENGTHS))])
    masked = torch.randperm(sum(LENGTHS), generator=generator)[:70].sort().values
    return Batch(
        input_ids=torch.randint(1, 61, (NUM_TOKENS,), generator=generator),
        position_ids=positions.int(),
        cu_seqlens=bounds.int(),
        max_seqlen=max(LENGTHS),
        masked_positions=masked,
        labels=torch.randint(1, 61, (70,), generator=generator),
        lane=0,
        lane_state={},
    )


def compute_reference(state, config, batch: Batch) -> tuple[torch.Tensor, int]:
    """Summed cross-entropy and right predictions, one document after the other."""
    bounds = batch.cu_seqlens.tolist()
    documents = [batch.input_ids[a:b] for a, b in itertools.pairwise(bounds)]
    scores = torch.cat([predict(state, config, document) for document in documents])
    scores = scores[batch.masked_positions]
    right = scores.gather(1, batch.labels[:, None])[:, 0]
    loss = (torch.log(torch.exp(scores).sum(-1)) - right).sum()
    return loss, int((scores.argmax(-1) == batch.labels).sum())


@pytest.fixture(scope="module")
def references():
    """By precision: the model with weights of it, the loss, right predictions and gradients."""
    results = {}
    for dtype in TOLERANCES:
        model = build_random_model(4, hidden_size=64, num_attention_heads=2, num_hidden_layers=3)
        model.to(dtype)  # the reference has the rounded weights: only the arithmetic is compared
        state = double_state(model)
        loss, num_correct = compute_reference(state, model.config, build_batch())
        loss.backward()
        gradients = {name: value.grad for name, value in state.items()}
        results[dtype] = (model.state_dict(), loss.detach(), num_correct, gradients)
    return results


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "recomputed"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=["fp32", "bf16"])
@pytest.mark.parametrize(("device", "backend"), BACKENDS_OF_DEVICES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_loss_and_every_gradient_are_those_of_the_formulas(
    device, backend, dtype, compiled, kept, references
):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    place = torch.device(device)
    obstacle = find_obstacle(backend, place, dtype)
    if compiled:
        obstacle = obstacle or find_compiler_obstacle(place)
    if obstacle is not None:
        pytest.skip(f"{backend} in {dtype} on {device}: {obstacle}")
    state, loss, num_correct, gradients = references[dtype]
    model = build_random_model(4, hidden_size=64, num_attention_heads=2, num_hidden_layers=3)
    model.to(place, dtype).train().load_state_dict(state)
    model.model.attention_backend = backend
    if compiled:
        torch._dynamo.reset()
        assert NeoBERTEncoder(model).compile(place)
    if not kept:
        NeoBERTEncoder(model).checkpoint_activations()
    outcome = MaskedLM(NeoBERTEncoder(model)).compute(build_batch().to(place))
    summed, correct = outcome.loss_sum, outcome.sums["accuracy"]
    summed.backward()
    tolerance = TOLERANCES[dtype] * (MORE_ON_A_GPU if device == "cuda" else 1.0)
    assert abs(summed.double().item() - loss.item()) < tolerance * loss.item()
    assert abs(int(correct) - num_correct) <= (0 if dtype == torch.float32 else 2)
    for name, parameter in model.named_parameters():
        error = (parameter.grad.double().cpu() - gradients[name]).norm()
        assert error < tolerance * gradients[name].norm(), (name, error / gradients[name].norm())
