"""What is written has the mode that the user's umask says, and not that of a temporary file."""

import os
import stat

import pytest
import torch

from neobert_train.config.model_schema import NeoBERTModelConfig
from neobert_train.data.lane.lane import initial_states
from neobert_train.files import write_checked_json
from neobert_train.modeling.heads import NeoBERTForMaskedLM
from neobert_train.models.neobert import NeoBERTEncoder, build_network_config
from neobert_train.run.checkpoint import Checkpoint, TrainingState, save_checkpoint
from neobert_train.run.directory import RunDirectory
from neobert_train.run.folders import new_folder, owned_folder


@pytest.fixture(params=[0o027, 0o002, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_and_folders_have_the_modes_of_others(umask, tmp_path, make_config, tokenizer):
    config = make_config()
    run = RunDirectory(tmp_path / "run")
    run.create()
    write_checked_json(run.heldout_file, {})
    state = TrainingState.begin(initial_states(range(1)))
    save_checkpoint(run, Checkpoint(state, {"a": torch.zeros(2)}, {}), config, tokenizer)
    model_config = NeoBERTModelConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    model = NeoBERTForMaskedLM(build_network_config(model_config, tokenizer))
    for _ in range(2):  # into a new folder, and into one that is there
        with owned_folder(tmp_path / "export", {}) as draft:
            NeoBERTEncoder(model).write(draft, tokenizer, 128)
    with new_folder(tmp_path / "tokenizer") as draft:
        tokenizer.save(draft, 512)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    odd = {
        path: oct(mode)
        for path, mode in modes.items()
        if mode != (0o777 if path.is_dir() else 0o666) & ~umask
    }
    assert odd == {}
    assert len(modes) > 20


def test_a_tokenizer_is_written_as_its_library_writes_it(tmp_path, tokenizer):
    from tokenizers import Tokenizer

    tokenizer.save(tmp_path, 512)
    written = tmp_path / "tokenizer.json"
    Tokenizer.from_file(str(written)).save(str(tmp_path / "again.json"))
    assert written.read_bytes() == (tmp_path / "again.json").read_bytes()
