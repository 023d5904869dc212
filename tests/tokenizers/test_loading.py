"""Where tokenizers lie, and folders that hold a vocabulary without a tokenizer.json."""

import http.server
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import huggingface_hub.constants
import pyarrow.parquet as pq
import pytest
import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from neobert_train.data.sources import EMBEDDED_TEXTS
from neobert_train.errors import InputError
from neobert_train.tokenizers import loading
from neobert_train.tokenizers.loading import SHIPPED_TOKENIZER, load_tokenizer
from neobert_train.tokenizers.special_tokens import SpecialTokens

SPECIAL = SpecialTokens(pad=0, unk=100, cls=101, sep=102, mask=103)
COMMIT = "0123456789" * 4


def test_the_shipped_tokenizer_needs_no_network(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert load_tokenizer("google-bert/bert-base-uncased").vocab_size == 30_522


def test_a_tilde_in_the_path_is_expanded(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tokenizer.save(tmp_path / "mine", max_length=64)
    assert load_tokenizer("~/mine").special == SPECIAL


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(InputError, match=r"holds no tokenizer\.json, and no vocabulary") as error:
        load_tokenizer(str(tmp_path))
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "{}", '{"model": {"type": "Unheard"}}', "[1, 2]"])
def test_a_broken_tokenizer_file_is_named(tmp_path, content):
    file = tmp_path / "tokenizer.json"
    file.write_text(content)
    with pytest.raises(InputError, match=r"cannot be read as a tokenizer\.json") as error:
        load_tokenizer(str(tmp_path))
    assert str(file) in str(error.value)


def test_a_binary_file_is_not_taken_for_a_tokenizer(tmp_path):
    file = tmp_path / "model.bin"
    file.write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match=r"model\.bin cannot be read as a tokenizer\.json"):
        load_tokenizer(str(file))


@pytest.mark.parametrize("name", ["nobody/no-such-tokenizer", "./missing/folder", "runs/a/b/c"])
def test_an_unreachable_name_says_what_to_write_instead(monkeypatch, tmp_path, name):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with pytest.raises(InputError) as error:
        load_tokenizer(name)
    assert f"'{name}' is neither a folder, a tokenizer.json nor reachable" in str(error.value)
    assert "write tokenizer.path=bert-base-uncased" in str(error.value)


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    [speech] = pq.read_table(EMBEDDED_TEXTS).column("content").to_pylist()[:1]
    return [sentence for line in speech.splitlines() for sentence in line.split(". ") if sentence]


@pytest.fixture(scope="module")
def pieces(sentences, tmp_path_factory) -> dict[str, Path]:
    """A model of SentencePiece of each kind."""
    folder = tmp_path_factory.mktemp("pieces")
    for kind in ("unigram", "bpe"):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences), model_prefix=str(folder / kind), model_type=kind,
            vocab_size=500, byte_fallback=kind == "bpe", minloglevel=2,
        )  # fmt: skip
    return {kind: folder / f"{kind}.model" for kind in ("unigram", "bpe")}


TEXTS = ["My fellow citizens:  two  spaces", "naïve café 日本 🙂", "a\n\nb\tc", " lead", ""]


def check_ids(folder: Path, texts: list[str], **tokens: str) -> None:
    """That ids are those of transformers, before and after the tokenizer was saved by us."""
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = load_tokenizer(str(folder), tokens)
    expected = [theirs(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert [ids.tolist() for ids in ours.encode(texts)] == expected
    ours.save(folder / "saved", 64)
    again = load_tokenizer(str(folder / "saved"))
    assert [ids.tolist() for ids in again.encode(texts)] == expected
    assert again.special == ours.special
    exported = AutoTokenizer.from_pretrained(folder / "saved")
    framed = [[ours.special.cls, *ids, ours.special.sep] for ids in expected]
    assert [exported(text)["input_ids"] for text in texts] == framed


@pytest.mark.parametrize("lower", [True, False])
def test_a_vocabulary_of_wordpiece_gives_the_ids_of_transformers(tmp_path, sentences, lower):
    shutil.copy(SHIPPED_TOKENIZER / "vocab.txt", tmp_path)
    kind = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(kind))
    check_ids(tmp_path, [*TEXTS, *sentences[:50]])
    assert load_tokenizer(str(tmp_path)).special == SPECIAL
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    check_ids(tmp_path, [*TEXTS, *sentences[:50]])


def test_vocabulary_and_merges_give_the_ids_of_transformers(tmp_path, sentences):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    )  # fmt: skip
    tokenizer.train_from_iterator(sentences, trainer)
    tokenizer.model.save(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    check_ids(tmp_path, [*TEXTS, *sentences[:50]])
    assert load_tokenizer(str(tmp_path)).special == SpecialTokens(
        pad=1, unk=None, cls=0, sep=2, mask=4
    )


@pytest.mark.parametrize(
    ("kind", "file", "tokens"),
    [
        ("XLMRobertaTokenizer", "sentencepiece.bpe.model", {}),
        ("T5Tokenizer", "spiece.model", {"mask": "<extra_id_0>", "cls": "<extra_id_1>"}),
        ("DebertaV2Tokenizer", "spm.model", {}),
    ],
)
def test_a_model_of_sentencepiece_gives_the_ids_of_transformers(
    pieces, tmp_path, sentences, kind, file, tokens
):
    shutil.copy(pieces["unigram"], tmp_path / file)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    check_ids(tmp_path, [*TEXTS, *sentences[:50]], **tokens)


def test_a_decoder_of_sentencepiece_takes_settings_for_what_it_lacks(pieces, tmp_path, sentences):
    shutil.copy(pieces["bpe"], tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(InputError) as error:
        load_tokenizer(str(tmp_path))
    for role in ("mask", "pad"):
        assert f"it has no {role} token: write 'tokenizer.{role}_token=" in str(error.value)
    check_ids(tmp_path, [*TEXTS, *sentences[:50]], mask="<0x00>", pad="<0x01>")


@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.model", "merges.txt"])
def test_a_vocabulary_alone_says_what_to_put_beside_it(tmp_path, file):
    (tmp_path / file).write_bytes(b"a\nb\n")
    with pytest.raises(
        InputError, match=r'write one that names the class.*"BertTokenizer"'
    ) as error:
        load_tokenizer(str(tmp_path))
    assert f"holds {file}, and nothing that says" in str(error.value)
    with pytest.raises(InputError, match=f"write tokenizer.path={tmp_path}"):
        load_tokenizer(str(tmp_path / file))


def test_a_vocabulary_under_another_name_than_its_class_reads_is_refused(tmp_path):
    shutil.copy(SHIPPED_TOKENIZER / "vocab.txt", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "RobertaTokenizer"}')
    with pytest.raises(InputError, match=r"RobertaTokenizer, which reads vocab\.json, merges\.txt"):
        load_tokenizer(str(tmp_path))


def test_a_package_that_is_missing_is_named_with_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "_is_installed", lambda package: False)
    (tmp_path / "spiece.model").write_bytes(b"x")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    with pytest.raises(InputError, match=r"spiece\.model.*pip install sentencepiece"):
        load_tokenizer(str(tmp_path))


def test_what_transformers_cannot_read_is_named(tmp_path, caplog):
    (tmp_path / "spiece.model").write_bytes(b"no model of anything")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    with pytest.raises(InputError, match="transformers cannot read the tokenizer of"):
        load_tokenizer(str(tmp_path))
    shutil.copy(SHIPPED_TOKENIZER / "vocab.txt", tmp_path)
    (tmp_path / "spiece.model").unlink()
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast"}'
    )
    with pytest.raises(InputError, match=r"instantiate .* names the kind that these files are of"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    with pytest.raises(InputError, match=r"the ByT5Tokenizer of .* is written in Python only"):
        load_tokenizer(str(tmp_path))


def test_code_in_a_folder_is_not_run(tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "mine.py").write_text(f"open({str(ran)!r}, 'w')\nclass Mine: ...\n")
    shutil.copy(SHIPPED_TOKENIZER / "vocab.txt", tmp_path)
    kind = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(kind))
    with pytest.raises(InputError):
        load_tokenizer(str(tmp_path))
    assert not ran.exists()


def test_a_tokenizer_json_needs_neither_transformers_nor_torch():
    program = (
        "import sys\nfrom neobert_train.tokenizers.loading import load_tokenizer\n"
        "load_tokenizer('bert-base-uncased')\nprint({'torch', 'transformers'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert result.stdout == b"set()\n"


class _Hub(http.server.BaseHTTPRequestHandler):
    """One repository, as the client library asks for it."""

    folder: Path

    def do_GET(self) -> None:
        self.do_HEAD()

    def do_HEAD(self) -> None:
        api, resolve = "/api/models/org/name/", f"/org/name/resolve/{COMMIT}/"
        if self.path.startswith(f"{api}tree/"):
            files = [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0" * 40}
                for path in self.folder.iterdir()
            ]
            self._answer(json.dumps(files).encode())
        elif self.path.startswith(api):
            self._answer(json.dumps({"id": "org/name", "sha": COMMIT}).encode())
        elif self.path.startswith(resolve):
            self._answer((self.folder / self.path.removeprefix(resolve)).read_bytes())
        else:
            self.send_error(404)

    def _answer(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hash(content)}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *values: object) -> None:
        pass


def test_a_name_on_the_hub_is_downloaded_once_with_its_roles_and_without_weights(tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    shutil.copy(SHIPPED_TOKENIZER / "tokenizer.json", folder)
    settings = {"mask_token": "[PAD]", "pad_token": "[MASK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "model.safetensors").write_text("not wanted")
    program = (
        "from neobert_train.tokenizers.loading import load_tokenizer\n"
        "print(load_tokenizer('org/name').special.mask)"
    )
    hub = type("Hub", (_Hub,), {"folder": folder})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {
            **os.environ, "HF_HOME": str(tmp_path / "cache"),
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        }  # fmt: skip
        for offline in ("0", "1"):
            result = subprocess.run(
                [sys.executable, "-c", program], capture_output=True,
                env={**environment, "HF_HUB_OFFLINE": offline},
            )  # fmt: skip
            assert result.stdout == b"0\n", result.stderr.decode()
        server.shutdown()
    assert not list((tmp_path / "cache").rglob("model.safetensors"))
