"""What is wrong with the overrides of a command line, each checked by itself and all reported at once."""

import itertools
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neobert_train.config.choice import Choice
from neobert_train.config.choices import CHOICES
from neobert_train.config.command_schema import SCHEMAS
from neobert_train.config.quoting import quote, to_shell
from neobert_train.config.setting import ANY_NAME, iter_default_settings
from neobert_train.config.store import (
    ADDED_GROUPS,
    ENTRIES,
    ENTRY_KEY,
    compose_config,
    find_group_choices,
    list_swept_values,
    to_typed,
)
from neobert_train.config.suggestion import find_setting
from neobert_train.errors import InputError
from neobert_train.urls import show_value

# What commands over an experiment and commands over a finished run call the run directory.
_SAME_FOLDER = {"run_dir": "output_dir", "output_dir": "run_dir"}


@dataclass
class CommandLine:
    """The overrides of a command, and what they may be.

    Attributes:
        command: whose settings they are.
        arguments: in the form of Hydra.
        sweeps: whether settings may have several values.
    """

    command: str
    arguments: Sequence[str]
    sweeps: bool = False

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """The choices of each config group."""
        return find_group_choices(self.command)

    @cached_property
    def config(self) -> Any | None:
        """The typed configuration of a single run; None where the arguments do not compose."""
        try:
            return None if self.sweeps else self.compose()
        except InputError:
            return None  # the arguments one by one say what is wrong, or else composing once more

    def compose(self) -> Any:
        """Return the typed configuration of all arguments together.

        Raises:
            InputError: they do not compose; says what Hydra finds first.
        """
        return to_typed(self.command, compose_config(self.command, self.arguments))

    @cached_property
    def variants(self) -> dict[str, Any]:
        """The settings as the choices set them, for each combination that is asked for.

        The keys say what is particular to one, in the words of the command line; of a single run
        that is nothing.
        """
        if self.config is not None:
            return {"": self.config}
        chosen = [values for values in map(self._list_chosen, self.arguments) if values]
        variants = {}
        for choices in itertools.product(*chosen):
            swept = [choice for choice, values in zip(choices, chosen, strict=True) if values[1:]]
            variants[" ".join(swept)] = self._compose_choices(choices)
        return variants

    def _list_chosen(self, argument: str) -> list[str]:
        """Return the sound choices of a config group, each as an override; none of another setting."""
        group, _, _ = argument.lstrip("+").partition("=")
        try:
            values = list_swept_values(self.command, argument)
        except (HydraException, InputError):
            return []
        choices = self.groups.get(group, [])
        return [value for value in values if value.partition("=")[2] in choices]

    def _compose_choices(self, choices: Sequence[str]) -> Any:
        try:
            return to_typed(self.command, compose_config(self.command, choices))
        except InputError:
            return SCHEMAS[self.command]()  # composing the whole line says what is wrong

    def find_problems(self) -> tuple[list[str], list[str]]:
        """Return the problems, each with its fix, and the arguments that have none."""
        problems, sound = [], []
        for argument in self.arguments:
            problem = self._find_problem(argument)
            if problem is None:
                sound.append(argument)
            else:
                problems.append(problem)
        problems += self._iter_repeated_groups(sound)
        return problems, sound

    def _iter_repeated_groups(self, arguments: Sequence[str]) -> Iterator[str]:
        named = Counter(argument.lstrip("+").partition("=")[0] for argument in arguments)
        for group in self.groups:
            if named[group] > 1:
                yield f"{group} is chosen {named[group]} times: choose one"

    def _find_problem(self, argument: str) -> str | None:
        if argument.startswith("="):
            return "'=' begins an argument: write key=value without spaces around ="
        try:
            override = OverridesParser.create().parse_override(argument)
            if not override.is_sweep_override():
                return self._find_override_problem(override)
            if self.sweeps:
                values = list_swept_values(self.command, argument)
                return next(filter(None, map(self._find_problem, values)), None)
            return _describe_unwanted_sweep(argument, self.groups)
        except InputError as error:
            return str(error)
        except HydraException:
            return _describe_unparsed(argument)

    def _find_override_problem(self, override: Override) -> str | None:
        key = override.get_key_element().lstrip("+~").split("@")[0]
        if key in self.groups:
            return _find_choice_problem(key, override, self.groups[key])
        if key == "hydra" or key.startswith(("hydra.", "hydra/")):
            return None
        entry = ENTRY_KEY.fullmatch(key)
        if (entry and not entry["setting"]) or key in ENTRIES:
            return (
                None  # a whole source is given or taken out; its keys are checked while composing
            )
        depends_on_choice = self.config is not None or key.partition(".")[0] in CHOICES
        variants = self.variants if depends_on_choice else {"": SCHEMAS[self.command]()}
        for variant, defaults in variants.items():
            problem = self._find_setting_problem(key, override, defaults)
            if problem is not None:
                return f"{problem} (in {variant})" if variant else problem
        return None

    def _find_setting_problem(self, key: str, override: Override, defaults: Any) -> str | None:
        """Return what is wrong with a setting where the kinds chosen have these defaults."""
        section, _, name = key.partition(".")
        choice = getattr(defaults, section, None)
        if isinstance(choice, Choice) and name == "kind" and override.value() != choice.kind:
            return f"{key} is not set by itself: write {section}=" + " or ".join(CHOICES[section])
        entry = ENTRY_KEY.fullmatch(key)
        if entry:
            key = f"{entry['entries']}.{ANY_NAME}.{entry['setting']}"
        known = {setting.key: setting.description for setting in iter_default_settings(defaults)}
        if key not in known:
            message = self._describe_unknown_key(key, known)
            return message.replace(f".{ANY_NAME}.", f".{entry['name']}.") if entry else message
        if override.is_delete():
            return f"~{key} deletes a setting, which every run needs: write {key}=VALUE instead"
        if self.config is not None:
            return None  # values that do not fit their types would not compose
        if entry:
            return _find_type_problem(ENTRIES[entry["entries"]](), entry["setting"], override)
        return _find_type_problem(defaults, key, override)

    def _describe_unknown_key(self, key: str, known: Mapping[str, str]) -> str:
        others = ", ".join(_iter_other_kinds(key)) if key.partition(".")[0] in self.groups else ""
        if others:
            return f"{key} belongs to {others}, and another {key.partition('.')[0]} is chosen"
        if _SAME_FOLDER.get(key) in known:
            return f"there is no setting {key}: write {_SAME_FOLDER[key]}=FOLDER"
        within = next((name for name in known if name.startswith(f"{key}.")), None)
        if within is not None:
            return f"{key} is a section: set what it holds, as in {within}=VALUE"
        settable = {
            name: text
            for name, text in known.items()
            if not name.endswith(".kind") and (ANY_NAME in key or ANY_NAME not in name)
        }
        groups = {} if "." in key else dict.fromkeys(self.groups, "")
        meant = find_setting(key, {**groups, **settable})
        fix = f"did you mean {meant}?" if meant else f"`{self.command} --help` lists them all"
        return f"there is no setting {key}: {fix}"


def iter_help_lines(config: Any) -> Iterator[str]:
    """Yield every setting of a configuration with its value, range and description."""
    for setting in iter_default_settings(config):
        value = getattr(setting.value, "name", setting.value)
        bounds = f" ({setting.range})" if str(setting.range) else ""
        yield f"  {setting.key}={_format_value(value)}{bounds}"
        yield f"      {setting.description}"


def _format_value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and "(" in value:
        return quote(value)  # or Hydra takes it for a function
    return re.sub(r"[' ]", "", str(value))


def _iter_other_kinds(key: str) -> Iterator[str]:
    """Yield the choices, as `SECTION=KIND`, that have a setting of this name."""
    section, _, name = key.partition(".")
    for kind, settings in CHOICES.get(section, {}).items():
        if name in {setting.key for setting in iter_default_settings(settings())}:
            yield f"{section}={kind}"


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
    plus = "+" if group in ADDED_GROUPS else ""
    if override.is_force_add() or override.package or (override.is_add() and not plus):
        return f"{group} is chosen once: write {plus}{group}={override.get_value_element_as_str()}"
    if override.is_delete():
        return f"~{group} would leave the run without it: choose among {', '.join(choices)}"
    if override.value() in choices:
        return None
    name = show_value(override.get_value_element_as_str())
    return f"{group}={name} does not exist: choose among {', '.join(choices)}"


def _find_type_problem(defaults: Any, key: str, override: Override) -> str | None:
    section, _, name = key.partition(".")
    part = getattr(defaults, section, None)
    if name and is_dataclass(part):  # all settings together take a tenth of a second
        defaults, key = part, name
    config = OmegaConf.structured(defaults)
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
