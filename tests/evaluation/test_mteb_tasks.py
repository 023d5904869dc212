"""Tasks of MTEB give what its library gives by itself on the exported folder."""

import warnings

import mteb
import pytest
import torch
from mteb.mocks import mock_tasks
from sentence_transformers import SentenceTransformer

from neobert_train.config.embed_schema import Pooling
from neobert_train.errors import InputError
from neobert_train.evaluation.candidates import load_candidate
from neobert_train.evaluation.conditions import Conditions
from neobert_train.evaluation.mteb_tasks import MTEBTask, list_mteb_tasks
from neobert_train.export.pooling import write_pooling
from neobert_train.modeling.configuration_neobert import NeoBERTConfig
from neobert_train.modeling.heads import NeoBERTForMaskedLM
from neobert_train.models.neobert import NeoBERTEncoder

CONDITIONS = Conditions(torch.device("cpu"), bf16=False, batch_tokens=256)
KINDS = [
    "MockSTSTask", "MockRetrievalTask", "MockClassificationTask", "MockRerankingTask",
    "MockPairClassificationTask",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """An exported NeoBERT with mean pooling."""
    folder = tmp_path_factory.mktemp("export")
    torch.manual_seed(0)
    config = NeoBERTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        vocab_size=tokenizer.vocab_size, max_length=64,
    )  # fmt: skip
    NeoBERTEncoder(NeoBERTForMaskedLM(config)).write(folder, tokenizer, 64)
    write_pooling(folder, 32, Pooling.mean, 64)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_the_library_by_itself_gives_the_same(folder, tmp_path, kind):
    candidate = load_candidate(str(folder), tmp_path / "exports", trust_remote_code=False)
    task = MTEBTask(getattr(mock_tasks, kind)(), 64, {}, tmp_path / "mteb")
    found = task.measure(candidate, task.list_settings()[0], 0, CONDITIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
        results = mteb.evaluate(
            model,
            getattr(mock_tasks, kind)(),
            cache=None,
            co2_tracker=False,
            show_progress_bar=False,
        )
    expected = results.task_results[0].get_score()
    assert found.values["main_score"] == pytest.approx(expected, abs=1e-6)
    assert list((tmp_path / "mteb/results").rglob(f"{task.name.removeprefix('mteb/')}.json"))


def test_names_that_the_library_does_not_know_are_told_before_anything_is_loaded():
    with pytest.raises(
        InputError, match=r"no benchmark MTEB\(eng,v2\): did you mean MTEB\(eng, v2\)"
    ):
        list_mteb_tasks("MTEB(eng,v2)", [], None)
    with pytest.raises(InputError, match=r"no task STSBenchmrk: did you mean STSBenchmark"):
        list_mteb_tasks("MTEB(eng, v2)", ["STSBenchmrk"], None)
    assert len(list_mteb_tasks("NanoBEIR", [], None)) == 13


def test_files_of_a_folder_stand_for_those_of_the_hub(tmp_path):
    (tmp_path / "mteb/STSBenchmark").mkdir(parents=True)
    (tmp_path / "mteb/STSBenchmark/test.jsonl").write_text("{}")
    (task,) = list_mteb_tasks("MTEB(eng, v2)", ["STSBenchmark"], tmp_path)
    assert task.metadata.dataset["path"] == str(tmp_path / "mteb/STSBenchmark")
    before = MTEBTask(task, 64, {}, tmp_path).digest
    (tmp_path / "mteb/STSBenchmark/test.jsonl").write_text("{ }")
    (task,) = list_mteb_tasks("MTEB(eng, v2)", ["STSBenchmark"], tmp_path)
    assert MTEBTask(task, 64, {}, tmp_path).digest != before
