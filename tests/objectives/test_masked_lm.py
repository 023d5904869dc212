"""What is predicted: the hidden states of masked tokens alone, without a word from the device."""

import pytest
import torch
import torch.nn.attention.varlen
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from neobert_train.batch import Batch
from neobert_train.modeling import attention, modeling_neobert
from neobert_train.modeling.configuration_neobert import NeoBERTConfig
from neobert_train.modeling.heads import NeoBERTForMaskedLM
from neobert_train.models.neobert import NeoBERTEncoder
from neobert_train.objectives.masked_lm import MaskedLM


def step_without_numbers(backend: str) -> dict[str, torch.dtype]:
    """Take a step of 65,536 tokens with shapes alone; returns the dtypes of gradients by name."""
    with FakeTensorMode():
        config = NeoBERTConfig(num_hidden_layers=2)
        network = NeoBERTForMaskedLM._from_config(config, dtype=torch.bfloat16)
        network.model.attention_backend = backend
        batch = Batch(
            input_ids=torch.empty(65_536, dtype=torch.int64),
            position_ids=torch.empty(65_536, dtype=torch.int32),
            cu_seqlens=torch.empty(136, dtype=torch.int32),
            max_seqlen=1_024,
            masked_positions=torch.empty(13_107, dtype=torch.int64),
            labels=torch.empty(13_107, dtype=torch.int64),
            lane=0,
            lane_state={},
        )
        MaskedLM(NeoBERTEncoder(network)).compute(batch).loss_sum.backward()
        return {name: p.grad.dtype for name, p in network.named_parameters()}


def test_the_host_reads_nothing_from_a_step_with_a_packed_kernel(monkeypatch):
    """Reading one number, such as the length of a document, would wait for a GPU."""
    monkeypatch.setattr(modeling_neobert, "choose_backend", lambda name, device, dtype: name)
    varlen = torch.nn.attention.varlen
    monkeypatch.setattr(attention, "find_torch_varlen", lambda device: varlen)
    dtypes = step_without_numbers("torch_varlen")
    assert set(dtypes.values()) == {torch.bfloat16}
    with pytest.raises(DataDependentOutputException):
        step_without_numbers("sdpa")  # it goes from document to document
