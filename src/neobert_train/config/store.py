"""Schemas registered with Hydra, the shipped YAML files, and the way from Hydra to dataclasses."""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, get_type_hints

from hydra import compose, initialize, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from neobert_train.config.choice import Choice
from neobert_train.config.choices import CHOICES, build_defaults, list_chosen_sections
from neobert_train.config.command_schema import SCHEMAS
from neobert_train.config.data_schema import MixtureSourceConfig
from neobert_train.config.embed_schema import PairsConfig
from neobert_train.config.quoting import quote
from neobert_train.config.schema import TrainConfig
from neobert_train.errors import InputError

_EXPERIMENT_COMMANDS = (
    "train", "prepare", "inspect_data", "train_tokenizer", "plan", "doctor", "status",
)  # fmt: skip
# Commands with YAML files, and the folder of these. What is a group for a command cannot be a setting
# of it: `model=FOLDER` goes with a folder that has no group of that name.
_FOLDERS = {**dict.fromkeys(_EXPERIMENT_COMMANDS, ""), "evaluate": "evaluate", "embed": "embed"}

# Config groups of which the defaults choose nothing; a choice is added, as in `+experiment=smoke`.
ADDED_GROUPS = ("experiment", "size")

# Hydra composes and does nothing else: no dated folders (they differ from rank to rank), no logs.
_QUIET_HYDRA = {
    "defaults": [
        {"override hydra/job_logging": "disabled"},
        {"override hydra/hydra_logging": "disabled"},
    ],
    "hydra": {
        # Loggers made before Hydra sets up logging are those of whatever was imported first.
        "job_logging": {"disable_existing_loggers": False},
        "hydra_logging": {"disable_existing_loggers": False},
        "output_subdir": None,
        "run": {"dir": "."},
        "sweep": {"dir": ".", "subdir": "."},
    },
}

# The store, for which command and with which kinds it was filled last: that takes a third of composing.
_filled: list[Any] = []

# Settings under which users give names of their own, and what lies under each name.
ENTRIES: dict[str, type[Any]] = {"data.mixture": MixtureSourceConfig, "datasets": PairsConfig}
ENTRY_KEY = re.compile(
    rf"(?P<entries>{'|'.join(map(re.escape, ENTRIES))})\.(?P<name>[^.]+)(\.(?P<setting>.+))?"
)

_PACKAGE = Path(__file__).resolve().parents[1]


def configs_directory() -> Path:
    """Return the shipped YAML files: inside an installed wheel, or beside `src` in a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parents[1] / "configs"


def register_schemas(command: str) -> None:
    """Make a command known to Hydra, and the kinds that it may choose.

    A command with YAML files of its own finds its schema as `COMMAND_schema`. The others are their
    schema only, and see no config groups, so that `model=FOLDER` is a setting to them.
    """
    store = ConfigStore.instance()
    filled = [store, command, {section: dict(kinds) for section, kinds in CHOICES.items()}]
    if filled == _filled:
        return
    _filled[:] = filled
    store.store(name="quiet_hydra", node=_QUIET_HYDRA, package="_global_")
    has_choices = command in _EXPERIMENT_COMMANDS
    for section, kinds in CHOICES.items():
        store.repo.pop(section, None)  # of the command before, if this process has composed another
        for kind, settings in kinds.items() if has_choices else ():
            node = {section: OmegaConf.structured(settings), **settings.elsewhere}
            store.store(group=section, name=kind, node=node, package="_global_")
    node = OmegaConf.structured(SCHEMAS[command])
    for section in list_chosen_sections(SCHEMAS[command]):
        node[section] = MISSING  # the group of the same name fills it with the kind's own class
    store.store(name=f"{command}_schema", node=node)
    if command not in _FOLDERS:
        defaults = [f"{command}_schema", "quiet_hydra", "_self_"]
        store.store(name=command, node={"defaults": defaults})


def find_config_path(command: str) -> str | None:
    """Return the folder of a command's YAML files; None for a command without any."""
    return str(configs_directory() / _FOLDERS[command]) if command in _FOLDERS else None


def to_typed(command: str, composed: DictConfig) -> Any:
    """Return the dataclass of `command` holding the composed values.

    Raises:
        InputError: a key that the kinds chosen do not have (Hydra lets `+key=value` through) or a
            value of the wrong type.
    """
    schema = SCHEMAS[command]
    try:
        kinds = {name: _find_kind(composed, name) for name in list_chosen_sections(schema)}
        # Without the classes of the composed sections, which would admit keys of `+key=value`.
        values = OmegaConf.create(OmegaConf.to_container(composed))
        typed = OmegaConf.merge(OmegaConf.structured(build_defaults(schema, kinds)), values)
        return OmegaConf.to_object(typed)
    except OmegaConfBaseException as error:
        raise InputError(describe_config_error(error)) from error


def _find_kind(composed: DictConfig, section: str) -> type[Choice]:
    """Return the kind with which a section was composed.

    Raises:
        InputError: it is none, or `kind` names another, whose defaults it does not have.
    """
    found = OmegaConf.get_type(composed, section)
    kind = next((kind for kind in CHOICES[section].values() if kind is found), None)
    if kind is None:
        raise InputError(f"{section} has no kind: {_describe_group_file(section)}")
    named = composed[section].kind
    if named != kind().kind:
        known = " or ".join(CHOICES[section])
        raise InputError(
            f"{section}.kind={named} is not set by itself: write {section}=KIND on the command line, or "
            f"`override /{section}: KIND` among the defaults of an experiment, with {known} as KIND"
        )
    return kind


def _describe_group_file(section: str) -> str:
    return (
        f"a file of the group {section} begins with `defaults: [KIND, _self_]`, where KIND is one of "
        f"{', '.join(CHOICES[section])}"
    )


def describe_config_error(error: Exception) -> str:
    """Return the first lines of a Hydra or OmegaConf error, with its cause, fit for a user."""
    message = str(error).strip()
    cause = error.__cause__
    if cause is not None and str(cause).strip() not in message:
        message += f" ({str(cause).strip().splitlines()[0]})"
    message = "\n".join(line for line in message.splitlines() if not line.startswith("    "))
    if isinstance(error, InterpolationResolutionError) and error.full_key:  # on a line left out
        message = f"{error.full_key} cannot be resolved: {message}"
    for section, base in get_type_hints(TrainConfig).items():
        if section in CHOICES and f"not in '{base.__name__}'" in message:
            message += f": {_describe_group_file(section)}"
    return message


def find_group_choices(command: str) -> dict[str, list[str]]:
    """Return the config groups of a command (`model`, `data`, ...) and what to choose from in each.

    A choice is a shipped file, as `smoke` or `ladder/m0`, or a kind with its defaults.
    """
    if command not in _FOLDERS:
        return {}
    folder = configs_directory() / _FOLDERS[command]
    groups: dict[str, set[str]] = {}
    if command in _EXPERIMENT_COMMANDS:
        groups = {section: set(kinds) for section, kinds in CHOICES.items()}
    for file in folder.glob("*/**/*.yaml"):
        group, *parts = file.relative_to(folder).with_suffix("").parts
        if group not in _FOLDERS:
            groups.setdefault(group, set()).add("/".join(parts))
    return {group: sorted(groups[group]) for group in sorted(groups)}


def compose_config(command: str, overrides: Sequence[str]) -> DictConfig:
    """Compose a command's configuration outside Hydra's own main function.

    Raises:
        InputError: the configuration does not compose.
    """
    register_schemas(command)
    try:
        with _initialize(command):
            composed = compose(
                command, list(map(normalise_override, overrides)), return_hydra_config=True
            )
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # a group may be a number
        raise InputError(describe_config_error(error)) from error
    HydraConfig.instance().set_config(composed)  # for `${hydra:...}`
    with open_dict(composed):
        composed.pop("hydra")
    return composed


def wants_hydra() -> bool:
    """Return whether what was composed last has settings that only Hydra's own main function obeys."""
    own = HydraConfig.get()
    return bool(
        own.job.env_set or own.job.env_copy or own.job.chdir or own.callbacks or own.verbose
    )


def list_swept_values(command: str, argument: str) -> list[str]:
    """Return `key=a,b` as `key=a` and `key=b`, also `range(...)` and, of a group, `glob(...)`.

    Args:
        command: whose setting or group it is.
        argument: an override that Hydra can read; as it is when it holds a single value.

    Raises:
        InputError: it stands for no values that can be listed.
    """
    override = OverridesParser.create().parse_override(argument)
    if not override.is_sweep_override():
        return [argument]
    key, value, values = override.get_key_element(), override.value(), list[str]()
    if isinstance(value, Glob):
        values = value.filter(find_group_choices(command).get(key.lstrip("+"), []))
    elif override.is_discrete_sweep():
        values = list(override.sweep_string_iterator())
    if not values:
        raise InputError(f"{argument} stands for no values: list them, as in {key}=a,b")
    return [f"{key}={value}" for value in values]


def normalise_override(argument: str) -> str:
    """Return what Hydra has to be told for what a user may write.

    `experiment=x` stands for `+experiment=x`, since no experiment is part of the defaults, and so does
    `size=x`. A setting of a source, `data.mixture.NAME.key=value`, may name a source that is new, which
    Hydra takes only as `++data.mixture={NAME:{key:value}}`; so it is with all of `ENTRIES`.
    """
    if argument.startswith(tuple(f"{group}=" for group in ADDED_GROUPS)):
        return f"+{argument}"
    key, _, value = argument.partition("=")
    if key == "grid.task_epochs":
        return f"++{argument}"  # whose keys are names of tasks, which Hydra does not know
    entry = ENTRY_KEY.fullmatch(key.lstrip("+"))
    if entry is None:
        return argument
    setting = f"{{{entry['setting']}:{value or quote(value)}}}" if entry["setting"] else value
    return f"++{entry['entries']}={{{entry['name']}:{setting}}}"


def _initialize(command: str) -> AbstractContextManager[None]:
    folder = find_config_path(command)
    if folder is None:
        return initialize(config_path=None, version_base=None)
    return initialize_config_dir(folder, version_base=None)
