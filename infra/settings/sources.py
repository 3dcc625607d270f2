"""Load the settings: overrides, then the environment, then one TOML file, then the defaults.

A mistake is an error that says where it was written and what would be right; no value is quoted,
since it may be a secret.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, SecretStr, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource
from pydantic_settings.exceptions import SettingsError as _SourceError

from infra.settings.model import Settings

PREFIX = "NIGHTSCHOOL_"
CONFIG_VARIABLE = "NIGHTSCHOOL_CONFIG"
DEFAULT_FILE = "nightschool.toml"
MAX_FILE_BYTES = 1 << 20
REDACTED = "********"
# Names that people know from the documentation of the night's window.
_SHORT_NAMES = {"NIGHT_START": "NIGHTSCHOOL_NIGHT__START", "NIGHT_END": "NIGHTSCHOOL_NIGHT__END"}
_USERINFO = re.compile(r"(://)[^/@\s]*@")


class SettingsError(ValueError):
    """The settings cannot be used: one line per mistake, each with its file or variable."""


class Origin(NamedTuple):
    """One setting: its effective value and who set it."""

    key: str
    """Dotted, e.g. ``gateway.port``."""
    value: str
    """As text; secrets are ``********``."""
    source: str
    """``default``, the file's path, the variable's name, or ``command line``."""
    description: str


def load_settings(
    path: Path | str | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """The effective settings.

    Args:
        path: TOML file; else the one that ``NIGHTSCHOOL_CONFIG`` names, else ``nightschool.toml``
            of the working directory where there is one.
        environ: variables; the process's own when None.
        overrides: strongest of all, nested or by dotted keys (``{"gateway.port": 8080}``).

    Raises:
        SettingsError: every mistake there is, not only the first.
    """
    return _validated(_layers(path, environ, overrides))


def origins(
    path: Path | str | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> list[Origin]:
    """Every setting with its effective value and origin; arguments and errors as load_settings."""
    layers = _layers(path, environ, overrides)
    return [
        Origin(key, _shown(value), _source(layers, tuple(key.split("."))), field.description or "")
        for key, value, field in _leaves(_validated(layers))
    ]


@dataclass(frozen=True)
class _Layer:
    values: dict[str, Any]
    source: str
    names: Mapping[str, str]
    """Environment: dotted key to the variable that set it, as it was spelled."""


def _layers(
    path: Path | str | None,
    environ: Mapping[str, str] | None,
    overrides: Mapping[str, Any] | None,
) -> list[_Layer]:
    """Strongest first. Raises SettingsError for unknown keys."""
    variables = dict(os.environ if environ is None else environ)
    layers = [
        _Layer(_nested(overrides or {}), "command line", {}),
        _environment_layer(variables),
        _file_layer(path, variables.get(CONFIG_VARIABLE)),
    ]
    problems = [
        f"{_name(layer, key)}: unknown key {key}{_nearest(key)}"
        for layer in layers
        for key in _unknown(layer.values)
    ]
    if problems:
        raise SettingsError("\n".join(problems))
    return layers


def _validated(layers: list[_Layer]) -> Settings:
    merged: dict[str, Any] = {}
    for layer in reversed(layers):
        _merge(merged, layer.values)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False, include_input=False, include_context=False):
            steps = tuple(str(step) for step in problem["loc"])
            lines.append(f"{_source(layers, steps)}: {'.'.join(steps)}: {problem['msg']}")
        raise SettingsError("\n".join(lines)) from None


def _file_layer(path: Path | str | None, configured: str | None) -> _Layer:
    asked = str(path) if path is not None else configured
    file = Path(asked or DEFAULT_FILE)
    if not asked and not file.exists():
        return _Layer({}, str(file), {})
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise SettingsError(f"{file}: larger than {MAX_FILE_BYTES} bytes, so no settings file")
        return _Layer(tomllib.loads(file.read_text("utf-8")), str(file), {})
    except OSError as error:
        told = "" if path is not None or not configured else f" (named by {CONFIG_VARIABLE})"
        raise SettingsError(f"{file}{told}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{file}: not text in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at .*\)", str(error))
        raise SettingsError(f"{file}: not valid TOML {place.group() if place else ''}") from None


def _environment_layer(environ: Mapping[str, str]) -> _Layer:
    variables = {long: environ[short] for short, long in _SHORT_NAMES.items() if environ.get(short)}
    spelled = {long.upper(): short for short, long in _SHORT_NAMES.items() if long in variables}
    for name, value in environ.items():
        if name.upper().startswith(PREFIX) and name.upper() != CONFIG_VARIABLE and value:
            variables[name.upper()] = value
            spelled[name.upper()] = name
    names = {
        name.removeprefix(PREFIX).lower().replace("__", "."): spelled[name] for name in variables
    }
    problems = []
    for key, name in names.items():
        section, _, rest = key.partition(".")
        known = Settings.model_fields.get(section)
        if known is None or (rest and rest.split(".")[0] not in _section(known).model_fields):
            problems.append(f"{name}: unknown setting{_nearest(key, as_variable=True)}")
    if problems:
        raise SettingsError("\n".join(problems))
    try:
        values = _Environment(variables)()
    except _SourceError as error:
        field = re.search(r'field "(\w+)"', str(error))
        told = [name for key, name in names.items() if field and key.startswith(field.group(1))]
        raise SettingsError(
            f"{', '.join(told) or 'the environment'}: a list or table is written as JSON, "
            "as in [0.1, 0.5]"
        ) from None
    return _Layer(values, "environment", names)


class _Environment(EnvSettingsSource):
    """pydantic-settings' reading of variables, from a mapping instead of the process."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        super().__init__(
            _AsSettings,
            case_sensitive=False,
            env_prefix=PREFIX,
            env_nested_delimiter="__",
            env_ignore_empty=True,
        )

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in self._variables.items()}


_AsSettings: type[BaseSettings] = create_model(  # type: ignore[call-overload]
    "_AsSettings",
    __base__=BaseSettings,
    **{name: (field.annotation, field.default) for name, field in Settings.model_fields.items()},
)


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys unfolded: ``{"a.b": 1}`` to ``{"a": {"b": 1}}``."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        for step in reversed(key.split(".")):
            value = {step: _nested(value) if isinstance(value, Mapping) else value}
        _merge(result, value)
    return result


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = _copied(value)


def _copied(value: Any) -> Any:
    return {k: _copied(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _unknown(values: Mapping[str, Any]) -> Iterator[str]:
    for section, content in values.items():
        known = Settings.model_fields.get(section)
        if known is None:
            yield section
        elif isinstance(content, Mapping):
            for name in content:
                if name not in _section(known).model_fields:
                    yield f"{section}.{name}"


def _nearest(key: str, *, as_variable: bool = False) -> str:
    """``: did you mean ...?``, for a key that does not exist."""
    sections = list(Settings.model_fields)
    keys = [f"{name}.{field}" for name in sections for field in _section_fields(name)]
    tail = key.rpartition(".")[2]
    found = (
        get_close_matches(key, [*sections, *keys], 1, 0.7)
        or [known for known in keys if known.rpartition(".")[2] == tail][:1]
        or get_close_matches(key, [*sections, *keys], 1, 0.4)
    )
    if not found:
        return ": `nightschool config` lists all"
    name = PREFIX + found[0].replace(".", "__").upper() if as_variable else found[0]
    return f": did you mean {name}?"


def _section(field: FieldInfo) -> type[BaseModel]:
    assert isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    return field.annotation


def _section_fields(section: str) -> list[str]:
    return list(_section(Settings.model_fields[section]).model_fields)


def _leaves(settings: Settings) -> Iterator[tuple[str, Any, FieldInfo]]:
    for section, known in Settings.model_fields.items():
        for name, field in _section(known).model_fields.items():
            yield f"{section}.{name}", getattr(getattr(settings, section), name), field


def _source(layers: list[_Layer], steps: tuple[str, ...]) -> str:
    """Where the strongest value of a key was written."""
    for layer in layers:
        if _holds(layer.values, steps[:2]):
            return _name(layer, ".".join(steps))
    return "default"


def _holds(values: Any, steps: tuple[str, ...]) -> bool:
    for step in steps:
        if not isinstance(values, Mapping):
            return True  # the whole section was given as one value
        if step not in values:
            return False
        values = values[step]
    return True


def _name(layer: _Layer, key: str) -> str:
    """The layer's name; for the environment that of the variable."""
    if not layer.names:
        return layer.source
    exact = [name for known, name in layer.names.items() if key == known]
    around = [
        name
        for known, name in layer.names.items()
        if known.startswith(f"{key}.") or key.startswith(f"{known}.")
    ]
    return ", ".join(exact or around) or layer.source


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        plain = value.get_secret_value()
        # A local file's name is no secret, and is what one wants to know of the database.
        return plain if plain.startswith("sqlite:") and "?" not in plain else REDACTED
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_shown(item)}" for name, item in value.items())
    if isinstance(value, tuple | list):
        return ", ".join(map(_shown, value))
    return _USERINFO.sub(rf"\1{REDACTED}@", str(value))
