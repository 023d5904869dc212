"""The uses of an exported model that docs/compatibility.md tells of.

Each function in a list of `USES` is a row there, and its docstring the sentence. It runs in a process of
its own, which has no access to neobert_train.
"""

from compatibility import calling, converting, embedding, loading, pipelines, training

SECTIONS = {
    "Loading and saving": loading.USES,
    "Calling": calling.USES,
    "Compiling and converting": converting.USES,
    "Pipelines of transformers": pipelines.USES,
    "Fine-tuning": training.USES,
    "sentence-transformers": embedding.USES,
}
