"""Special tokens by role: from settings, from files, by their spelling, and what is missing."""

import json
import shlex

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from neobert_train.config.data_schema import MaskingConfig
from neobert_train.data.lane.collate import collate
from neobert_train.data.lane.masking import build_masking
from neobert_train.data.sources import EMBEDDED_TEXTS
from neobert_train.errors import InputError
from neobert_train.tokenizers.loading import SHIPPED_TOKENIZER, load_tokenizer
from neobert_train.tokenizers.special_tokens import SpecialTokens
from support.programs import run_command

ODD = ["<|pad|>", "<|unk|>", "<|begin|>", "<|end|>", "<|mask|>", "<|spare|>"]
ALL = {"pad": ODD[0], "unk": ODD[1], "cls": ODD[2], "sep": ODD[3], "mask": ODD[4]}
NONE_OF_TEXT = SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4)


def write_words(folder, specials=ODD, unk_token="<|unk|>", model=None):
    """A tokenizer.json of words whose special tokens have no known spelling."""
    vocabulary = {token: index for index, token in enumerate([*specials, "hello", "world"])}
    tokenizer = Tokenizer(model or models.WordLevel(vocabulary, unk_token=unk_token))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(specials[:-1])
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


def write_roles(folder, name, roles, as_objects=False):
    values = {
        f"{role}_token": {"content": token, "lstrip": False} if as_objects else token
        for role, token in roles.items()
    }
    (folder / name).write_text(json.dumps({"model_max_length": 512, **values}))


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("as_objects", [True, False])
def test_roles_are_those_of_the_files_beside_the_tokenizer(tmp_path, name, as_objects):
    path = write_words(tmp_path)
    write_roles(tmp_path, name, ALL, as_objects)
    assert load_tokenizer(path).special == NONE_OF_TEXT
    assert load_tokenizer(f"{path}/tokenizer.json").special == NONE_OF_TEXT


def test_settings_come_before_files_and_files_before_spellings(tmp_path):
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<|mask|>", "<|other|>", "<|spare|>"]
    path = write_words(tmp_path, specials, "[UNK]")
    assert load_tokenizer(path).special.mask == 4
    write_roles(tmp_path, "special_tokens_map.json", {"mask": "<|spare|>"})
    write_roles(tmp_path, "tokenizer_config.json", {"mask": "<|mask|>", "pad": "<|absent|>"})
    assert load_tokenizer(path).special == SpecialTokens(0, 1, 2, 3, 5)
    assert load_tokenizer(path, {"mask": "<|other|>"}).special.mask == 6


def test_beginning_and_end_of_a_text_stand_in_for_cls_and_sep(tmp_path):
    path = write_words(tmp_path)
    roles = {"bos": "<|begin|>", "eos": "<|end|>", "pad": "<|pad|>", "mask": "<|mask|>"}
    write_roles(tmp_path, "tokenizer_config.json", roles)
    assert load_tokenizer(path).special == NONE_OF_TEXT


def test_all_that_is_missing_is_told_at_once_with_settings_that_a_shell_and_hydra_take(tmp_path):
    path = write_words(tmp_path)
    with pytest.raises(InputError) as error:
        load_tokenizer(path, {"cls": "<|begun|>"})
    message = str(error.value)
    for role in ("pad", "sep", "mask"):
        assert f"it has no {role} token: write 'tokenizer.{role}_token=" in message
    assert "<|begun|>" in message
    assert "no entry of its vocabulary" in message
    assert "<|pad|>, <|unk|>, <|begin|>, <|end|>, <|mask|>" in message
    assert "add_special_tokens" in message
    written = message.split("write ", 1)[1].split(" ", 1)[0].strip()
    [argument] = shlex.split(written.replace("TOKEN", "<|pad|>"))
    override = OverridesParser.create().parse_override(argument)
    assert (override.key_or_group, override.value()) == ("tokenizer.pad_token", "<|pad|>")


@pytest.mark.parametrize("role", ["mask", "pad"])
@pytest.mark.parametrize("other", ["<|end|>", "<|begin|>", "<|unk|>"])
def test_a_mask_or_padding_that_is_another_token_as_well_is_refused(tmp_path, role, other):
    path = write_words(tmp_path)
    with pytest.raises(InputError, match=f"as its {role} token and as another one.*{role}_token="):
        load_tokenizer(path, {**ALL, role: other})
    same = {**ALL, "cls": "<|end|>"}
    assert load_tokenizer(path, same).special == SpecialTokens(0, 1, 3, 3, 4)


def test_a_damaged_file_of_roles_is_named(tmp_path):
    path = write_words(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{broken")
    with pytest.raises(InputError, match=r"tokenizer_config\.json cannot be read as JSON"):
        load_tokenizer(path)


def test_bytes_need_no_entry_for_what_is_unknown(tmp_path, tokenizer):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {
        token: index for index, token in enumerate(["<|end|>", "<|mask|>", *alphabet, "<|pad|>"])
    }
    byte_level = Tokenizer(models.BPE(vocabulary, []))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.add_special_tokens(["<|end|>", "<|mask|>", "<|pad|>"])
    byte_level.save(str(tmp_path / "tokenizer.json"))
    # As in GPT-2: one token for beginning, end, and what no text ever gives.
    end = dict.fromkeys(["unk", "bos", "eos"], "<|end|>")
    roles = {**end, "mask": "<|mask|>", "pad": "<|pad|>"}
    write_roles(tmp_path, "tokenizer_config.json", roles)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.special == SpecialTokens(pad=258, unk=None, cls=0, sep=0, mask=1)
    rule = build_masking(MaskingConfig(), loaded)
    chunks = loaded.encode(["no vocabulary knows ไทย"])
    batch = collate(chunks, 64, loaded.special, rule, 0.2, np.random.default_rng(0))
    assert (batch.num_text, batch.num_unknown) == (29, 0)
    loaded.save(tmp_path / "saved", 64)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert (theirs.unk_token, theirs.mask_token, theirs.pad_token_id) == (
        "<|end|>",
        "<|mask|>",
        258,
    )


def test_without_any_unk_a_saved_folder_names_none(tmp_path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<pad>", "<s>", "</s>", "<mask>"]
    vocabulary = {token: index for index, token in enumerate([*specials, *alphabet])}
    byte_level = Tokenizer(models.BPE(vocabulary, []))
    byte_level.add_special_tokens(specials)
    byte_level.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(str(tmp_path))
    loaded.save(tmp_path / "saved", 64)
    assert "unk_token" not in json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert load_tokenizer(str(tmp_path / "saved")).special == loaded.special


def test_saved_folders_carry_the_roles_and_read_spelled_tokens_as_such(tmp_path):
    loaded = load_tokenizer(write_words(tmp_path), {**ALL, "mask": "<|spare|>"})
    loaded.save(tmp_path / "saved", 64)
    again = load_tokenizer(str(tmp_path / "saved"))
    assert again.special == loaded.special == SpecialTokens(0, 1, 2, 3, 5)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    # The token chosen was no special one in the file.
    assert theirs("hello<|spare|>world")["input_ids"] == [2, 6, 5, 7, 3]
    assert theirs.mask_token_id == 5
    assert Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json")).encode(
        "hello<|spare|>", add_special_tokens=False
    ).ids == [6, 5]


def test_a_run_takes_its_roles_from_settings_and_exports_them(tmp_path):
    content = json.loads((SHIPPED_TOKENIZER / "tokenizer.json").read_text(encoding="utf-8"))
    text = json.dumps(content).replace("[MASK]", "<|mask|>").replace("[PAD]", "<|pad|>")
    (tmp_path / "tokenizer.json").write_text(text)
    run = tmp_path / "run"
    settings = [
        "+experiment=smoke", f"tokenizer.path={tmp_path}", f"output_dir={run}", "trainer.max_steps=1",
        "data.num_workers=1", "logging.report=false", "evaluation.max_tokens=0",
        f"data.paths=[{EMBEDDED_TEXTS}]", "data.source=files",
    ]  # fmt: skip
    output = run_command(*settings, code=2)
    assert "it has no pad token" in output
    assert "it has no mask token" in output
    assert not run.exists()
    roles = ['tokenizer.mask_token="<|mask|>"', 'tokenizer.pad_token="<|pad|>"']
    prepared = f"data.prepared_dir={tmp_path / 'prepared'}"
    run_command("prepare", *settings, *roles, prepared)
    assert "Done: 1 steps" in run_command(*settings, *roles, prepared)
    run_command("export", f"run_dir={run}")
    theirs = AutoTokenizer.from_pretrained(run / "export")
    assert (theirs.mask_token, theirs.mask_token_id, theirs.pad_token_id) == ("<|mask|>", 103, 0)
