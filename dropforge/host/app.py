"""The user's app: imports function_app.py as Azure does and indexes what it declares."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_type_hints

import azure.functions as func
from azure.functions import meta

from dropforge.host.errors import AppError

_SCRIPT = "function_app.py"
_SETTING = re.compile(r"%([^%\s]+)%")


class Direction(Enum):
    IN = 0
    OUT = 1


@dataclass(frozen=True)
class Binding:
    """One trigger, input or output of a function, with every `%SETTING%` in it resolved."""

    type: str
    name: str
    direction: Direction
    properties: Mapping[str, Any]


@dataclass(frozen=True)
class AppFunction:
    """One function of the app, ready to be called."""

    name: str
    call: Callable[..., Any]
    trigger: Binding
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    # The type of what the function returns (`http`, `activityTrigger`, ...), or None when it returns nothing.
    returns: str | None
    is_async: bool
    wants_context: bool
    # Parameters annotated `str` or `bytes`: they get the payload as it is, not an SDK object.
    raw_parameters: frozenset[str]
    retry: Mapping[str, Any] | None
    folder: Path
    # Where what the function returns is sent, unless the trigger itself gets it.
    return_output: Binding | None = None

    @property
    def sent(self) -> tuple[Binding, ...]:
        """Every output whose value goes somewhere, `$return` included."""
        return (*self.outputs, self.return_output) if self.return_output else self.outputs

    @property
    def durable_name(self) -> str:
        """What orchestrators, activities and entities are called by."""
        renamed = {"orchestrationTrigger": "orchestration", "activityTrigger": "activity", "entityTrigger": "entity"}
        return str(self.trigger.properties.get(renamed.get(self.trigger.type, "")) or self.name)


@dataclass(frozen=True)
class App:
    """All functions that can run, and why each of the others cannot."""

    folder: Path
    functions: tuple[AppFunction, ...]
    problems: tuple[str, ...] = ()

    def of_type(self, trigger_type: str) -> tuple[AppFunction, ...]:
        return tuple(function for function in self.functions if function.trigger.type == trigger_type)

    def find(self, name: str) -> AppFunction | None:
        """The function of that name in any case, as Azure finds it."""
        return next((function for function in self.functions if function.name.lower() == name.lower()), None)


def load_app(folder: Path, environment: Mapping[str, str], only: Iterable[str] | None = None) -> App:
    """Import `function_app.py` from the folder and index its functions; `only` names (lower-case) those that may run.

    A second call in one process gets the modules that the first one imported. Raises `AppError`, whose message shows
    the user's part of the traceback, when the app cannot be imported or indexed.
    """
    declared = _declared_functions(_import(folder), folder)
    functions, problems = [], []
    for builder in declared:
        name = str(builder.get_function_name())
        if only is not None and name.lower() not in only:
            continue
        if _is_disabled(name, environment):
            problems.append(f"function {name!r} is disabled by the setting AzureWebJobs.{name}.Disabled")
            continue
        try:
            functions.append(_index(builder, name, folder, environment))
        except ValueError as error:
            problems.append(f"function {name!r} cannot run: {error}")
    return App(folder, tuple(functions), tuple(problems))


def _import(folder: Path) -> Any:
    script = folder / _SCRIPT
    if not script.is_file():
        raise AppError(f"no {_SCRIPT} in {folder}; name the folder of a Functions app (Python v2 programming model)")
    # First on the path, so that the app's own packages win over those of a checkout that is installed as editable.
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    # By file and not by name: another function_app may lie on the path before this one.
    spec = importlib.util.spec_from_file_location(script.stem, script)
    if spec is None or spec.loader is None:
        raise AppError(f"{script} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[script.stem] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(script.stem, None)
        raise AppError(f"{script} cannot be imported: {_one_line(error)}\n{_user_traceback(error, folder)}") from error
    return module


def _declared_functions(module: Any, folder: Path) -> list[Any]:
    apps = {id(value): value for value in vars(module).values() if isinstance(value, func.FunctionRegister)}
    if len(apps) != 1:
        found = "none" if not apps else f"{len(apps)}"
        raise AppError(f"{folder / _SCRIPT} must have one FunctionApp (or DFApp) object at top level, found {found}")
    (app,) = apps.values()
    try:
        # Once only: a second call raises, because every name is then taken.
        return list(app.get_functions())
    except Exception as error:
        raise AppError(f"{folder / _SCRIPT} cannot be indexed: {_one_line(error)}") from error


def _is_disabled(name: str, environment: Mapping[str, str]) -> bool:
    spellings = (f"AzureWebJobs.{name}.Disabled", f"AzureWebJobs__{name}__Disabled")
    return any(environment.get(spelling, "").lower() in ("true", "1") for spelling in spellings)


def _index(builder: Any, name: str, folder: Path, environment: Mapping[str, str]) -> AppFunction:
    call = builder.get_user_function()
    declared_trigger = builder.get_trigger()
    bindings = [_binding(declared, environment) for declared in builder.get_bindings()]
    trigger = bindings[[declared is declared_trigger for declared in builder.get_bindings()].index(True)]
    parameters = dict(inspect.signature(call).parameters)
    named = {binding.name for binding in bindings if binding.name != "$return"}
    wants_context = "context" in parameters and "context" not in named
    unbound = set(parameters) - named - ({"context"} if wants_context else set())
    if unbound:
        raise ValueError(f"its parameters {sorted(unbound)} belong to no trigger and no binding")
    if named - set(parameters):
        raise ValueError(f"its bindings {sorted(named - set(parameters))} are no parameters of it")
    return AppFunction(
        name=name,
        call=call,
        trigger=trigger,
        inputs=tuple(b for b in bindings if b is not trigger and b.direction is Direction.IN),
        outputs=tuple(b for b in bindings if b.direction is Direction.OUT and b.name != "$return"),
        returns=_returns(bindings),
        is_async=inspect.iscoroutinefunction(call),
        wants_context=wants_context,
        raw_parameters=_raw_parameters(call, bindings),
        retry=builder.get_settings_dict("retry_policy"),
        folder=folder,
        return_output=next((b for b in bindings if b.name == "$return" and b.type != "http"), None),
    )


def _binding(declared: Any, environment: Mapping[str, str]) -> Binding:
    if declared.direction not in (Direction.IN.value, Direction.OUT.value):
        raise ValueError(f"its binding {declared.name!r} goes both ways, which Python functions cannot")
    properties = {key: _plain(value, environment) for key, value in declared.get_dict_repr().items()}
    return Binding(str(declared.type), str(declared.name), Direction(declared.direction), properties)


def _plain(value: Any, environment: Mapping[str, str]) -> Any:
    """Enum members as their text, and every `%SETTING%` replaced by what the setting says."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        return _SETTING.sub(lambda found: _setting(found[1], environment), value)
    if isinstance(value, (list, tuple)):
        return [_plain(item, environment) for item in value]
    return value


def _setting(name: str, environment: Mapping[str, str]) -> str:
    if name not in environment:
        raise ValueError(
            f"'%{name}%' does not resolve to a value; set {name} in local.settings.json or the environment"
        )
    return environment[name]


def _returns(bindings: list[Binding]) -> str | None:
    explicit = next((binding.type for binding in bindings if binding.name == "$return"), None)
    return explicit or next((binding.type for binding in bindings if has_implicit_output(binding.type)), None)


def has_implicit_output(binding_type: str) -> bool:
    """Whether a function with this binding returns something without a `$return` binding (durable triggers do)."""
    converter = meta.get_binding_registry().get(binding_type)
    if converter is None:
        return True
    return bool(getattr(converter, "has_implicit_output", lambda: False)())


def _raw_parameters(call: Callable[..., Any], bindings: list[Binding]) -> frozenset[str]:
    try:
        hints = get_type_hints(call)
    except Exception:  # noqa: BLE001 - annotations may name anything; without them the SDK objects are right
        return frozenset()
    return frozenset(b.name for b in bindings if hints.get(b.name) in (str, bytes) and not has_implicit_output(b.type))


def _one_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _user_traceback(error: BaseException, folder: Path) -> str:
    """The traceback from the first line of the app on: what the import system did before is no help."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [number for number, frame in enumerate(frames) if Path(frame.filename).is_relative_to(folder)]
    shown = frames[inside[0] :] if inside else []
    shown = [frame for frame in shown if "importlib._bootstrap" not in frame.filename]
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(shown)] if shown else []
    return "".join([*lines, *traceback.format_exception_only(error)]).rstrip()
