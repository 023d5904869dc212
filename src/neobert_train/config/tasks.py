"""The names of what `evaluate` measures; imports nothing heavy, so that a wrong name is told at once."""

from neobert_train.config.suggestion import suggest

GLUE_DATASET = "nyu-mll/glue"
GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
# On texts that ship with the package; also taken while training.
PROBES = ("party", "decade", "next_paragraph")
# Names that stand for several.
SUITES = {"glue": GLUE, "probes": PROBES}
SUMMARIES = {
    "masked_lm": "loss of masked tokens in the texts of paths=",
    "pseudo_perplexity": "every token of the texts of paths= predicted from all others, by length",
    "throughput": "tokens a second of a forward pass, by length",
    "glue": f"{', '.join(GLUE)}; each is a task by itself too",
    "probes": f"{', '.join(PROBES)}: linear models on frozen features of shipped texts",
    "classification": "texts (and pairs of texts) with labels, of data_dir",
    "token_classification": "words with labels, of data_dir",
    "sts": "pairs of texts with a score of their likeness, of data_dir",
    "retrieval": "queries, documents and judgements, of data_dir",
    "nanobeir": "retrieval from 13 small sets of BEIR (MTEB's NanoBEIR)",
    "mteb": "the tasks of mteb.benchmark, or those of mteb.tasks",
}
# Those that read files of the user's own; NAME/CASE is one of several.
OWN = ("classification", "token_classification", "sts", "retrieval")
ON_TEXTS = ("masked_lm", "pseudo_perplexity")


def expand_tasks(names: list[str]) -> list[str]:
    """Return single tasks in the order named, each once."""
    expanded = [task for name in names for task in SUITES.get(name, (name,))]
    return list(dict.fromkeys(expanded))


def describe_unknown(name: str) -> str | None:
    """Return what to write in place of a task that does not exist; None for one that does."""
    known = (*SUMMARIES, *GLUE, *PROBES)
    kind, slash, case = name.partition("/")
    if name in known or (kind in OWN and slash and case and "/" not in case):
        return None
    return f"there is no task {name}: {suggest(name, known)}"
