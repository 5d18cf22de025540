"""Options of a command from the settings that it takes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import Parameter
from types import GenericAlias, NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from plurum.conventions import PatientRule
from plurum.settings.options import Option, Settings, descriptions_from_docstring, option_from_field, settings_from
from plurum.settings.training import TrainOptions

if TYPE_CHECKING:
    from plurum.dicom_files import PatientNames

__all__ = ["Given", "OverHttp", "PatientOptions", "PatientRules", "ServerUrls", "patient_names", "with_options"]


@dataclass(frozen=True)
class Given:
    """Marks a dict parameter of a command: the values of those options of `kind` that the user gives.

    Attributes:
        kind: Settings that describe the options.
        fields: Fields to offer as options.
        defaults: Defaults that `--help` shows instead of those of `kind`.
        panel: Heading under which `--help` lists the options; empty takes the general one.
    """

    kind: type[Settings]
    fields: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    panel: str = ""

    def parameters(self) -> list[Parameter]:
        """Return the parameters of a command for these options."""
        defaults = {name: one.default for name, one in self.kind.model_fields.items() if not one.is_required()}
        shown = {**defaults, **self.defaults}
        notes = {name: f" [dim]\\[default: {shown[name]}][/dim]" if shown.get(name) else "" for name in self.fields}
        return [_parameter(self.kind, name, None, self.panel, notes[name]) for name in self.fields]

    def read(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that the user gave."""
        return {name: values[name] for name in self.fields if values[name] is not None}


@dataclass(frozen=True)
class _All:
    """All options of settings."""

    kind: type[Settings]

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields."""
        return tuple(name for name in self.kind.model_fields if Option.of(self.kind, name).is_offered)

    def parameters(self) -> list[Parameter]:
        """Return the parameters of a command for these options."""
        return [
            _parameter(self.kind, name, self._default(name), Option.of(self.kind, name).panel) for name in self.fields
        ]

    def read(self, values: Mapping[str, Any]) -> Settings:
        """Return the settings; options without a value keep the field's default."""
        return settings_from(self.kind, **{name: values[name] for name in self.fields if values[name] is not None})

    def _default(self, name: str) -> Any:
        field = self.kind.model_fields[name]
        if field.is_required():
            return Parameter.empty
        if Option.of(self.kind, name).type is str and isinstance(field.default, tuple):
            return ",".join(map(str, field.default)) or None
        return None if field.default == () else field.default


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return `command` with options for the fields of its parameters that are settings or marked as `Given`."""
    parameters: dict[str, Parameter] = {}
    sources: dict[str, Given | _All] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        options = [parameter.replace(kind=Parameter.KEYWORD_ONLY)]
        if source := _source(parameter.annotation):
            sources[parameter.name] = source
            options = source.parameters()
        parameters |= {option.name: option for option in options}
    fields = {name for source in sources.values() for name in source.fields}

    @functools.wraps(command)
    def run(**values: Any) -> None:
        read = {name: source.read(values) for name, source in sources.items()}
        command(**{name: value for name, value in values.items() if name not in fields}, **read)

    run.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    return run


ServerUrls = Annotated[
    list[str] | None,
    typer.Option(
        "--url",
        help="Server: HOST:PORT for gRPC or http(s)://HOST:PORT; repeat to use several in turn.",
        show_default="this machine",
    ),
]
PatientRules = Annotated[
    PatientRule | None,
    typer.Option(help="Rule that combines the predictions of a patient's images.", show_default="as fitted, else mean"),
]
OverHttp = Annotated[bool, typer.Option("--http", help="Use HTTP (port 8000) instead of gRPC (port 8001).")]


PatientOptions = Annotated[dict[str, Any], Given(TrainOptions, ("pseudonym_key_file", "keep_patient_ids"))]


def patient_names(given: Mapping[str, Any]) -> PatientNames:
    """Return the names of DICOM patients by the options of `PatientOptions`."""
    from plurum.dicom_files import PatientNames

    settings = settings_from(TrainOptions, **given)
    return PatientNames(settings.pseudonym_key_file, settings.keep_patient_ids)


def _source(annotation: Any) -> Given | _All | None:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return _All(annotation)
    return next((mark for mark in get_args(annotation) if isinstance(mark, Given)), None)


def _parameter(kind: type[Settings], name: str, default: Any, panel: str, note: str = "") -> Parameter:
    """Return a command's parameter for a field; `note` follows its description in `--help`."""
    option, values = Option.of(kind, name), kind.model_fields[name]
    text = descriptions_from_docstring(kind).get(name, "").removeprefix("If True, ")
    info = typer.Option(
        option_from_field(kind, name),
        # In Rich's markup, [ starts a tag.
        help=(text[:1].upper() + text[1:]).replace("[", "\\[") + note,
        metavar=option.metavar or "|".join(_choices(values.annotation)) or None,
        rich_help_panel=panel or None,
        hidden=option.is_hidden,
    )
    annotation = option.type or _typer_type(values)
    if default is None:
        annotation |= None
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, info])


def _choices(annotation: Any) -> list[str]:
    """Return the texts that the type allows; none if it allows others too."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for part in get_args(annotation) for choice in _choices(part)]


def _typer_type(values: FieldInfo) -> Any:
    """Return the type in which Typer reads a value; the settings check the rest."""
    annotation: Any = values.annotation
    while NoneType in get_args(annotation) or get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if _choices(annotation):
        return str
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)[0]
        return GenericAlias(list, get_args(inner)[0] if get_origin(inner) is Annotated else inner)
    return annotation
