"""Write a checkpoint as a folder that transformers loads, and push it to the Hub."""

import shutil
from pathlib import Path

import transformers

from neobert_train.checkpoint import (
    CONFIG_FILE,
    TOKENIZER_FOLDER,
    load_state,
    load_weights,
)
from neobert_train.checkpoint_search import find_checkpoint
from neobert_train.config.saved import load_train_config
from neobert_train.config.schema import ExportConfig
from neobert_train.data.tokenization import load_tokenizer
from neobert_train.errors import InputError
from neobert_train.export.hub import push_to_hub
from neobert_train.export.hugging_face import write_model_folder
from neobert_train.export.model_card import render_model_card
from neobert_train.export.parity import check_parity
from neobert_train.metrics_file import find_latest, read_metrics
from neobert_train.model import build_model, load_into
from neobert_train.run_directory import RunDirectory
from neobert_train.terminal import print_output
from neobert_train.world import World


def run(config: ExportConfig, world: World) -> None:
    """Export, check the export against the checkpoint, and upload it when asked.

    Raises:
        InputError: the run, the step or the output folder does not fit, or the upload fails.
        ParityError: the export does not compute what the trained model computes.
    """
    transformers.utils.logging.disable_progress_bar()
    run_directory = RunDirectory(config.run_dir)
    output = Path(config.output).expanduser() if config.output else run_directory.export_folder
    checkpoint = find_checkpoint(run_directory, config.step)
    if checkpoint is None:
        raise InputError(f"{run_directory.path} holds no checkpoint: check run_dir")
    _check_output(output)
    train_config = load_train_config(checkpoint / CONFIG_FILE)
    tokenizer = load_tokenizer(str(checkpoint / TOKENIZER_FOLDER))
    state = load_state(checkpoint)
    model = build_model(train_config, tokenizer)
    load_into(model, load_weights(checkpoint), str(checkpoint))

    draft = output.with_name(f".tmp-{output.name}")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        write_model_folder(draft, model, tokenizer)
        difference = check_parity(draft, model)
        metrics = find_latest(read_metrics(run_directory.metrics_file), state.step)
        name = config.push_to_hub or str(output)
        card = render_model_card(name, train_config, state, tokenizer.vocab_size, metrics)
        (draft / "README.md").write_text(card, encoding="utf-8")
        shutil.rmtree(output, ignore_errors=True)
        draft.rename(output)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    print_output(
        f"exported step {state.step} to {output} (largest difference of a logit: {difference:.1g})"
    )
    if config.push_to_hub:
        print_output(f"uploaded to {push_to_hub(output, config.push_to_hub, config.private)}")


def _check_output(output: Path) -> None:
    """Replace an earlier export, and nothing else."""
    if output.exists() and not (output / "modeling_neobert.py").is_file() and any(output.iterdir()):
        raise InputError(
            f"{output} exists and is not an export: write output=... to choose another folder"
        )
