"""Small GLUE tasks in the files and columns of nyu-mll/glue, with labels that words give away."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

COLUMNS = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
}
_SIGNS = ("terrible", "wonderful", "usual")
_WORDS = (
    "war",
    "peace",
    "tax",
    "law",
    "army",
    "navy",
    "nation",
    "public",
    "money",
    "land",
    "trade",
)


def write_glue(folder, num_train=64, num_evaluation=40, tasks=tuple(COLUMNS)):
    """Write tasks; returns the folder."""
    for place, task in enumerate(tasks):
        write_split(folder, task, "train", num_train, seed=2 * place)
        matched = ("validation_matched", "validation_mismatched")
        for number, split in enumerate(matched if task == "mnli" else ("validation",)):
            write_split(folder, task, split, num_evaluation, seed=100 + 2 * place + number)
    return folder


def write_split(folder, task, split, num_rows, seed):
    """Write one split of a task."""
    rng = np.random.default_rng(seed)
    num_classes = 3 if task == "mnli" else 2
    labels = rng.permutation(np.arange(num_rows) % num_classes)

    def write_text(label):
        words = list(rng.choice(_WORDS, 5))
        if rng.random() < 0.9:
            words.insert(rng.integers(5), _SIGNS[label])
        return " ".join(words)

    columns = {name: [write_text(label) for label in labels] for name in COLUMNS[task]}
    scores = labels * 2.5 + rng.normal(0, 0.2, num_rows)
    table = pa.table(
        {**columns, "label": scores if task == "stsb" else labels, "idx": range(num_rows)}
    )
    (folder / task).mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / task / f"{split}-00000-of-00001.parquet")
