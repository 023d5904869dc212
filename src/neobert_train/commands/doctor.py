"""What this machine has, what a run would use of it, and what would stop the run."""

import os
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch

from neobert_train.config.checks import find_experiment_problems
from neobert_train.config.choices import Role
from neobert_train.config.command_schema import DoctorConfig
from neobert_train.config.derived import compute_num_lanes, resolve_sources
from neobert_train.config.divisors import find_divisors
from neobert_train.config.model_schema import has_quack
from neobert_train.config.schema import Precision
from neobert_train.data.corpus import list_source_files, open_corpus
from neobert_train.data.heldout import sample_source
from neobert_train.data.lane.admission import build_admission
from neobert_train.data.lane.targets import MOST_UNKNOWN, describe_unknown
from neobert_train.distributed import find_device
from neobert_train.errors import InputError
from neobert_train.export.hub import describe_access
from neobert_train.hub import HubError
from neobert_train.machine.devices import (
    choose_precision,
    describe_slow_bf16,
    find_peak_flops,
    has_native_bf16,
)
from neobert_train.machine.environment import find_versions
from neobert_train.machine.peak import format_flops
from neobert_train.machine.threads import describe_waiting
from neobert_train.modeling.attention import (
    BACKENDS,
    choose_backend,
    find_flash_attention,
    find_obstacle,
)
from neobert_train.models.compilation import decide_compilation, find_compiler_obstacle
from neobert_train.models.cost import build_cost
from neobert_train.models.encoder import DTYPES
from neobert_train.models.families import build_encoder
from neobert_train.models.feed_forward import load_quack
from neobert_train.models.loading import load_initial_weights, load_into
from neobert_train.models.memory import USABLE_MEMORY, estimate_memory, find_largest_micro_batch
from neobert_train.models.size import count_moments
from neobert_train.optim.optimizers import build_optimizer
from neobert_train.run.directory import RunDirectory
from neobert_train.terminal import print_output
from neobert_train.tokenizers.loading import build_tokenizer
from neobert_train.tokenizers.text_tokenizer import TextTokenizer
from neobert_train.training.engine import import_deepspeed
from neobert_train.training.starting_point import check_resume
from neobert_train.urls import show_value
from neobert_train.world import World

Result = TypeVar("Result")

_LAUNCHERS = ("deepspeed", "torchrun", "srun")
# A run is more patient; here one short attempt says enough.
_NETWORK_SECONDS = 10.0
_SAMPLE_DOCUMENTS = 256


@dataclass
class Findings:
    """What was found so far.

    Attributes:
        lines: of the report.
        notes: what does not stop a run, and is good to know.
        problems: what stops it, each with its fix.
    """

    lines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def tell(self, name: str, text: str) -> None:
        """Add a line to the report."""
        self.lines.append(f"{name:11} {text}")

    def attempt(self, function: Callable[[], Result]) -> Result | None:
        """Return what a function returns; None when it finds a problem, which is kept."""
        try:
            return function()
        except InputError as error:
            self.problems.append(str(error))
            return None


def run(config: DoctorConfig, world: World) -> None:
    """Print what was found, problems last.

    Raises:
        InputError: listing what would stop a run.
    """
    if not world.is_main:
        return
    findings = examine(config, world)
    print_output("\n".join([*findings.lines, *(f"note: {note}" for note in findings.notes)]))
    if findings.problems:
        raise InputError.from_problems(findings.problems)
    print_output("no problems: a run can start")


def examine(config: DoctorConfig, world: World) -> Findings:
    """Examine everything that can be known in some seconds."""
    findings = Findings(problems=find_experiment_problems(config))
    settings_are_sound = not findings.problems
    device = find_device(world)
    _examine_software(findings, device)
    _examine_device(findings, device)
    asked, config = config, _settle_precision(findings, config, device)
    _examine_kernels(findings, config, device)
    if settings_are_sound:
        _examine_launch(findings, config)
    _examine_run_directory(findings, asked)
    _examine_hub(findings, config)
    tokenizer = findings.attempt(lambda: build_tokenizer(config.tokenizer))
    if tokenizer is None:
        return findings
    findings.tell("tokenizer", f"{config.tokenizer.path}, {tokenizer.vocab_size:,} entries")
    _examine_disk(findings, config, tokenizer)
    if config.model.source is not None:
        findings.attempt(lambda: _examine_network(findings, config, tokenizer, device))
    if settings_are_sound and device.type == "cuda":
        _examine_memory(findings, config, device, tokenizer)
    if settings_are_sound:
        findings.attempt(lambda: _examine_data(findings, config, tokenizer))
    return findings


def _examine_software(findings: Findings, device: torch.device) -> None:
    versions = find_versions()
    present = [f"{name} {version}" for name, version in versions.items() if version]
    findings.tell("python", f"{platform.python_version()} on {platform.platform()}")
    findings.tell("packages", ", ".join(present))
    findings.tell("", f"not installed: {', '.join(n for n, v in versions.items() if not v) or '-'}")
    try:
        import_deepspeed(device)
    except Exception as error:  # a broken build raises OSError, RuntimeError, ...
        findings.problems.append(
            f"deepspeed cannot be imported ({type(error).__name__}: {error}): "
            f"reinstall it with DS_BUILD_OPS=0 pip install --force-reinstall --no-deps deepspeed"
        )
    path = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    found = {name: shutil.which(name, path=path) or "-" for name in _LAUNCHERS}
    findings.tell("launchers", ", ".join(f"{name} {place}" for name, place in found.items()))


def _examine_device(findings: Findings, device: torch.device) -> None:
    if device.type == "cpu":
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        findings.tell(
            "device",
            f"cpu, {torch.get_num_threads()} threads on {os.cpu_count()} cores, "
            f"{memory / 1e9:.1f} GB of memory",
        )
        findings.tell("threads", f"while they wait for each other: {describe_waiting()}")
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        findings.tell(
            "device",
            f"cuda:{index} {torch.cuda.get_device_name(index)}, {total / 1e9:.1f} GB of memory, "
            f"{free / 1e9:.1f} GB free",
        )


def _settle_precision(
    findings: Findings, config: DoctorConfig, device: torch.device
) -> DoctorConfig:
    """Return the configuration with the precision that a run would train in."""
    wanted = config.trainer.precision
    chosen = choose_precision(wanted, device)
    rates = {name: find_peak_flops(device, dtype) for name, dtype in DTYPES.items()}
    known = {name: rate for name, rate in rates.items() if rate is not None}
    if known:
        shown = ", ".join(f"{name.value} {format_flops(rate)}" for name, rate in known.items())
        origin = "measured" if device.type == "cpu" else "as the data sheet says"
        findings.tell("peak", f"{shown}, {origin}")
    else:
        findings.notes.append("the peak rate of this kind of GPU is not known: no train/mfu")
    findings.tell("precision", f"trainer.precision={wanted.value} takes {chosen.value}")
    if chosen is Precision.bf16 and not has_native_bf16(device):
        findings.notes.append(f"{describe_slow_bf16(device)}: write trainer.precision=fp32")
    return replace(config, trainer=replace(config.trainer, precision=chosen))


def _examine_kernels(findings: Findings, config: DoctorConfig, device: torch.device) -> None:
    precision, wanted = config.trainer.precision, config.model.attention.value
    dtype = DTYPES[precision]
    try:
        backend = choose_backend(wanted, device, dtype)
        findings.tell("attention", f"model.attention={wanted} takes {backend} in {precision.value}")
    except ValueError as error:
        findings.tell("attention", f"model.attention={wanted} cannot be had")
        findings.problems.append(f"{error}; write model.attention=auto to take one that can")
    for name in BACKENDS:
        obstacle = find_obstacle(name, device, dtype)
        findings.tell("", f"{name}: {obstacle or 'can run' + _show_release(name, device)}")
    if has_quack(config.model):
        try:
            load_quack(device, dtype)
            findings.tell("feed-forward", "model.feed_forward=quack can run")
        except InputError as error:
            findings.tell("feed-forward", "model.feed_forward=quack cannot be had")
            findings.problems.append(str(error))
    obstacle = find_compiler_obstacle(device)
    compiles = decide_compilation(config, device)
    use = "a run compiles its blocks" if compiles else "a run does not use it (model.compile)"
    findings.tell("compile", f"torch.compile {obstacle or f'can run; {use}'}")
    if compiles and obstacle:
        findings.notes.append(f"torch.compile {obstacle}: a run continues uncompiled")
    _examine_optimizer(findings, config, device)


def _examine_network(
    findings: Findings, config: DoctorConfig, tokenizer: TextTokenizer, device: torch.device
) -> None:
    """Load a network that comes from elsewhere, and let it compute a few documents."""
    encoder, origin = build_encoder(config, tokenizer), config.model.origin
    if origin is not None:
        weights = load_initial_weights("model.name", origin, config.model, tokenizer.vocab_size)
        load_into(encoder, weights, f"model.name={origin}")
    kernel = encoder.settle_kernels(config.model, device, DTYPES[config.trainer.precision])
    findings.tell(
        "network", f"{config.model.source}, {type(encoder.network).__name__}: {kernel} attention"
    )


def _examine_optimizer(findings: Findings, config: DoctorConfig, device: torch.device) -> None:
    kind = config.optimizer.kind
    try:
        weight = torch.nn.Parameter(torch.ones(8, 8, device=device))
        weight.grad = torch.ones_like(weight)
        roles = {"weight": Role.hidden_matrix}
        build_optimizer(config.optimizer, {"weight": weight}, roles, {}).step()
        findings.tell("optimizer", f"optimizer={kind} can take a step on {device.type}")
    except RuntimeError as error:
        findings.problems.append(
            f"optimizer={kind} does not run on {device.type} ({error}): install another build of torch, "
            f"2.10 or newer"
        )


def _show_release(backend: str, device: torch.device) -> str:
    return f" ({find_flash_attention(device).__name__})" if backend == "flash_attn" else ""


def _find_num_processes(config: DoctorConfig) -> int:
    """Return as many processes as have a device each and share the lanes evenly."""
    num_devices = max(1, torch.cuda.device_count())
    return max(n for n in find_divisors(compute_num_lanes(config)) if n <= num_devices)


def _examine_launch(findings: Findings, config: DoctorConfig) -> None:
    lanes, num_devices = compute_num_lanes(config), max(1, torch.cuda.device_count())
    num_processes = _find_num_processes(config)
    if num_processes < num_devices:
        findings.notes.append(
            f"{lanes} lanes (batch.global_batch_tokens / batch.micro_batch_tokens) go evenly to "
            f"{num_processes} of the {num_devices} devices and to no more"
        )
    launcher = (
        f"deepspeed --num_gpus {num_processes} --module" if num_processes > 1 else "python -m"
    )
    findings.tell(
        "launch", shlex.join([*launcher.split(), "neobert_train", *map(show_value, sys.argv[1:])])
    )
    findings.tell(
        "step",
        f"{lanes} lanes: {lanes // num_processes} micro-batches of "
        f"{config.batch.micro_batch_tokens:,} tokens on each of {num_processes} processes, "
        f"ZeRO {config.deepspeed.zero_stage}",
    )


def _examine_run_directory(findings: Findings, config: DoctorConfig) -> None:
    run = RunDirectory(config.output_dir)
    checkpoints = run.list_checkpoints()
    state = f"continues from step {checkpoints[-1][0]}" if checkpoints else "a run begins"
    findings.tell("output_dir", f"{run.path}: {state}")
    findings.attempt(lambda: check_resume(config, run))
    if (run.lock_file).exists():
        findings.attempt(lambda: run.claim(wait_seconds=0))
        run.release()
    folder = _find_existing_folder(run)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        findings.problems.append(
            f"{folder} cannot be written to ({error.strerror}): write output_dir=... to choose "
            f"another run directory"
        )


def _examine_hub(findings: Findings, config: DoctorConfig) -> None:
    if config.hub.repository is None:
        return
    try:
        findings.tell("hub", describe_access(config.hub.repository, _NETWORK_SECONDS))
    except HubError as error:
        findings.notes.append(f"nothing could be pushed to {config.hub.repository}: {error}")


def _find_existing_folder(run: RunDirectory) -> Path:
    """Return the run directory, or the nearest of those above it that is there."""
    path = run.path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _examine_disk(findings: Findings, config: DoctorConfig, tokenizer: TextTokenizer) -> None:
    run, checkpoint = RunDirectory(config.output_dir), config.checkpoint
    folder = _find_existing_folder(run)
    free = shutil.disk_usage(folder).free
    model = build_cost(config.model, tokenizer.vocab_size).size
    parameters = model.parameters
    size = 4 * (parameters + count_moments(config.optimizer, model))  # all in fp32
    # One more is there while it is being written.
    kept = checkpoint.keep_last + checkpoint.keep_best + 1
    needed = max(1, kept - len(run.list_checkpoints())) * size
    findings.tell(
        "disk",
        f"{free / 1e9:,.1f} GB free; a checkpoint of {parameters:,} parameters takes "
        f"{size / 1e9:,.2f} GB, and up to {kept} are there at a time",
    )
    if free < size:
        findings.problems.append(
            f"{folder} has no room for a checkpoint: make some, or write output_dir=... to choose "
            f"another disk"
        )
    elif free < needed:
        findings.notes.append(
            f"{folder} has no room for {kept} checkpoints: lower checkpoint.keep_last, or write "
            f"output_dir=... to choose another disk"
        )


def _examine_memory(
    findings: Findings, config: DoctorConfig, device: torch.device, tokenizer: TextTokenizer
) -> None:
    stage, num_processes = config.deepspeed.zero_stage, _find_num_processes(config)
    _, total = torch.cuda.mem_get_info(device)
    if find_compiler_obstacle(device):
        config = replace(config, model=replace(config.model, compile=False))
    arguments = config, tokenizer.vocab_size, stage, num_processes
    needed = sum(estimate_memory(*arguments, config.batch.micro_batch_tokens))
    largest = find_largest_micro_batch(*arguments, total)
    findings.tell(
        "memory",
        f"{needed / 1e9:,.1f} GB of {total / 1e9:,.1f} GB (estimate); the largest that "
        f"fits: batch.micro_batch_tokens={largest}",
    )
    if needed > USABLE_MEMORY * total:
        fix = (
            f"batch.micro_batch_tokens={largest}" if largest else "deepspeed=zero3 or fewer layers"
        )
        findings.notes.append(f"the device's memory may not be enough: write {fix}")


def _examine_data(findings: Findings, config: DoctorConfig, tokenizer: TextTokenizer) -> None:
    seconds = min(_NETWORK_SECONDS, config.data.timeout_seconds)
    data = replace(config.data, max_retries=0, timeout_seconds=seconds)
    units = open_corpus(replace(config, data=data), tokenizer)
    for name, files in list_source_files(units).items():
        size = sum(file.version.size or 0 for file in files)
        text = f"{name}: {len(files):,} files or shards"
        text += f", {size / 1e6:,.1f} MB" if size else ""
        admission = build_admission(data, resolve_sources(data)[name])
        sample = sample_source(units[name], admission, tokenizer, 0, _SAMPLE_DOCUMENTS)
        share = sample.compute_unknown_share(tokenizer)
        findings.tell("data", f"{text}; {sample.num_documents:,} documents were read")
        findings.tell("", f"{share:.2%} of their tokens are unknown to the tokenizer")
        if share > MOST_UNKNOWN:
            found = findings.problems if share == 1.0 else findings.notes
            found.append(describe_unknown(share, f"the source '{name}'", tokenizer.name))
