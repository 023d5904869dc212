"""The model's code as a repository on the Hub holds it: one file of configuration and one of the model.

transformers scans every file of a repository for imports, and copies from a folder only those files
that the first one imports directly (versions up to 5.9). So the modules of `modeling/` are joined.
"""

import ast
from pathlib import Path

from neobert_train import modeling

CONFIGURATION = "configuration_neobert.py"
MODELING = "modeling_neobert.py"
# Each imports from those before it.
_JOINED = (
    "documents", "cpu_attention", "attention", "cross_entropy", "layouts", "blocks", "modeling_neobert",
    "heads",
)  # fmt: skip
_FOLDER = Path(modeling.__file__).parent
_DOCSTRING = '''"""NeoBERT: pre-norm transformer encoder with rotary positions and SwiGLU (arXiv 2502.19587).

Needs torch and transformers. This file joins the modules of neobert_train/modeling.
"""
'''


AUTO_MAP = {
    "AutoConfig": "configuration_neobert.NeoBERTConfig",
    "AutoModel": "modeling_neobert.NeoBERT",
    "AutoModelForMaskedLM": "modeling_neobert.NeoBERTForMaskedLM",
    "AutoModelForMultipleChoice": "modeling_neobert.NeoBERTForMultipleChoice",
    "AutoModelForPreTraining": "modeling_neobert.NeoBERTForMaskedLM",
    "AutoModelForQuestionAnswering": "modeling_neobert.NeoBERTForQuestionAnswering",
    "AutoModelForSequenceClassification": "modeling_neobert.NeoBERTForSequenceClassification",
    "AutoModelForTextEncoding": "modeling_neobert.NeoBERT",
    "AutoModelForTokenClassification": "modeling_neobert.NeoBERTForTokenClassification",
}
# With this a model that was fine-tuned is saved with its code (versions up to 4.5x do not by themselves).
_REGISTERED = {name.partition(".")[2]: auto for auto, name in reversed(AUTO_MAP.items())}


def write_remote_code(folder: Path) -> None:
    """Write the files that the `auto_map` of an export names."""
    text = (_FOLDER / CONFIGURATION).read_text(encoding="utf-8")
    (folder / CONFIGURATION).write_text(text, encoding="utf-8")
    (folder / MODELING).write_text(join_modules(), encoding="utf-8")


def join_modules() -> str:
    """Return the modules of the model as the text of one, without their imports of each other."""
    imports: dict[str, set[str]] = {}
    bodies = []
    for name in _JOINED:
        text = (_FOLDER / f"{name}.py").read_text(encoding="utf-8")
        docstring, *statements = ast.parse(text).body
        last_line = docstring.end_lineno
        for statement in statements:
            if not isinstance(statement, ast.Import | ast.ImportFrom):
                break
            last_line = statement.end_lineno
            _collect(statement, imports)
        bodies.append("\n".join(text.splitlines()[last_line:]).strip("\n"))
    registered = [f'{name}.register_for_auto_class("{auto}")' for name, auto in _REGISTERED.items()]
    head = "\n".join([_DOCSTRING, *_format(imports)])
    return "\n\n\n".join([head, *bodies, "\n".join(registered)]) + "\n"


def _collect(statement: ast.Import | ast.ImportFrom, imports: dict[str, set[str]]) -> None:
    """Note what a statement imports from outside, under `import` or `from MODULE import`."""
    names = {ast.unparse(alias) for alias in statement.names}
    if isinstance(statement, ast.Import):
        imports.setdefault("import", set()).update(names)
    elif statement.level == 0:
        imports.setdefault(f"from {statement.module} import", set()).update(names)
    elif statement.module not in _JOINED:
        imports.setdefault(f"from .{statement.module} import", set()).update(names)


def _format(imports: dict[str, set[str]]) -> list[str]:
    lines = [f"import {name}" for name in sorted(imports.pop("import", ()))]
    return lines + [
        f"{start} {', '.join(sorted(names))}" for start, names in sorted(imports.items())
    ]
