"""Find the package of a ``use``, and make what it provides.

Only the packages that a pipeline names are imported, so a broken package breaks only the pipelines that use
it.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pluggy

from .. import __version__, hookspecs
from ..connectors import Sink, Source
from ..errors import PipelineError, PluginError, RunnelError, nearest
from ..spec import Signal
from ..stage import Stage, misdeclared

GROUP = "runnel"  # the entry points' group, and pluggy's project name

hookimpl = pluggy.HookimplMarker(GROUP)
"""Marks a plugin's implementation of a hook of `runnel.hookspecs`."""

REQUIRED: Any = inspect.Parameter.empty
"""The default of an option that a pipeline must give."""

KINDS: Mapping[str, str] = {
    "stage": "runnel_stages",
    "source": "runnel_sources",
    "sink": "runnel_sinks",
    "notice": "runnel_notices",
}
"""The kinds of plugin, and the hook of each."""

_SCALARS = (bool, int, float, str)


@dataclass(frozen=True, slots=True)
class Option:
    """One keyword of a factory."""

    name: str
    kind: Any  # the annotation
    default: Any = REQUIRED

    @property
    def required(self) -> bool:
        return self.default is REQUIRED

    @property
    def kind_text(self) -> str:
        """The allowed values, in words."""
        return _kind_text(self.kind)

    def __str__(self) -> str:
        return f"{self.name}: {self.kind_text}" + ("" if self.required else f" = {self.default!r}")


@dataclass(frozen=True, slots=True)
class Plugin:
    """One plugin of an installed package, loaded."""

    name: str
    kind: str  # a key of `KINDS`
    distribution: str
    version: str
    factory: Callable[..., Any]
    options: tuple[Option, ...]

    @property
    def doc(self) -> str:
        """The first line of the factory's docstring."""
        return (inspect.getdoc(self.factory) or "").partition("\n")[0]

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} of {self.distribution} {self.version}"


def installed() -> list[str]:
    """Return the names that a pipeline may use, sorted. Nothing is imported."""
    return sorted({entry.name for entry in _entries()})


def distribution(name: str) -> tuple[str, str]:
    """Return the name and version of the package that offers `name`.

    Raises PluginError unless exactly one does.
    """
    return _origin(_entry(name))


def origin(name: str) -> str:
    """Return the package that offers `name`, with its version or a digest."""
    entry = _entry(name)
    package, version = _origin(entry)
    if version != "?":
        return f"{package} {version}"
    file = getattr(sys.modules.get(entry.module), "__file__", None)
    try:
        source = Path(file).read_bytes() if file else b""
    except OSError:
        source = b""
    return f"{package}, source {hashlib.sha256(source).hexdigest()[:16]}"


def load(name: str, kind: str = "stage") -> Plugin:
    """Import the package that offers `name`, and return its plugin of that kind (of `KINDS`).

    Raises PluginError if no package offers the name, its import fails, or it is not as `runnel.hookspecs`
    requires. The error names the plugin, its distribution and version, and the cause.
    """
    found = offers(name)
    for plugin in found:
        if plugin.kind == kind:
            return plugin
    kinds = " and a ".join(plugin.kind for plugin in found)
    raise PluginError(
        f"plugin {name!r} of {found[0].distribution} {found[0].version} is a {kinds}, not a {kind}"
    )


def offers(name: str) -> list[Plugin]:
    """Return the plugins under `name`, in the order of `KINDS`. Raises as `load`."""
    entry = _entry(name)
    package, version = _origin(entry)
    where = f"plugin {name!r} of {package} {version}"
    try:
        module = entry.load()
        manager = pluggy.PluginManager(GROUP)
        manager.add_hookspecs(hookspecs)
        manager.register(module, name)
        manager.check_pending()  # a misspelt hook is an error, not ignored
        answers = {kind: getattr(manager.hook, hook)() for kind, hook in KINDS.items()}
    except (Exception, SystemExit) as error:  # some modules call sys.exit when imported
        hint = _missing(error, entry.value, package)
        raise PluginError(f"{where} cannot be loaded: {type(error).__name__}: {error}{hint}") from error
    found: list[Plugin] = []
    named: list[str] = []
    for kind, made in answers.items():
        for answer in made:
            factories = _mapping(answer, f"{where}: {KINDS[kind]}")
            named += factories
            if name in factories:
                found.append(_plugin(name, kind, package, version, factories[name], where))
    if not found:
        hint = " (does it have a hook marked @runnel.hookimpl?)"
        if named:
            near = nearest(name, named)
            hint = (near if "did you mean" in near else "") + f"; {_declare(sorted(named), entry.value)}"
        raise PluginError(f"{where}: its module {entry.value} hands over nothing of that name{hint}")
    return found


def _declare(names: Sequence[str], module: str) -> str:
    """Return how a package declares the plugins of its module."""
    lines = ", ".join(f'{name} = "{module}"' for name in names)
    return (
        f"it hands over {', '.join(map(repr, names))}. Each needs a line of its own in the package's "
        f"pyproject.toml, under [project.entry-points.{GROUP}]: {lines}; then install the package again"
    )


def _missing(error: BaseException, own: str, package: str) -> str:
    """Return advice for a module that is not installed."""
    name = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    top = name.partition(".")[0]
    if top == GROUP:
        return f" ({package} is made for another version of runnel than this, {__version__})"
    if not top or top == own.partition(":")[0].partition(".")[0]:
        return ""
    return f" (install the package that has {name!r}: {package} needs it)"


def _plugin(name: str, kind: str, package: str, version: str, factory: Any, where: str) -> Plugin:
    if not callable(factory):
        raise PluginError(f"{where}: its factory is a {type(factory).__name__}, which cannot be called")
    first = {"notice": "", "sink": "signal", "source": "signal", "stage": "inputs"}[kind]
    return Plugin(name, kind, package, version, factory, _options(factory, where, first))


def make_stage(
    use: str, inputs: Signal, options: Mapping[str, Any], where: str, folder: Path | None = None
) -> Stage:
    """Make the stage of a pipeline's entry.

    `inputs` is the signal that arrives, `options` the entry without ``use``, `where` the entry's name in
    errors, `folder` the base of relative paths among the options. Raises PluginError (see `load`), and
    PipelineError if an option is unknown, missing or of the wrong type, or if the stage refuses its options
    or `inputs`.
    """
    stage: Stage = make("stage", use, (inputs,), options, where, folder)
    return stage


def make(
    kind: str,
    use: str,
    given: tuple[Any, ...],
    options: Mapping[str, Any],
    where: str,
    folder: Path | None = None,
) -> Any:
    """Call a factory with `given` and the checked options; return its result.

    Raises as `make_stage` does; a source or a sink raises UsageError if it cannot be opened.
    """
    try:
        plugin = load(use, kind)
    except PluginError as error:
        raise PluginError(f"{where}: {error}") from error
    checked = check_options(plugin, options, where, folder)
    try:
        made = plugin.factory(*given, **checked)
    except RunnelError as error:
        raise type(error)(f"{where}: {error}") from error
    except Exception as error:
        raise PluginError(f"{where}: {plugin} cannot be made: {type(error).__name__}: {error}") from error
    _check_made(made, kind, f"{where}: {plugin}")
    return made


def named_files(use: str, options: Mapping[str, Any], where: str, folder: Path) -> dict[str, list[Path]]:
    """Return the files that a stage's path options name, by option."""
    if not any(isinstance(value, str | list) for value in options.values()):
        return {}  # the common case needs no look-up
    checked = check_options(load(use), options, where, folder)
    found = {key: list(_paths(value)) for key, value in checked.items()}
    return {key: paths for key, paths in found.items() if paths}


def check_options(
    plugin: Plugin, options: Mapping[str, Any], where: str, folder: Path | None = None
) -> dict[str, Any]:
    """Return the options converted for the factory; PipelineError names the nearest valid one."""
    what = f"{plugin.kind} {plugin.name!r}"
    known = {option.name: option for option in plugin.options}
    checked: dict[str, Any] = {}
    for key, value in options.items():
        if key not in known:
            takes = nearest(key, list(known)) or " (it has none)"
            close = next((o for o in plugin.options if f"{o.name!r}?" in takes), None)
            of_type = f", {close.kind_text}" if close else ""
            raise PipelineError(f"{where}: {what} has no option {key!r}{takes}{of_type}")
        try:
            checked[key] = _convert(value, known[key].kind, folder or Path())
        except (TypeError, OverflowError):  # an int beyond the range of a float
            raise PipelineError(
                f"{where}: option {key!r} of {what} takes {known[key].kind_text}, "
                f"not {value!r} ({type(value).__name__}){_near(value, known[key].kind)}"
            ) from None
    for option in plugin.options:
        if option.required and option.name not in checked:
            raise PipelineError(f"{where}: {what} needs the option {option}")
    return checked


def from_text(text: str, option: Option) -> Any:
    """Convert a text, for example of a command line, to a value for `check_options`.

    A list is written with commas, a bool as true or false. Any other text is returned as it is, for
    `check_options` to refuse.
    """
    return _read(text, option.kind)


def _read(text: str, kind: Any) -> Any:
    members = _members(kind)
    lists = [member for member in members if get_origin(member) is list]
    if lists:
        (item,) = get_args(lists[0])
        return [_read(part, item) for part in text.split(",")] if text else []
    if bool in members and text in ("true", "false"):
        return text == "true"
    for member in (int, float):
        if member in members:
            with contextlib.suppress(ValueError):
                return member(text)
    return text


def _entry(name: str) -> importlib.metadata.EntryPoint:
    entries = [entry for entry in _entries() if entry.name == name]
    if not entries:
        raise PluginError(f"no plugin {name!r} is installed{_undeclared(name) or nearest(name, installed())}")
    # An editable install beside its source can list one distribution's entry twice.
    origins = sorted({_origin(entry) for entry in entries})
    if len({package for package, _ in origins}) > 1:
        both = " and ".join(f"{package} {version}" for package, version in origins)
        raise PluginError(f"plugin {name!r} is offered by {both}: uninstall one of them")
    return entries[0]


def _undeclared(name: str) -> str:
    """Find a package with that plugin but without its entry point; "" if none.

    The modules are read, not imported.
    """
    for module, entry in {entry.value.partition(":")[0]: entry for entry in _entries()}.items():
        package, version = _origin(entry)
        if package != GROUP and name in _keys(module):
            return (
                f", but {package} {version} has it in its module {module}, and does not declare it: its "
                f'pyproject.toml needs the line {name} = "{module}" under [project.entry-points.{GROUP}]; '
                "then install it again"
            )
    return ""


def _keys(module: str) -> set[str]:
    """Return the keys of all dict literals in a module's source."""
    try:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            return set()
        tree = ast.parse(Path(spec.origin).read_bytes())
    except Exception:  # a parent package may fail in any way when imported
        return set()
    dicts = (node for node in ast.walk(tree) if isinstance(node, ast.Dict))
    keys = (key for node in dicts for key in node.keys)
    return {key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}


def _entries() -> list[importlib.metadata.EntryPoint]:
    try:
        return list(importlib.metadata.entry_points(group=GROUP))
    except Exception:  # one package's entry_points.txt cannot be read: return the others
        found: list[importlib.metadata.EntryPoint] = []
        for package in importlib.metadata.distributions():
            try:
                found.extend(package.entry_points.select(group=GROUP))
            except Exception:
                continue
        return found


def _origin(entry: importlib.metadata.EntryPoint) -> tuple[str, str]:
    try:
        name, version = (entry.dist.name, entry.dist.version) if entry.dist else (None, None)
    except Exception:  # its METADATA is missing
        name, version = None, None
    return name or "an unknown package", version or "?"


def _mapping(answer: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(answer, Mapping):
        raise PluginError(f"{where} gave a {type(answer).__name__}, not a mapping of names to factories")
    return answer


def _near(value: Any, kind: Any) -> str:
    """Return the word of a Literal that is nearest to the first wrong value."""
    for member in _members(kind):
        if get_origin(member) is list and isinstance(value, list):
            return next((near for item in value if (near := _near(item, get_args(member)[0]))), "")
    words = [w for m in _members(kind) if get_origin(m) is Literal for w in get_args(m)]
    if not isinstance(value, str) or not words or value in words:
        return ""
    near = nearest(value, words)
    return near if "did you mean" in near else ""  # the error already lists all allowed words


def _options(factory: Callable[..., Any], where: str, first: str) -> tuple[Option, ...]:
    """Return the factory's keywords after its argument `first`, if it has one.

    Raises PluginError for a keyword that no pipeline could give.
    """
    try:
        parameters = list(inspect.signature(factory, eval_str=True).parameters.values())
    except (TypeError, ValueError, NameError) as error:
        raise PluginError(f"{where}: its factory's signature cannot be read: {error}") from error
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if first and (not parameters or parameters[0].kind not in positional):
        raise PluginError(f"{where}: its factory must take the {first} (a runnel.Signal) as first argument")
    options = []
    for parameter in parameters[1:] if first else parameters:
        named = parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        if not named or not _supported(parameter.annotation):
            raise PluginError(
                f"{where}: its factory's parameter {str(parameter)!r} cannot be an option: options are "
                "keywords annotated with int, float, bool, str, Path, Literal, list[...] or one of these "
                "with | None"
            )
        options.append(Option(parameter.name, parameter.annotation, parameter.default))
    return tuple(options)


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _supported(kind: Any) -> bool:
    if get_origin(kind) in (Union, UnionType):
        return all(member is NoneType or _supported(member) for member in get_args(kind))
    if get_origin(kind) is list:
        return all(_supported(member) for member in get_args(kind))
    if get_origin(kind) is Literal:
        return all(isinstance(word, str) for word in get_args(kind))
    return kind is Path or kind in _SCALARS


def _convert(value: Any, kind: Any, folder: Path) -> Any:
    """Convert `value` to `kind`; TypeError if it is not one."""
    for member in _members(kind):
        if get_origin(member) is list and isinstance(value, list):
            return [_convert(item, get_args(member)[0], folder) for item in value]
        if get_origin(member) is Literal and value in get_args(member):
            return value
        if member in _SCALARS and type(value) is member:  # exactly: in Python a bool is an int, but not here
            if isinstance(value, float) and math.isnan(value):
                continue
            return value
        if member is float and type(value) is int:
            return float(value)
        if member is Path and type(value) is str and value:
            return folder / value
    raise TypeError


def _paths(value: Any) -> Iterator[Path]:
    if isinstance(value, Path):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _paths(item)


def _kind_text(kind: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
    texts = []
    for member in _members(kind):
        if get_origin(member) is list:
            texts.append(f"a list of ({_kind_text(get_args(member)[0])})")
        elif get_origin(member) is Literal:
            texts.extend(repr(word) for word in get_args(member))
        elif member is not NoneType:
            texts.append(names[member])
    return " or ".join(texts)


_BASES: Mapping[str, type] = {"stage": Stage, "source": Source, "sink": Sink}


def _check_made(made: Any, kind: str, where: str) -> None:
    """Raise PluginError for an incomplete object now, and not at the first message."""
    base = _BASES.get(kind)
    if base is None and not callable(made):
        raise PluginError(f"{where}: its factory gave a {type(made).__name__}, which cannot be called")
    if base is not None and not isinstance(made, base):
        raise PluginError(f"{where}: its factory gave a {type(made).__name__}, not a runnel.{base.__name__}")
    fault = misdeclared(made) if kind == "stage" else ""
    if fault:
        raise PluginError(f"{where}: {fault}")
