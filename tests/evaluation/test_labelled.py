"""Tasks with labels: as the Hub has GLUE, and from files of a user."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neobert_train.errors import InputError
from neobert_train.evaluation.labelled import draw, load_glue, load_own
from neobert_train.evaluation.metrics import Scoring
from neobert_train.tuning.examples import Examples
from support.glue import write_glue, write_split


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    return write_glue(tmp_path_factory.mktemp("glue"), num_train=12, num_evaluation=9)


@pytest.mark.parametrize(
    ("name", "metrics", "pairs", "classes"),
    [
        ("cola", ("matthews",), False, 2),
        ("sst2", ("accuracy",), False, 2),
        ("mrpc", ("accuracy", "f1"), True, 2),
        ("stsb", ("pearson", "spearman"), True, None),
        ("qqp", ("accuracy", "f1"), True, 2),
        ("mnli", ("accuracy",), True, 3),
        ("qnli", ("accuracy",), True, 2),
        ("rte", ("accuracy",), True, 2),
    ],
)
def test_glue_is_read_as_the_hub_has_it(glue, name, metrics, pairs, classes):
    data = load_glue(name, glue)
    assert data.scoring.metrics == metrics
    assert (data.train.pairs is not None) == pairs
    assert (None if data.classes is None else len(data.classes)) == classes
    assert len(data.train) == 12
    assert data.train.labels.dtype == (np.float64 if classes is None else np.int64)
    if name == "mnli":  # both validation sets, each a part of the score
        assert len(data.evaluation) == 18
        assert data.scoring.parts.tolist() == [0] * 9 + [1] * 9
    else:
        assert len(data.evaluation) == 9


def test_other_examples_are_other_data(glue, tmp_path):
    write_glue(tmp_path, num_train=12, num_evaluation=9)
    assert load_glue("rte", tmp_path).digest == load_glue("rte", glue).digest
    write_split(tmp_path, "rte", "validation", 9, seed=1)
    assert load_glue("rte", tmp_path).digest != load_glue("rte", glue).digest


def write_rte(folder, **columns):
    rows = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [0, 1], **columns}
    for split in ("train", "validation"):
        (folder / "rte").mkdir(exist_ok=True)
        table = pa.table({name: values for name, values in rows.items() if values is not None})
        pq.write_table(table, folder / f"rte/{split}-00000-of-00001.parquet")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [0, -1]}, r"row 2: label is -1, and rte has the labels 0 to 1"),
        ({"label": [1, 1]}, r"all labels are 1"),
        ({"label": [0.0, float("nan")]}, r"row 2: label is nan"),
        ({"sentence1": ["a", None]}, r"row 2: sentence1 is empty"),
        (
            {"sentence2": None, "sentense2": ["c", "d"]},
            r"no column sentence2: did you mean sentense2",
        ),
        ({"sentence1": [], "sentence2": [], "label": []}, r"there are no rows"),
    ],
)
def test_bad_glue_files_are_refused_by_file_and_row(tmp_path, columns, message):
    write_rte(tmp_path, **columns)
    with pytest.raises(InputError, match=r"rte/train.*" + message):
        load_glue("rte", tmp_path)


def test_a_missing_task_says_what_the_folder_has_to_hold(tmp_path):
    with pytest.raises(InputError, match=r"no file train-00000-of-00001.parquet.*nyu-mll/glue"):
        load_glue("rte", tmp_path)


def test_own_texts_have_classes_by_name(tmp_path):
    (tmp_path / "classification/topics").mkdir(parents=True)
    folder = tmp_path / "classification/topics"
    (folder / "train.csv").write_text("text,label\none,sport\ntwo,art\nthree,sport\n")
    (folder / "test.jsonl").write_text('{"text": "four", "label": "art"}\n')
    data = load_own("classification/topics", tmp_path)
    assert data.classes == ("art", "sport")
    assert data.train.labels.tolist() == [1, 0, 1]
    assert data.evaluation.labels.tolist() == [0]
    (folder / "test.jsonl").write_text('{"text": "four", "label": "music"}\n')
    with pytest.raises(
        InputError, match=r"test.jsonl: the label 'music' is in no training example"
    ):
        load_own("classification/topics", tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [("three,", "row 3: there is no label"), (",sport", "row 3: text is empty")],
)
def test_an_empty_field_is_no_text_and_no_class(tmp_path, row, message):
    (tmp_path / "classification").mkdir()
    (tmp_path / "classification/train.csv").write_text(f"text,label\none,sport\ntwo,art\n{row}\n")
    (tmp_path / "classification/test.csv").write_text("text,label\none,sport\n")
    with pytest.raises(InputError, match=message):
        load_own("classification", tmp_path)


def write_classification(folder, train, test, name="train.csv"):
    (folder / "classification").mkdir(exist_ok=True)
    (folder / "classification" / name).write_text(train)
    (folder / "classification/test.csv").write_text(test)


def test_names_of_classes_are_texts_whatever_they_look_like(tmp_path):
    write_classification(
        tmp_path, "text,label\na,01\nb,1\nc,1.0\nNA,true\n", "text,label\nnull,true\n"
    )
    data = load_own("classification", tmp_path)
    assert data.classes == ("01", "1", "1.0", "true")
    assert data.train.texts[3] == "NA"
    rows = '{"text": "' + "long " * 400_000 + '", "label": true}\n{"text": "b", "label": 1}\n'
    (tmp_path / "classification/train.csv").unlink()
    write_classification(tmp_path, rows, "text,label\na,true\n", "train.jsonl")
    assert load_own("classification", tmp_path).classes == ("1", "true")


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            "text,text_pair,label\na,b,x\nc,d,y\n",
            "text,label\na,x\n",
            "only one of them has .* text_pair",
        ),
        ("text,label\na;b\nc,y\n", "text,label\na,x\n", "row 1 .* has 1 columns, .* names 2"),
        ("text,text,label\na,b,x\nc,d,y\n", "text,label\na,x\n", "names the column 'text' twice"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, train, test, message):
    write_classification(tmp_path, train, test)
    with pytest.raises(InputError, match=message):
        load_own("classification", tmp_path)


def test_other_files_beside_a_split_are_none_of_it(tmp_path):
    rows = "text,label\na,x\nb,y\n"
    write_classification(tmp_path, rows, rows)
    write_classification(tmp_path, "text,label\nold,z\n", rows, "train-old-backup.csv")
    assert load_own("classification", tmp_path).classes == ("x", "y")
    write_classification(tmp_path, '{"text": "a", "label": "z"}', rows, "train.jsonl")
    with pytest.raises(InputError, match=r"has train more than once \(train.csv, train.jsonl\)"):
        load_own("classification", tmp_path)
    (tmp_path / "classification/train.jsonl").unlink()
    (tmp_path / "classification/train.csv").write_bytes(b"text,label\ncaf\xe9,x\nb,y\n")
    with pytest.raises(InputError, match=r"train.csv is not UTF-8"):
        load_own("classification", tmp_path)


def test_one_file_is_divided_by_its_texts(tmp_path):
    rows = "".join(f"text {i % 40},{'ab'[i % 2]}\n" for i in range(80))
    (tmp_path / "classification.csv").write_text(f"text,label\n{rows}")
    data = load_own("classification", tmp_path)
    assert len(data.train) + len(data.evaluation) == 80
    assert not set(data.train.texts) & set(data.evaluation.texts)
    (tmp_path / "classification.csv").write_text("text,label\na,x\nb,x\nc,x\nd,x\ne,x\nf,x\ng,x\n")
    with pytest.raises(InputError, match=r"(classes|divided)"):
        load_own("classification", tmp_path)


def test_words_have_labels_of_their_own(tmp_path):
    rows = [{"tokens": [f"w{i}", "x"], "labels": ["A", "B"]} for i in range(30)]
    file = tmp_path / "token_classification.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    data = load_own("token_classification", tmp_path)
    assert len(data.train.labels) == 2 * len(data.train)
    rows[4]["labels"] = ["A"]
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(
        InputError, match=r"line 5: tokens and labels must be lists of equal length"
    ):
        load_own("token_classification", tmp_path)


def test_a_part_is_drawn_once_for_all_models():
    labels = np.arange(20)
    examples = Examples([f"text {i}" for i in labels], None, labels)
    scoring = Scoring(("accuracy",), np.repeat([0, 1], 10))
    part, its_scoring = draw(examples, 8, scoring)
    assert [f"text {label}" for label in part.labels] == list(part.texts)
    assert (its_scoring.parts == (part.labels >= 10)).all()
    assert draw(examples, 8, scoring)[0].labels.tolist() == part.labels.tolist()
    assert draw(examples, None, scoring)[0] is examples


def test_taking_examples_of_words_takes_their_labels():
    examples = Examples([["a"], ["b", "c"], ["d"]], None, np.array([1, 2, 3, 4]))
    part = examples.take(np.array([2, 1]))
    assert list(part.texts) == [["d"], ["b", "c"]]
    assert part.labels.tolist() == [4, 2, 3]


def test_without_a_folder_glue_comes_from_the_hub(hub, tmp_path):
    folder = write_glue(tmp_path / "glue", num_train=6, num_evaluation=4, tasks=("rte", "sst2"))
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")}
    hub.write("datasets/nyu-mll/glue", files)
    assert load_glue("rte", None).digest == load_glue("rte", folder).digest
    assert not any("sst2" in request for request in hub.requests if "resolve" in request)
    with pytest.raises(InputError, match=r"mnli has no file train"):
        load_glue("mnli", None)
