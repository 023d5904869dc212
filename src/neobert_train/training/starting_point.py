"""Where a run begins: anew, at given weights, or at the newest checkpoint that is its own."""

import contextlib
import hashlib
import json
import logging
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neobert_train.config.derived import compute_num_lanes, resolve_sources
from neobert_train.config.quoting import to_shell
from neobert_train.config.saved import find_changed_sources, find_differences, load_train_config
from neobert_train.config.schema import Resume, TrainConfig
from neobert_train.config.typed import parse, read_run_json
from neobert_train.data.corpus import (
    SourceFiles,
    find_file_differences,
    find_other_names,
    list_source_files,
    open_corpus,
    to_json,
)
from neobert_train.data.lane.lane import initial_states
from neobert_train.data.sources import Unit
from neobert_train.distributed import Collectives
from neobert_train.errors import InputError
from neobert_train.models.encoder import get_parameters
from neobert_train.models.families import build_encoder
from neobert_train.models.folder import pin_model
from neobert_train.models.loading import load_initial_weights
from neobert_train.run.checkpoint import (
    TOKENIZER_FOLDER,
    TrainingState,
    load_state,
    load_weights,
)
from neobert_train.run.checkpoint_search import find_checkpoint, find_misfit
from neobert_train.run.directory import RunDirectory
from neobert_train.run.metrics_file import read_metrics
from neobert_train.run.shared import share_checkpoint
from neobert_train.tokenizers.loading import build_tokenizer, load_tokenizer, pin_tokenizer
from neobert_train.tokenizers.text_tokenizer import TextTokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartingPoint:
    """What a run continues from, and what it reads.

    Attributes:
        tokenizer: of the run.
        units: of each source, by name.
        checkpoint: that it continues; None for one that begins.
        state: of the training; that of step 0 for a run that begins.
        weights: by parameter name; None for random ones.
        network: what the run kept of its network; None for one that begins, or keeps nothing.
        revisions: by setting, what was taken from the Hub, as `org/name@commit`.
    """

    tokenizer: TextTokenizer
    units: Mapping[str, Sequence[Unit]]
    checkpoint: Path | None
    state: TrainingState
    weights: dict[str, Tensor] | None
    network: dict[str, Any] | None
    revisions: dict[str, str]

    def pin(self, config: TrainConfig) -> TrainConfig:
        """Return the configuration with commits in place of branches, and the tokenizer that was found."""
        pinned = pin_config(config, self.revisions)
        return replace(pinned, tokenizer=replace(pinned.tokenizer, path=self.tokenizer.name))


def find_starting_point(
    config: TrainConfig, run: RunDirectory, collectives: Collectives
) -> StartingPoint:
    """Look at all that the user gave; nothing is written.

    Raises:
        InputError: the run directory, tokenizer, data or weights do not fit; on every process.
    """
    resumes = collectives.on_main(lambda: check_resume(config, run))
    revisions = collectives.on_main(lambda: find_revisions(config, run, resumes))
    pinned = pin_config(config, revisions)
    tokenizer = collectives.on_all(lambda: find_tokenizer(pinned, run, resumes))
    units = collectives.on_all(lambda: open_corpus(config, tokenizer))
    check_same_tokenizer(tokenizer, collectives)
    check_same_files(units, collectives)
    checkpoint = None
    if resumes:
        collectives.on_main(lambda: check_source_files(config, run, units))
        checkpoint = share_checkpoint(
            collectives, lambda: find_resume_point(config, run, tokenizer)
        )
    state, weights = collectives.on_all(
        lambda: load_state_and_weights(pinned, tokenizer, checkpoint)
    )
    network = read_kept_network(config, run) if resumes else None
    return StartingPoint(tokenizer, units, checkpoint, state, weights, network, revisions)


def find_revisions(config: TrainConfig, run: RunDirectory, resumes: bool) -> dict[str, str]:
    """Return by setting what is taken from the Hub, as `org/name@commit`.

    A run that continues takes the tokenizer that it had, wherever its branch is now.

    Raises:
        InputError: a name is not on the Hub, or a file of the run directory is damaged.
    """
    path = find_recorded(config, run) or config.tokenizer.path
    names: dict[str, str | None] = {}
    # A run that continues without it says so in `find_tokenizer`.
    with contextlib.suppress(*([InputError] if resumes else [])):
        names["tokenizer.path"] = pin_tokenizer(path)
    if config.init_from and not resumes:
        names["init_from"] = pin_model(config.init_from, f"init_from={config.init_from}")
    if config.model.source and not resumes:
        label, with_weights = f"model.name={config.model.source}", config.model.origin is not None
        names["model.name"] = pin_model(config.model.source, label, with_weights)
    return {key: name for key, name in names.items() if name is not None}


def find_tokenizer(config: TrainConfig, run: RunDirectory, resumes: bool) -> TextTokenizer:
    """Return the tokenizer of a run; where it is gone, that of the newest checkpoint.

    Raises:
        InputError: it cannot be read, or there is no checkpoint.
    """
    try:
        return build_tokenizer(config.tokenizer)
    except InputError as error:
        checkpoints = run.list_checkpoints() if resumes else []
        if not checkpoints or Path(config.tokenizer.path).expanduser().exists():
            raise  # what is there and cannot be read is another one than it was
        kept = str(checkpoints[-1][1] / TOKENIZER_FOLDER)
        logger.warning("continuing with the tokenizer in %s: %s", kept, error)
        return build_tokenizer(replace(config.tokenizer, path=kept))


def find_recorded(config: TrainConfig, run: RunDirectory) -> str | None:
    """Find the commit of the tokenizer that the latest start had; None without one of this name."""
    if not run.holds_run() or not run.config_file.exists():
        return None
    if load_train_config(run.config_file).tokenizer.path != config.tokenizer.path:
        return None
    starts = run.read_environments()
    return starts[-1].get("revisions", {}).get("tokenizer.path") if starts else None


def pin_config(config: TrainConfig, revisions: Mapping[str, str]) -> TrainConfig:
    """Return the configuration with the commits that `find_revisions` found."""
    path = revisions.get("tokenizer.path", config.tokenizer.path)
    init_from = revisions.get("init_from", config.init_from)
    name = revisions.get("model.name")
    return replace(
        config,
        init_from=init_from,
        model=config.model.pin(name) if name else config.model,
        tokenizer=replace(config.tokenizer, path=path),
    )


def read_kept_network(config: TrainConfig, run: RunDirectory) -> dict[str, Any] | None:
    """Return the network's configuration that a run kept; None where the settings name another one."""
    if run.config_file.exists():
        saved = load_train_config(run.config_file)
        if saved.model.network_key != config.model.network_key:
            return None
    return run.read_network()


def check_resume(config: TrainConfig, run: RunDirectory) -> bool:
    """Return whether there is a run to continue.

    Raises:
        InputError: `resume` forbids what was found, the directory holds another run, or its metrics
            are damaged.
    """
    if not run.holds_run():
        if config.resume is Resume.must:
            raise InputError(
                f"resume=must, but {run.path} holds no run: check output_dir, or leave resume out"
            )
        return False
    if config.resume is Resume.never:
        raise InputError(
            f"resume=never, but {run.path} already holds a run: write output_dir=... to choose "
            f"another directory, or leave resume out to continue"
        )
    for _ in read_metrics(run.metrics_file):
        pass  # raises where a line is damaged
    if run.config_file.exists():
        saved = load_train_config(run.config_file)
        if saved.optimizer.kind != config.optimizer.kind:
            raise InputError(
                f"{run.path} was trained with optimizer={saved.optimizer.kind}, whose state means "
                f"nothing to optimizer={config.optimizer.kind}: write output_dir=... and "
                f"{to_shell('init_from', str(run.path))} to train its weights further"
            )
        fatal, notable = find_differences(saved, config)
        if fatal and config.resume is not Resume.changed:
            raise InputError(
                f"{run.path} holds another run; write output_dir=... to start a new one, or give "
                f"the settings it was started with (resume=changed continues with these):\n  "
                + "\n  ".join(fatal)
            )
        for difference in fatal + notable:
            logger.warning("continuing with a changed setting: %s", difference)
    return True


def check_same_tokenizer(tokenizer: TextTokenizer, collectives: Collectives) -> None:
    """Raise InputError on every process where they have not all the same tokenizer."""
    if len(set(collectives.gather(tokenizer.fingerprint))) > 1:
        raise InputError(
            f"the processes find different tokenizers under tokenizer.path={tokenizer.name}: give all "
            f"hosts the same"
        )


def check_same_files(units: Mapping[str, Sequence[Unit]], collectives: Collectives) -> None:
    """Raise InputError on every process where one would read other files than the main process.

    Every process lists the files by itself, and those of another host may lie on another disk.
    """
    files = list_source_files(units)
    digest = hashlib.sha256(json.dumps(to_json(files)).encode()).hexdigest()
    if len(set(collectives.gather(digest))) == 1:
        return
    listed = parse(SourceFiles, collectives.on_main(lambda: to_json(files)))

    def compare() -> None:
        differences = find_file_differences(listed, files)
        if differences:
            raise InputError(
                f"process {collectives.world.rank} on {socket.gethostname()} finds other files than "
                f"the main process, so that they would not read the same documents: give all hosts "
                f"the same files\n  " + "\n  ".join(differences)
            )

    collectives.on_all(compare)


def check_source_files(
    config: TrainConfig, run: RunDirectory, units: Mapping[str, Sequence[Unit]]
) -> None:
    """Raise InputError when a run that continues would read other files than before.

    With resume=changed, sources whose settings name other files may have them; a move to another
    folder is no other file.
    """
    if not run.sources_file.exists():
        return
    fix = "restore it, or remove it if the files of the data are still the same"
    before = read_run_json(run.sources_file, SourceFiles, fix)
    now = list_source_files(units)
    if config.resume is Resume.changed and run.config_file.exists():
        for name in find_changed_sources(load_train_config(run.config_file), config):
            names = find_other_names(before.get(name, []), now.get(name, []))
            if names:
                logger.warning("continuing with other files of the source '%s': %s", name, names)
                before.pop(name, None)
    differences = find_file_differences(before, now)
    if differences:
        raise InputError(
            f"the files of {run.path} have changed since it began, so that it cannot continue with "
            f"the same documents; restore them, or write output_dir=... to start a new run. To "
            f"continue with other files, name them by other data settings and write resume=changed; "
            f"with edited files of the same names, remove {run.sources_file}:\n  "
            + "\n  ".join(differences)
        )


def find_resume_point(config: TrainConfig, run: RunDirectory, tokenizer: TextTokenizer) -> Path:
    """Return the newest sound checkpoint that is one of this run.

    Raises:
        InputError: there is none.
    """
    with torch.device("meta"):
        network = build_encoder(config, tokenizer, read_kept_network(config, run)).network
    shapes = {name: tuple(tensor.shape) for name, tensor in get_parameters(network).items()}

    def is_same_run(config_file: Path) -> bool:
        same = not find_differences(load_train_config(config_file), config)[0]
        if same or config.resume is Resume.changed:
            check_resumed_tokenizer(config, tokenizer, config_file.with_name(TOKENIZER_FOLDER))
            return True
        return False

    checkpoint = find_checkpoint(
        run, find_misfit=lambda folder: find_misfit(folder, shapes, is_same_run)
    )
    assert checkpoint is not None
    return checkpoint


def check_resumed_tokenizer(config: TrainConfig, tokenizer: TextTokenizer, folder: Path) -> None:
    """Raise InputError when a text no longer gets the ids that a run was trained with.

    Args:
        config: of the run; with resume=changed a warning says so.
        tokenizer: that it would continue with.
        folder: of the tokenizer in its checkpoint.
    """
    if tokenizer.gives_same_ids_as(load_tokenizer(str(folder))):
        return
    message = (
        f"tokenizer.path={config.tokenizer.path} gives other token ids than when the run began "
        f"(its own tokenizer is in {folder})"
    )
    if config.resume is not Resume.changed:
        raise InputError(
            f"{message}: restore the files, or name the commit of the Hub that had them "
            f"(tokenizer.path=org/name@COMMIT); resume=changed continues with the other ids"
        )
    logger.warning("continuing although %s", message)


def load_state_and_weights(
    config: TrainConfig, tokenizer: TextTokenizer, checkpoint: Path | None
) -> tuple[TrainingState, dict[str, Tensor] | None]:
    """Return where training begins: at a checkpoint, at given weights, or (None) at random ones."""
    if checkpoint is not None:
        state = load_state(checkpoint)
        check_lanes(config, state, checkpoint)
        return state, load_weights(checkpoint)
    state = TrainingState.begin(initial_states(range(compute_num_lanes(config))))
    key, origin = "init_from", config.init_from
    if not origin:
        key, origin = "model.name", config.model.origin
        check_own_tokenizer(config, tokenizer)
    if not origin:
        return state, None
    return state, load_initial_weights(key, origin, config.model, tokenizer.vocab_size)


def check_own_tokenizer(config: TrainConfig, tokenizer: TextTokenizer) -> None:
    """Raise InputError for weights whose own tokenizer gives other ids than the run's."""
    origin = config.model.origin
    if not origin or config.tokenizer.path == origin:
        return
    try:
        own = load_tokenizer(origin)
    except InputError:
        return  # it has none
    if not tokenizer.gives_same_ids_as(own):
        raise InputError(
            f"tokenizer.path={config.tokenizer.path} gives other ids than the tokenizer of "
            f"model.name={origin}, by which its weights were trained: leave tokenizer.path out, or write "
            f"model.from_scratch=true"
        )


def check_lanes(config: TrainConfig, state: TrainingState, checkpoint: Path) -> None:
    """Raise InputError when the places in the data are not those of the configured data."""
    num_lanes, names = compute_num_lanes(config), set(resolve_sources(config.data))
    read = {name for lane in state.lanes.values() for name in lane["streams"]}
    if len(state.lanes) != num_lanes or read - names:
        raise InputError(
            f"{checkpoint} has places for {len(state.lanes)} lanes in the sources "
            f"{', '.join(sorted(read))}, the configuration {num_lanes} lanes and "
            f"{', '.join(sorted(names))}: write output_dir=... and "
            f"{to_shell('init_from', str(checkpoint.parents[1]))} "
            f"to train on with its weights"
        )
