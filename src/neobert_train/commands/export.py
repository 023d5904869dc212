"""Write a checkpoint as a folder that transformers loads, and push it to the Hub."""

from pathlib import Path

import transformers

from neobert_train.config.command_schema import ExportConfig, ExportFormat
from neobert_train.config.embed_schema import Pooling
from neobert_train.errors import InputError
from neobert_train.evaluation.results import read_results
from neobert_train.export.hub import MAIN, push_to_hub
from neobert_train.export.model_card import CardNames, render_model_card
from neobert_train.export.onnx import write_onnx
from neobert_train.export.parity import check_parity
from neobert_train.export.pooling import write_pooling
from neobert_train.files import hash_file, write_atomically
from neobert_train.hub import HubError
from neobert_train.models.encoder import measure_size
from neobert_train.models.exported import hash_weights
from neobert_train.models.loading import load_trained
from neobert_train.report.evaluation_tables import render_card_section, render_hub_results
from neobert_train.run.checkpoint import (
    load_state,
)
from neobert_train.run.checkpoint_search import read_weights_digest
from neobert_train.run.directory import RunDirectory
from neobert_train.run.folders import OWNED_FILE, owned_folder, refuse_others
from neobert_train.run.metrics_file import find_latest, read_metrics
from neobert_train.terminal import print_output
from neobert_train.world import World

# What version 0.1.0 put into an export before it kept a list.
_UNLISTED = {
    "README.md", "attention.py", "config.json", "configuration_neobert.py", "cpu_attention.py",
    "cross_entropy.py", "model.safetensors", "modeling_neobert.py", "tokenizer.json",
    "tokenizer_config.json",
}  # fmt: skip


def run(config: ExportConfig, world: World) -> None:
    """Export, check the export against the checkpoint, and upload it when asked.

    Raises:
        InputError: the run, the step or the output folder does not fit, or the upload fails.
        ParityError: the export does not compute what the trained model computes.
    """
    transformers.utils.logging.disable_progress_bar()
    run_directory = RunDirectory(config.run_dir)
    output = Path(config.output).expanduser() if config.output else run_directory.export_folder
    refuse_others(output, OWNED_FILE)
    trained = load_trained(run_directory, config.step)
    state = load_state(trained.checkpoint)
    metrics = find_latest(read_metrics(run_directory.metrics_file), state.step)
    tokenizer, network = trained.tokenizer, trained.encoder.network
    with owned_folder(output, _list_unlisted(output, run_directory)) as draft:
        context_length = trained.config.batch.context_length
        trained.write(draft)
        if config.pooling is not Pooling.none:
            write_pooling(draft, network.config.hidden_size, config.pooling, context_length)
        difference = check_parity(draft, network, trained.config.model.needs_remote_code)
        if config.format is ExportFormat.onnx:
            write_onnx(draft, network, trained.encoder.max_length)
        location = config.push_to_hub or str(output)
        title = (config.push_to_hub or run_directory.path.resolve().name).rpartition("/")[2]
        revision = config.revision if config.push_to_hub else None
        names = CardNames(title, location, config.license, revision)
        size = measure_size(trained.encoder)
        evaluation = _write_evaluations(config, draft)
        card = render_model_card(names, trained.config, state, tokenizer, size, metrics, evaluation)
        write_atomically(draft / "README.md", card)
    print_output(
        f"exported step {state.step} to {output} (largest difference of a logit: {difference:.1g})"
    )
    if config.push_to_hub:
        digest = read_weights_digest(trained.checkpoint)
        print_output(f"uploaded to {_push(config, output, state.step, digest)}")


def _write_evaluations(config: ExportConfig, draft: Path) -> list[str]:
    """Return the lines of the card about comparisons, and write them for the Hub beside the model.

    Raises:
        InputError: a folder holds no results, or none of this checkpoint.
    """
    lines: list[str] = []
    weights = hash_weights(draft)
    for number, name in enumerate(config.evaluations):
        results = read_results(Path(name).expanduser())
        labels = [label for label, known in results.models.items() if known["weights"] == weights]
        if not labels:
            raise InputError(
                f"evaluations=[{name}] has no results of these weights: name the run in models=[...] of "
                f"`evaluate`, with RUN@STEP for a step that is not the newest"
            )
        lines += render_card_section(results, labels[0])
        text = render_hub_results(results, labels[0])
        if text:
            folder = draft / ".eval_results"
            folder.mkdir(exist_ok=True)
            write_atomically(
                folder / f"glue-{number}.yaml" if number else folder / "glue.yaml", text
            )
    return lines


def _push(config: ExportConfig, output: Path, step: int, digest: str) -> str:
    assert config.push_to_hub is not None
    revision, title = config.revision or MAIN, f"Step {step:,} of a run of neobert_train"
    try:
        return push_to_hub(
            output, config.push_to_hub, revision, title, digest, private=config.private
        )
    except HubError as error:
        raise InputError(
            f"the upload to {config.push_to_hub} failed: {error}; the export stays in {output}, and "
            f"the same command tries again"
        ) from error


def _list_unlisted(output: Path, run_directory: RunDirectory) -> dict[str, str]:
    """Return the sha256 by name of the files of an export that an earlier version wrote.

    It kept no list of them; in the run directory, they are known by being exactly those.
    """
    if output != run_directory.export_folder or not output.is_dir() or output.is_symlink():
        return {}
    files = [path for path in output.iterdir() if path.is_file() and not path.is_symlink()]
    if {path.name for path in output.iterdir()} != _UNLISTED or len(files) != len(_UNLISTED):
        return {}
    return {path.name: hash_file(path) for path in files}
