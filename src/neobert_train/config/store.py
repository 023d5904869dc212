"""Schemas registered with Hydra, the shipped YAML files, and the way from Hydra to dataclasses."""

import difflib
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from hydra import compose, initialize, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neobert_train.config.command_schema import SCHEMAS
from neobert_train.config.data_schema import MixtureSourceConfig
from neobert_train.config.quoting import quote, to_shell
from neobert_train.config.setting import ANY_NAME, iter_default_settings
from neobert_train.errors import InputError
from neobert_train.urls import show_value

COMMANDS_WITH_GROUPS = (
    "train", "prepare", "inspect_data", "train_tokenizer", "plan", "doctor", "status",
)  # fmt: skip

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

# Sources of a mixture are the one place where users give names of their own.
_ENTRIES = "data.mixture"
_ENTRY_KEY = re.compile(r"data\.mixture\.(?P<name>[^.]+)(\.(?P<setting>.+))?")

_PACKAGE = Path(__file__).resolve().parents[1]


def configs_directory() -> Path:
    """The shipped YAML files: inside an installed wheel, or beside `src` in a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parents[1] / "configs"


def register_schemas() -> None:
    """Make every command known to Hydra.

    A command with YAML files of its own finds its schema as `COMMAND_schema`. The others are their
    schema alone, and see no config groups, so that `model=FOLDER` is a setting to them.
    """
    store = ConfigStore.instance()
    store.store(name="quiet_hydra", node=_QUIET_HYDRA, package="_global_")
    for command, schema in SCHEMAS.items():
        store.store(name=f"{command}_schema", node=schema)
        if command not in COMMANDS_WITH_GROUPS:
            defaults = [f"{command}_schema", "quiet_hydra", "_self_"]
            store.store(name=command, node={"defaults": defaults})


def find_config_path(command: str) -> str | None:
    """The folder of a command's YAML files; None for a command without any."""
    return str(configs_directory()) if command in COMMANDS_WITH_GROUPS else None


def to_typed(command: str, composed: DictConfig) -> Any:
    """The dataclass of `command` holding the composed values.

    Raises:
        InputError: a key that the schema does not have (Hydra lets `+key=value` through) or a
            value of the wrong type.
    """
    try:
        typed = OmegaConf.merge(OmegaConf.structured(SCHEMAS[command]), composed)
        return OmegaConf.to_object(typed)
    except OmegaConfBaseException as error:
        raise InputError(describe_config_error(error)) from error


def describe_config_error(error: Exception) -> str:
    """The first lines of a Hydra or OmegaConf error, with its cause, fit for a user."""
    message = str(error).strip()
    cause = error.__cause__
    if cause is not None and str(cause).strip() not in message:
        message += f" ({str(cause).strip().splitlines()[0]})"
    return "\n".join(line for line in message.splitlines() if not line.startswith("    "))


def find_group_choices(command: str) -> dict[str, list[str]]:
    """Config groups of a command (`model`, `data`, ...) and the files to choose from in each."""
    if command not in COMMANDS_WITH_GROUPS:
        return {}
    folders = sorted(path for path in configs_directory().iterdir() if path.is_dir())
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in folders
    }  # fmt: skip


def find_override_problems(
    command: str, arguments: Sequence[str], known_groups: dict[str, list[str]], sweeps: bool
) -> tuple[list[str], list[str]]:
    """Check `key=value` arguments one by one, so that all mistakes are reported at once.

    Args:
        command: whose settings they are.
        arguments: in the form of Hydra.
        known_groups: the choices of each config group.
        sweeps: whether settings may have several values.

    Returns:
        The problems, each with its fix, and the arguments that have none.
    """
    problems, sound = [], []
    for argument in arguments:
        problem = _find_override_problem(command, argument, known_groups, sweeps)
        if problem is None:
            sound.append(argument)
        else:
            problems.append(problem)
    return problems, sound


def compose_config(command: str, overrides: Sequence[str]) -> DictConfig:
    """Compose a command's configuration outside Hydra's own main function.

    Raises:
        InputError: the configuration does not compose.
    """
    register_schemas()
    try:
        with _initialize(command):
            return compose(command, [normalise_override(override) for override in overrides])
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(describe_config_error(error)) from error


def list_swept_values(command: str, argument: str) -> list[str]:
    """`key=a,b` as `key=a` and `key=b`, also from `range(...)` and, of a config group, `glob(...)`.

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
    """What Hydra has to be told for what a user may write.

    `experiment=x` stands for `+experiment=x`, since no experiment is part of the defaults. A setting
    of a source, `data.mixture.NAME.key=value`, may name a source that is new, which Hydra takes
    only as `++data.mixture={NAME:{key:value}}`.
    """
    if argument.startswith("experiment="):
        return f"+{argument}"
    key, _, value = argument.partition("=")
    entry = _ENTRY_KEY.fullmatch(key.lstrip("+"))
    if entry is None:
        return argument
    setting = f"{{{entry['setting']}:{value}}}" if entry["setting"] else value
    return f"++{_ENTRIES}={{{entry['name']}:{setting}}}"


def _initialize(command: str) -> AbstractContextManager[None]:
    folder = find_config_path(command)
    if folder is None:
        return initialize(config_path=None, version_base=None)
    return initialize_config_dir(folder, version_base=None)


def _find_override_problem(
    command: str, argument: str, known_groups: dict[str, list[str]], sweeps: bool = False
) -> str | None:
    try:
        override = OverridesParser.create().parse_override(argument)
        if override.is_sweep_override() and not sweeps:
            return _describe_unwanted_sweep(argument, known_groups)
        if override.is_sweep_override():
            return _find_swept_problem(command, argument, known_groups)
    except HydraException:
        return _describe_unparsed(argument)
    key = override.get_key_element().lstrip("+~").split("@")[0]
    if key in known_groups:
        return _find_choice_problem(key, override, known_groups[key])
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        return None
    schema = SCHEMAS[command]
    known = [setting.key for setting in iter_default_settings(schema)]
    entry = _ENTRY_KEY.fullmatch(key)
    if (entry and not entry["setting"]) or key == _ENTRIES:
        return None  # a whole source is given or taken out; its keys are checked while composing
    if entry:
        key = f"{_ENTRIES}.{ANY_NAME}.{entry['setting']}"
    if key not in known:
        message = _describe_unknown_key(key, [*known, *known_groups], command)
        return message.replace(f".{ANY_NAME}.", f".{entry['name']}.") if entry else message
    if override.is_delete():
        return f"~{key} deletes a setting, which every run needs: write {key}=VALUE instead"
    if entry:
        return _find_type_problem(MixtureSourceConfig, entry["setting"], override)
    return _find_type_problem(schema, key, override)


def _find_swept_problem(
    command: str, argument: str, known_groups: dict[str, list[str]]
) -> str | None:
    try:
        values = list_swept_values(command, argument)
    except InputError as error:
        return str(error)
    problems = (_find_override_problem(command, value, known_groups) for value in values)
    return next(filter(None, problems), None)


def _describe_unwanted_sweep(argument: str, known_groups: dict[str, list[str]]) -> str:
    key, _, values = argument.partition("=")
    problem = f"{show_value(argument)} stands for several values: write -m too for a run of each"
    if key.lstrip("+") in known_groups:
        return problem
    values = show_value(values)
    return f"{problem}, {key}=[{values}] for a list, or {to_shell(key, values)} for one text"


def _describe_unparsed(argument: str) -> str:
    if "=" not in argument:
        return f"'{show_value(argument)}' is neither a flag nor of the form key=value"
    key, _, value = argument.partition("=")
    if value.startswith("[") and value.endswith("]"):
        items = ",".join(quote(show_value(item.strip())) for item in value[1:-1].split(","))
        return (
            f"the list of {key} cannot be read: quote its items and the whole, as in "
            f"{shlex.quote(f'{key}=[{items}]')}"
        )
    return (
        f"the value of {key} cannot be read: quote characters that have a meaning to Hydra, as in "
        f"{shlex.quote(f'{key}={quote(show_value(value))}')}"
    )


def _find_choice_problem(group: str, override: Override, choices: list[str]) -> str | None:
    if override.is_delete():
        return f"~{group} would leave the run without it: choose among {', '.join(choices)}"
    if override.value() in choices:
        return None
    name = show_value(override.get_value_element_as_str())
    return f"{group}={name} does not exist: choose among {', '.join(choices)}"


def _describe_unknown_key(key: str, known: Sequence[str], command: str) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.7) or _find_same_leaf(key, known)
    mend = f"did you mean {close[0]}?" if close else f"`{command} --help` lists them all"
    return f"there is no setting {key}: {mend}"


def _find_same_leaf(key: str, known: Sequence[str]) -> list[str]:
    leaf = key.rsplit(".", 1)[-1]
    return [candidate for candidate in known if candidate.rsplit(".", 1)[-1] == leaf]


def _find_type_problem(schema: type[Any], key: str, override: Override) -> str | None:
    config = OmegaConf.structured(schema)
    try:
        OmegaConf.update(config, key, override.value(), merge=False)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        written = f"{override.get_key_element()}={override.get_value_element_as_str()}"
        return f"{show_value(written)} does not fit: {reason}{_hint(override, reason)}"
    return None


# What OmegaConf says of a value of another type, by the end of its message, and what would fit.
_FITTING = {
    "to Integer": "a whole number",
    "to Float": "a number",
    "is not a valid bool": "true or false",
}


def _hint(override: Override, reason: str) -> str:
    value = override.value()
    if isinstance(value, str) and "ListConfig" in reason:
        written = show_value(override.get_value_element_as_str())
        return f"; write {override.get_key_element()}=[{written}]"
    if isinstance(value, list) and "string" in reason:
        written = show_value(override.get_value_element_as_str())
        return f"; write '{override.get_key_element()}=\"{written}\"'"
    if isinstance(value, float) and value.is_integer():
        return f"; write {override.get_key_element()}={int(value)}"
    for said, fitting in _FITTING.items():
        if said in reason:
            return f"; write {override.get_key_element()}=... with {fitting}"
    return ""


def iter_help_lines(command: str) -> Iterator[str]:
    """Every setting of a command with its default, range and description."""
    for setting in iter_default_settings(SCHEMAS[command]):
        default = getattr(setting.value, "name", setting.value)
        bounds = f" ({setting.range})" if str(setting.range) else ""
        yield f"  {setting.key}={_format_default(default)}{bounds}"
        yield f"      {setting.description}"


def _format_default(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return re.sub(r"[' ]", "", str(value))
