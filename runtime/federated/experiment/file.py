"""The experiment file: TOML to an `Experiment`. Strict: what it does not know is an error.

docs/experiments.md has every key; they are those of the structs in ``sections`` and ``strategies``.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from planc.errors import SourceError, Span
from planc.text.suggest import nearest
from runtime.federated.experiment import sections as S
from runtime.federated.experiment import strategies as T
from runtime.federated.experiment.keys import Section, choice_of, default_of, forms_of
from runtime.toml_places import At, dotted, line_of, listed, shown

_MAX_BYTES = 2**20
_OPTION = "--set"


class ExperimentError(SourceError):
    """An experiment file, or a ``--set`` beside it, does not say what can be run. Names line and key."""


class Experiment(Section, frozen=True):
    """A run, described. Every table may be left out."""

    run: S.Run = S.Run()
    data: S.Data = S.Mnist()
    model: S.Model = S.Mlp()
    client: S.Client = S.Sgd()
    server: T.Server = T.Average()
    sampling: T.Sampling = T.DrawEveryone()
    mean: T.Mean = T.MeanWeighted()
    rounds: T.Rounds = T.Rounds()
    asynchronous: T.Async | None = msgspec.field(default=None, name="async")
    workers: S.Workers = S.InProcess()
    evaluation: T.Evaluate = T.Evaluate()
    stop: T.Stop = T.Stop()
    checkpoints: T.Keep = T.Keep()
    watch: S.Watch = S.Watch()


@dataclass(frozen=True)
class Loaded:
    """An experiment and where it was read.

    Attributes:
        experiment: what it says, with what was set beside it, and defaults.
        path: of the file.
        given: the keys that the file or ``--set`` has, dotted.
    """

    experiment: Experiment
    path: Path
    given: frozenset[str]
    _source: _Source = field(repr=False)

    @property
    def name(self) -> str:
        """The name of the run: that of the file."""
        return self.path.stem

    @property
    def output(self) -> Path:
        """The folder for what the run writes."""
        return Path(self.experiment.run.output.replace("{name}", self.name))

    def beside(self, path: str) -> Path:
        """A path of the file: from the folder that it is in."""
        return self.path.parent / path

    def error(self, key: str, message: str, hint: str = "") -> ExperimentError:
        """An error of this key."""
        return self._source.error(tuple(key.split(".")), message, hint)


def load(path: Path, overrides: Sequence[str] = ()) -> Loaded:
    """The experiment in a file.

    Args:
        path: of the file.
        overrides: entries ``table.key=value``, which go before the file. A value is as in TOML; what is none
            there is a text.

    Raises:
        ExperimentError: it is not TOML, has a key that is not known, or a value that does not fit.
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    if len(data) > _MAX_BYTES:
        raise ExperimentError(f"the file is larger than {_MAX_BYTES} bytes", Span(str(path), 1, 1, 2))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ExperimentError("the file is not text in UTF-8", Span(str(path), 1, 1, 2)) from None
    return parse(text, path, overrides)


def parse(text: str, path: Path, overrides: Sequence[str] = ()) -> Loaded:
    """The experiment that a text says; see `load`."""
    source = _Source(text, str(path))
    try:
        return _parsed(source, path, overrides)
    except RecursionError:
        raise ExperimentError("the file is nested too deeply", Span(str(path), 1, 1, 2)) from None


def _parsed(source: _Source, path: Path, overrides: Sequence[str]) -> Loaded:
    data = source.read()
    source.override(data, overrides)
    given = frozenset(dotted(at) for at in _leaves(data))
    _check_known(source, Experiment, data, ())
    try:
        experiment = msgspec.convert(data, Experiment)
    except msgspec.ValidationError as error:
        raise _not_fitting(source, data, str(error)) from None
    return Loaded(experiment, path, given, source)


class _Source:
    """The text of a file and what was set beside it: where each key stands."""

    def __init__(self, text: str, name: str) -> None:
        self._text = text
        self._name = name
        self._set: dict[At, str] = {}

    def read(self) -> dict[str, Any]:
        try:
            return tomllib.loads(self._text)
        except tomllib.TOMLDecodeError as error:
            place = re.search(r" \(at line (\d+), column (\d+)\)", str(error))
            lines = self._text.split("\n")
            line, column = (int(place[1]), int(place[2])) if place else (len(lines), len(lines[-1]) + 1)
            message = re.sub(r" \(at .*\)$", "", str(error))
            span = Span(self._name, line, column, column + 1)
            raise ExperimentError(f"this is not TOML: {message}", span, self._text) from None
        except ValueError:  # Python's own limit
            span = Span(self._name, 1, 1, 2)
            raise ExperimentError("the file has a number of thousands of digits", span) from None

    def override(self, data: dict[str, Any], overrides: Sequence[str]) -> None:
        """Put ``table.key=value`` entries into the data of the file."""
        for entry in overrides:
            name, equals, value = entry.partition("=")
            at = tuple(part.strip() for part in name.split("."))
            if not equals or len(at) < 2 or not all(at):
                raise _option_error(entry, f"expected TABLE.KEY=VALUE, got {entry!r}", "as in client.lr=0.05")
            self._set[at] = entry
            table: Any = data
            for depth, part in enumerate(at[:-1], 1):
                table = table.setdefault(part, {})
                if not isinstance(table, dict):
                    raise _option_error(entry, f"{dotted(at[:depth])} is no table, so it has no keys")
            table[at[-1]] = _value(value.strip())

    def error(self, at: At, message: str, hint: str = "") -> ExperimentError:
        """An error of what stands at a key: shows its line, or the option that set it."""
        text = f"{dotted(at)}: {message}"
        for depth in range(len(at), 1, -1):
            if (entry := self._set.get(at[:depth])) is not None:
                return _option_error(entry, text, hint)
        line = line_of(self._text, at)
        if line is None and (
            entry := next((e for key, e in self._set.items() if key[: len(at)] == at), None)
        ):
            return _option_error(entry, text, hint)
        if line is None:
            return ExperimentError(text, Span(self._name, 1, 1, 2), "", hint)
        shown_line = self._text.splitlines()[line - 1]
        column = max(shown_line.find(at[-1]), len(shown_line) - len(shown_line.lstrip())) + 1
        width = len(at[-1]) if at[-1] in shown_line else 1
        return ExperimentError(text, Span(self._name, line, column, column + width), self._text, hint)


def _option_error(entry: str, message: str, hint: str = "") -> ExperimentError:
    return ExperimentError(message, Span(_OPTION, 1, 1, len(entry) + 1), entry, hint)


def _value(text: str) -> Any:
    """A value as TOML has it; a text without quotes where it is none."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return text


def _leaves(data: Mapping[str, Any], at: At = ()) -> Iterator[At]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*at, key))
        else:
            yield (*at, key)


def _check_known(source: _Source, form: type[Section], data: dict[str, Any], at: At) -> None:
    """Refuse keys that a table does not have. A table that does not say its form gets the default's."""
    fields = {f.encode_name: f for f in msgspec.structs.fields(form)}
    choice = choice_of(form)
    for key, value in data.items():
        place = (*at, key)
        if choice is not None and key == choice[0]:
            continue
        if key not in fields:
            what = "table" if not at else "key"
            extra = f" where {choice[0]} is {choice[1]!r}" if choice is not None else ""
            known = f"known are {', '.join(fields) or 'none'}"
            raise source.error(place, f"this {what} is not known{extra}", nearest(key, fields, known))
        forms = forms_of(fields[key].type)
        if not forms:
            continue
        if not isinstance(value, dict):
            raise source.error(place, f"expected a table [{dotted(place)}], got {shown(value)}")
        there = default_of(fields[key])
        of_default = choice_of(type(there)) if isinstance(there, Section) else None
        default = of_default[1] if of_default is not None else ""
        chosen = _chosen(source, forms, default, value, place)
        _check_known(source, chosen, value, place)


def _chosen(
    source: _Source, forms: Sequence[type[Section]], default: str, data: dict[str, Any], at: At
) -> type[Section]:
    """The form that a table says it has; the one of the default where it says nothing."""
    choice = choice_of(forms[0])
    if choice is None:
        return forms[0]
    name, _ = choice
    by_value = {value: form for form in forms if (found := choice_of(form)) for value in (found[1],)}
    if name not in data:
        data[name] = default
    value = data[name]
    if not isinstance(value, str) or value not in by_value:
        known = f"known are {', '.join(by_value)}"
        hint = nearest(value, by_value, known) if isinstance(value, str) else known
        raise source.error((*at, name), f"expected one of {listed(by_value)}, got {shown(value)}", hint)
    return by_value[value]


def _not_fitting(source: _Source, data: Mapping[str, Any], told: str) -> ExperimentError:
    """What msgspec says of a value, at the place that it names."""
    message, _, path = told.partition(" - at `$.")
    at = tuple(re.sub(r"\[.*?\]", "", path.removesuffix("`")).split("."))
    value: Any = data
    for key in at:
        value = value.get(key) if isinstance(value, dict) else None
    if missing := re.match(r"Object missing required field `(\w+)`", message):
        return source.error(at, f"the key {missing[1]!r} has to be given")
    return source.error(at, f"{message[:1].lower()}{message[1:].replace('`', '')}; it is {shown(value)}")


__all__ = ["Experiment", "ExperimentError", "Loaded", "load", "parse"]
