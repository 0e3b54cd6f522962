"""`runnel plugins`: list installed plugins with their options; `runnel plugins new` writes one."""

from __future__ import annotations

import argparse
import inspect
import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PluginError, UsageError
from ..loading.registry import KINDS, Option, Plugin, distribution, installed, load, offers

HELP = "list the stages, sources, sinks and listeners to streams that are installed; write a new one"

_EXAMPLE = """examples:
  runnel plugins
  runnel plugins resample csv
  runnel plugins --kind sink
  runnel plugins new my_stage
  runnel plugins new my_sensor --kind source --into ~/src
  runnel plugins new my_alarm --kind sink --package ~/src/runnel-my-sensor
"""

_LEAST_DOC = 24  # characters of a line's last column, even on a narrow terminal
_MOST_PACKAGE = 20  # characters of a package's name in the table
_ENTRY = {
    "stage": "[[before]]  # or [[after]]",
    "source": "[source]",
    "sink": "[[sink]]",
    "notice": "[[notice]]",
}
"""Heading of a pipeline entry, by kind."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLE
    parser.add_argument(
        "name", nargs="*", help="only these, with all their options; or: new NAME, to write a package"
    )
    parser.add_argument(
        "--kind", choices=list(KINDS), help="only this kind; with new: the kind to write (stage)"
    )
    parser.add_argument("--json", action="store_true", help="for programs: all of it as one JSON list")
    parser.add_argument("--into", type=Path, metavar="DIR", help="where a new package's folder goes (.)")
    parser.add_argument(
        "--package", type=Path, metavar="DIR", help="an existing package, to which the plugin is added"
    )


def run(args: argparse.Namespace) -> int:
    """Exit status 0, even if a plugin is broken: the list shows that.

    Raises PluginError for an unknown name, UsageError for an invalid new one.
    """
    if args.name[:1] == ["new"]:
        if len(args.name) != 2 or args.json:
            raise UsageError("runnel plugins new takes one name, as in: runnel plugins new my_stage")
        print(_new(args.name[1], args.kind or "stage", args.into, args.package))
        return 0
    for flag, given in (("--into", args.into), ("--package", args.package)):
        if given is not None:
            raise UsageError(f"{flag} is for `runnel plugins new NAME`")
    names = installed()
    for name in args.name:
        if name not in names:
            load(name)  # raises, with the nearest name
    found = [_describe(name) for name in (args.name or names)]
    if args.kind:
        # A broken plugin may be of any kind: show it, so that users see why theirs is missing.
        found = [one for one in found if one.error or any(p.kind == args.kind for p in one.offers)]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    if args.json:
        print(json.dumps([document(one) for one in found], indent=2))
    elif not found:
        print(f"no {args.kind} is installed; one to begin with: runnel plugins new NAME --kind {args.kind}")
    elif args.name:
        print("\n\n".join("\n".join(described(one, width or 100)) for one in found))
    else:
        print("\n".join(table(found, width)))
    return 0


def _new(name: str, kind: str, into: Path | None, package: Path | None) -> str:
    from .add_plugin import add
    from .new_plugin import write

    if package is None:
        return write(name, kind, into or Path())
    if into is not None:
        raise UsageError("--into is for a new package, --package for one that is there: give one of them")
    return add(name, kind, package)


@dataclass(frozen=True, slots=True)
class Installed:
    """A plugin's name, its package, and what it offers, or why it cannot be loaded."""

    name: str
    package: str
    version: str
    offers: tuple[Plugin, ...] = ()
    error: str = ""


def _describe(name: str) -> Installed:
    package, version = "?", "?"
    try:
        package, version = distribution(name)
        return Installed(name, package, version, tuple(offers(name)))
    except PluginError as error:
        return Installed(name, package, version, error=error.message)


def table(found: Sequence[Installed], width: int = 0) -> list[str]:
    """A line for each: name, kinds, package, first line of its docstring; cut to `width` unless that is 0."""
    packages = {f"{one.package} {one.version}" for one in found}
    rows = [("NAME", "KIND", *(["PACKAGE"] if len(packages) > 1 else []), "")]
    for one in found:
        kinds = " ".join(plugin.kind for plugin in one.offers) or "BROKEN"
        doc = _cause(one) if one.error else one.offers[0].doc
        package = [_cut(one.package, _MOST_PACKAGE)] if len(packages) > 1 else []
        rows.append((one.name, kinds, *package, doc))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    room = max(_LEAST_DOC, width - sum(widths) - 2 * len(widths)) if width else 0
    lines = [
        "  ".join(
            [*(f"{cell:{w}}" for cell, w in zip(row, widths, strict=False)), _cut(row[-1], room)]
        ).rstrip()
        for row in rows
    ]
    broken = [one.name for one in found if one.error]
    of = f", of {packages.pop()}" if len(packages) == 1 else ""
    lines += ["", f"{len(found)} installed{of}. `runnel plugins NAME` shows one with its options."]
    if broken:
        lines.append(f"{len(broken)} broken; why, in full: runnel plugins {' '.join(broken[:3])}")
    return lines


def _cause(one: Installed) -> str:
    """Why the plugin is broken, without what the table shows already."""
    said = one.error.partition("\n")[0].removeprefix(f"plugin {one.name!r} of {one.package} {one.version}")
    return said.lstrip(": ").removeprefix("cannot be loaded: ")


def _cut(text: str, room: int) -> str:
    return text if not room or len(text) <= room else text[: room - 1].rstrip() + "…"


def described(one: Installed, width: int) -> list[str]:
    """Full description of one plugin: docstring, options, and how a pipeline names it."""
    lines = [f"{one.name}  ({one.package} {one.version})"]
    if one.error:
        return [*lines, *_wrapped(f"BROKEN: {one.error}", "    ", width)]
    for plugin in one.offers:
        lines += ["", f"  {plugin.kind}"]
        doc = inspect.getdoc(plugin.factory) or "(without a docstring)"
        lines += _filled(doc, "    ", width)
        lines += ["", "    options:" if plugin.options else "    It has no options."]
        longest = max((len(option.name) for option in plugin.options), default=0)
        for option in plugin.options:
            lines += _wrapped(f"{option.name:{longest}}  {_value(option)}", "      ", width, longest + 2)
        lines += ["", "    in a pipeline:", f"      {_ENTRY[plugin.kind]}", f'      use = "{one.name}"']
        lines += [f"      {option.name} = …" for option in plugin.options if option.required]
        if plugin.kind in ("source", "sink"):
            lines += ["", "    on a command line:", f"      {command_line(plugin)}"]
    return lines


def _filled(doc: str, indent: str, width: int) -> list[str]:
    """Refill a docstring's paragraphs; keep lists and examples as they are."""
    lines: list[str] = []
    for part in doc.split("\n\n"):
        plain = not any(line[:1] in " -*" for line in part.splitlines())
        lines += [
            "",
            *(_wrapped(part, indent, width) if plain else textwrap.indent(part, indent).splitlines()),
        ]
    return lines[1:]


def command_line(plugin: Plugin) -> str:
    """How `runnel run` names a source or a sink, with its first option and one more."""
    first, *rest = plugin.options or (None,)
    said = f"{plugin.name}:{first.name.upper() if first else ''}"
    if rest and rest[0]:
        said = f'"{said}?{rest[0].name}=…"'  # quoted, because a shell interprets ?
    return (
        f"runnel run PIPELINE {said}" if plugin.kind == "source" else f"runnel run PIPELINE INPUT -o {said}"
    )


def _value(option: Option) -> str:
    return option.kind_text + (", required" if option.required else f", default {_default(option)}")


def _default(option: Option) -> str:
    if option.default is None:
        return "none"
    if isinstance(option.default, bool):
        return str(option.default).lower()
    return str(option.default) if isinstance(option.default, Path) else repr(option.default)


def _wrapped(text: str, indent: str, width: int, hang: int = 0) -> list[str]:
    return textwrap.wrap(
        text, max(width, 40), initial_indent=indent, subsequent_indent=indent + " " * hang,
        break_long_words=False, break_on_hyphens=False, drop_whitespace=True,
    )  # fmt: skip


def document(one: Installed) -> dict[str, Any]:
    """The same for programs."""
    made: dict[str, Any] = {"name": one.name, "package": one.package, "version": one.version}
    if one.error:
        return {**made, "error": one.error}
    made["offers"] = [
        {
            "kind": plugin.kind,
            "doc": inspect.getdoc(plugin.factory) or "",
            "options": [
                {"name": option.name, "type": option.kind_text, "required": option.required}
                | ({} if option.required else {"default": _plain(option.default)})
                for option in plugin.options
            ],
        }
        for plugin in one.offers
    ]
    return made


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
