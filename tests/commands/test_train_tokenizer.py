"""`train_tokenizer`: the folder it writes is trained with and exported; what it refuses to do."""

import json

import pytest
from transformers import AutoTokenizer

from neobert_train.tokenizers.loading import load_tokenizer
from support.programs import run_anew, run_command
from support.thai import write_texts

SPEECHES = ["train_tokenizer", "+experiment=smoke", "vocab_size=500"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    output = run_command(*SPEECHES, "output=new/words", cwd=folder)
    return folder / "new" / "words", output


def test_it_tells_what_was_learnt_and_what_to_type_next(trained):
    folder, output = trained
    assert "new/words: wordpiece, 500 entries, learnt from 66 documents with 2,368,346" in output
    assert "8 held-out documents" in output
    assert "this tokenizer" in output
    assert "bert-base-uncased" in output
    assert "+experiment=NAME tokenizer.path=new/words" in output
    assert "WARNING" not in output
    assert [path.name for path in folder.parent.iterdir()] == ["words"]


def test_an_experiment_trains_with_it_and_exports_it(trained, tmp_path):
    folder, _ = trained
    run_command(
        "+experiment=smoke", f"tokenizer.path={folder}", f"output_dir={tmp_path / 'run'}",
        "trainer.max_steps=2", "data.num_workers=0", "logging.report=false",
        "evaluation.max_tokens=0",
    )  # fmt: skip
    run_command("export", f"run_dir={tmp_path / 'run'}")
    export = tmp_path / "run" / "export"
    config = json.loads((export / "config.json").read_text())
    assert config["vocab_size"] == 500
    assert config["pad_token_id"] == 0
    theirs = AutoTokenizer.from_pretrained(export)
    specials = [theirs.pad_token_id, theirs.unk_token_id, theirs.cls_token_id,
                theirs.sep_token_id, theirs.mask_token_id]  # fmt: skip
    assert specials == [0, 1, 2, 3, 4]
    text = "The state of the Union is strong."
    [ids] = load_tokenizer(str(folder)).encode([text])
    assert theirs(text)["input_ids"] == [2, *ids.tolist(), 3]
    assert AutoTokenizer.from_pretrained(folder).model_max_length == 512


def test_another_process_writes_the_same_bytes(trained, tmp_path):
    folder, _ = trained
    output = tmp_path / "again"
    run_anew(*SPEECHES, f"output={output}", TOKENIZERS_PARALLELISM="0")
    for file in folder.iterdir():
        assert (output / file.name).read_bytes() == file.read_bytes()


def test_a_folder_that_holds_something_is_left_alone(trained, tmp_path):
    folder, _ = trained
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    output = run_command(*SPEECHES, f"output={folder}", code=2)
    assert f"{folder} exists: write output=... to choose another folder" in output
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    (tmp_path / "file").write_text("mine")
    assert "is no folder" in run_command(*SPEECHES, f"output={tmp_path / 'file'}", code=2)


def test_bad_records_end_it_without_a_folder_or_are_counted(tmp_path):
    lines = [json.dumps({"text": f"Rede {n} über die Straße und das Land"}) for n in range(50)]
    (tmp_path / "texts.jsonl").write_text("\n".join([*lines, "{broken"]), encoding="utf-8")
    settings = [
        "train_tokenizer", "data=files", "data.paths=[texts.jsonl]", "data.column=text",
        "algorithm=bpe", "vocab_size=2000", "output=out",
    ]  # fmt: skip
    output = run_command(*settings, cwd=tmp_path, code=2)
    assert "texts.jsonl, line 51: not JSON" in output
    assert "data.on_bad_record=skip" in output
    assert "Traceback" not in output
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()  # an empty folder is in nobody's way
    output = run_command(*settings, "data.on_bad_record=skip", cwd=tmp_path)
    assert "1 bad records left out" in output
    assert "WARNING: the documents gave only" in output
    assert {path.name for path in tmp_path.iterdir()} == {"texts.jsonl", "out"}


def test_settings_that_cannot_be_are_told_before_anything_is_read():
    output = run_command(
        "train_tokenizer", "data=files", "algorithm=bpe", "vocab_size=200", "output=", code=2
    )
    assert "vocab_size=261" in output
    assert "data.paths is empty" in output
    assert "output=FOLDER" in output


def test_a_tokenizer_that_does_not_know_its_texts_is_not_recommended(tmp_path):
    # More characters than half of the vocabulary has room for.
    texts = ["".join(chr(0x4E00 + 37 * n + m) for m in range(60)) for n in range(60)]
    settings = ["train_tokenizer", "data=files", "data.column=text", "vocab_size=200"]
    paths = write_texts(tmp_path / "texts.jsonl", texts)
    output = run_command(*settings, f"data.{paths}", f"output={tmp_path / 'out'}")
    assert "do not train with it" in output
    assert "algorithm=bpe" in output
    assert "tokenizer.path=" not in output
