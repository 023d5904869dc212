"""Anchors, positives and negatives of files and datasets, and what is said of those that lack one."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neobert_train.errors import InputError
from neobert_train.tuning.embedding_data import load_sets
from support.configs import compose
from support.pairs import make_rows, write_rows

ROWS = make_rows(6)


def load(*overrides, batch_size=2):
    """The rows of the only set."""
    config = compose(
        "embed", "model=m", "output=o", f"batch_size={batch_size}", *map(str, overrides)
    )
    (pairs,) = load_sets(config, lambda text: None).values()
    return pairs.rows.to_list()


def refuse(*overrides, batch_size=2):
    with pytest.raises(InputError) as error:
        load(*overrides, batch_size=batch_size)
    return str(error.value)


def write_table(file, rows):
    columns = {name: [row.get(name) for row in rows] for name in rows[0]}
    pq.write_table(pa.table(columns), file)
    return file


def write_csv(file, rows, delimiter=","):
    lines = [delimiter.join(rows[0]), *(delimiter.join(row.values()) for row in rows)]
    file.write_text("\n".join(lines) + "\n")
    return file


WRITERS = {
    "pairs.jsonl": write_rows,
    "pairs.parquet": write_table,
    "pairs.csv": write_csv,
    "pairs.tsv": lambda file, rows: write_csv(file, rows, "\t"),
}
EXPECTED = [
    {"anchor": row["anchor"], "positive": row["positive"], "negative_1": row["negative"]}
    for row in ROWS
]


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path, name):
    file = WRITERS[name](tmp_path / name, ROWS)
    assert load(f"paths=[{file}]", "negatives=[negative]") == EXPECTED
    assert load(f"paths=[{tmp_path}]", "max_rows=3") == [
        {key: row[key] for key in ("anchor", "positive")} for row in ROWS[:3]
    ]


def test_columns_may_be_lists_objects_and_patterns(tmp_path):
    rows = [
        {
            "set": [f"a{number}", f"p{number}"],
            "more": {"q": f"q{number}"},
            "hard_2": f"h{number}",
            "hard_10": "ten",
            "neg": ["n1", "n2", "n3"],
        }
        for number in range(4)
    ]
    for file in (
        write_rows(tmp_path / "x.jsonl", rows),
        write_table(tmp_path / "x.parquet", rows),
    ):
        columns = ["anchor=set.0", "positive=set"]
        assert load(f"paths=[{file}]", *columns, "negatives=[hard_*,neg]", "num_negatives=3")[1] == {
            "anchor": "a1", "positive": "a1", "negative_1": "h1", "negative_2": "ten",
            "negative_3": "n1",
        }  # fmt: skip
        loaded = load(f"paths=[{file}]", "anchor=more.q", "positive=set.1", "negatives=[neg]")
        assert list(loaded[0].values()) == ["q0", "p0", "n1", "n2", "n3"]


@pytest.mark.parametrize("negatives", ["", "negatives=[negative]"])
def test_negatives_that_are_not_used_are_told(tmp_path, caplog, negatives):
    rows = [{"anchor": f"a{n}", "positive": f"b{n}", "negative": f"c{n}"} for n in range(4)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    load(f"paths=[{path}]", *filter(None, [negatives]))
    warned = "the texts of negative are not used: write negatives=[negative]" in caplog.text
    assert warned is not bool(negatives)


def test_rows_of_a_low_score_are_left_out(tmp_path):
    rows = [{**row, "score": score} for row, score in zip(ROWS, [5, 4, 4.5, 1, 0, 5], strict=True)]
    file = write_rows(tmp_path / "x.jsonl", rows)
    loaded = load(f"paths=[{file}]", "score=score", "min_score=4")
    assert [row["anchor"] for row in loaded] == [ROWS[number]["anchor"] for number in (0, 2, 5)]


@pytest.mark.parametrize("name", WRITERS)
def test_an_unknown_column_is_named_with_the_nearest_one(tmp_path, name):
    file = WRITERS[name](tmp_path / name, [{"anchr": "a", "positive": "b"}] * 4)
    place = f"{file}, {'line' if name.endswith('jsonl') else 'row'} 1"
    assert refuse(f"paths=[{file}]") == (
        f"{place}: there is no column 'anchor' (anchor): did you mean anchor=anchr? it has anchr, "
        f"positive"
    )
    said = refuse(f"paths=[{file}]", "anchor=anchr", "negatives=[neg_*]")
    assert "there is no column 'neg_*' (negatives)" in said


def test_a_file_of_one_column_is_refused(tmp_path):
    file = write_rows(tmp_path / "x.jsonl", [{"text": "only this"}] * 4)
    assert "there is no column 'anchor' (anchor): it has text" in refuse(f"paths=[{file}]")


def test_rows_without_a_text_are_all_counted_and_the_first_are_named(tmp_path):
    rows = [dict(row) for row in make_rows(12)]
    rows[1]["positive"], rows[3]["anchor"], rows[4]["positive"] = "  ", None, 7
    del rows[5]["positive"]
    for row in rows[6:10]:
        row["anchor"] = ""
    file = write_rows(tmp_path / "x.jsonl", rows)
    said = refuse(f"paths=[{file}]")
    for expected in (
        f"{file}, line 2: 'positive' is empty: give a text, or take the row out",
        f"{file}, line 4: 'anchor' is empty",
        f"{file}, line 5: 'positive' holds a number, not a text",
        f"{file}, line 6: there is no column 'positive'",
        f"{file}, line 7: 'anchor' is empty",
        "and 3 more rows",
    ):
        assert expected in said
    assert "line 8" not in said


def test_a_row_with_fewer_negatives_than_the_first_is_named(tmp_path):
    rows = [{"anchor": "a", "positive": "p", "negative": ["x", "y"]} for _ in range(4)]
    rows[2]["negative"] = ["x"]
    file = write_rows(tmp_path / "x.jsonl", rows)
    said = refuse(f"paths=[{file}]", "negatives=[negative]")
    assert said == f"{file}, line 3: it has 1 negatives, and 2 are wanted: write num_negatives=1"
    assert len(load(f"paths=[{file}]", "negatives=[negative]", "num_negatives=1")) == 4


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("x.jsonl", '{"anchor": "a"', "x.jsonl, line 1 is not JSON"),
        ("x.jsonl", '["a", "b"]\n', "x.jsonl, line 1 holds a list, not an object"),
        ("x.jsonl", "\n\n", "hold no rows"),
        ("x.csv", "anchor,positive\na,b\na,b,c\n", "x.csv, row 2 (line 3) has 3 columns"),
        ("x.csv", "anchor,positive\n", "hold no rows"),
        ("x.parquet", "nothing of the kind", "x.parquet cannot be read"),
        ("x.txt", "a b", "its name must end in .parquet, .jsonl, .ndjson, .csv, .tsv"),
    ],
)
def test_files_that_cannot_be_read_are_named_with_the_place(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    assert expected in refuse(f"paths=[{tmp_path / name}]")


def test_paths_that_name_nothing_are_refused(tmp_path):
    assert "no such file" in refuse(f"paths=[{tmp_path / 'gone.jsonl'}]")


def test_fewer_rows_than_a_batch_are_refused(tmp_path):
    file = write_rows(tmp_path / "x.jsonl", ROWS)
    said = refuse(f"paths=[{file}]", batch_size=7)
    assert said == "paths: 6 rows are fewer than a batch (batch_size=7): write batch_size=6 or less"


def test_a_dataset_as_the_hub_has_it_gives_the_rows_that_have_all_texts(tmp_path):
    rows = [{**row, "id": number} for number, row in enumerate(ROWS)]
    rows[0]["positive"] = None
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    write_table(folder / "train-00000-of-00001.parquet", rows)
    loaded = load(f"dataset={tmp_path / 'set'}", "negatives=[negative]")
    assert loaded == EXPECTED[1:]
    said = refuse(f"dataset={tmp_path / 'set'}", "anchor=query")
    assert "there is no column 'query' (anchor): it has anchor, positive, negative, id" in said
    assert "cannot be loaded" in refuse(f"dataset={tmp_path / 'set'}", "split=test")


def test_a_dataset_that_cannot_be_reached_is_named_with_the_reason(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = refuse("dataset=org/no-such-set")
    assert said.startswith("dataset=org/no-such-set cannot be loaded: ")


def test_the_digest_tells_texts_and_their_order(tmp_path):
    digests = []
    for rows in (ROWS, [*ROWS], ROWS[::-1], [{**ROWS[0], "anchor": "other"}, *ROWS[1:]]):
        file = write_rows(tmp_path / "x.jsonl", rows)
        config = compose("embed", f"paths=[{file}]", "model=m", "output=o", "batch_size=2")
        digests.append(load_sets(config, lambda text: None)["pairs"].digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_settings_of_a_named_set_are_named_in_full(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps({"query": "a"}) + "\n")
    said = refuse(f"datasets.mine.paths=[{file}]")
    assert "there is no column 'anchor' (datasets.mine.anchor)" in said
