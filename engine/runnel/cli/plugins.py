"""`runnel plugins`: which stages are installed, from where, with which options."""

from __future__ import annotations

import argparse

from ..errors import PluginError
from ..plugins import Plugin, installed, load

HELP = "list the stages that a pipeline can use"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="*", help="only these")
    parser.epilog = "example:\n  runnel plugins resample"


def run(args: argparse.Namespace) -> int:
    """Exit status 0, also where a stage is broken: the list shows that. PluginError for an unknown name."""
    names = installed()
    for name in args.name:
        if name not in names:
            load(name)  # raises, naming the nearest
    for name in args.name or names:
        try:
            print("\n".join(described(load(name))))
        except PluginError as error:
            print(f"{name}  (broken)\n    {error}")
    return 0


def described(plugin: Plugin) -> list[str]:
    """The lines that the list holds for one stage."""
    lines = [f"{plugin.name}  ({plugin.distribution} {plugin.version})", f"    {plugin.doc}"]
    width = max((len(option.name) for option in plugin.options), default=0)
    for option in plugin.options:
        default = "required" if option.required else f"default {option.default!r}"
        lines.append(f"    {option.name:{width}}  {option.kind_text}, {default}")
    return lines
