"""Recipes: a model trained here, on real data, certified, streamed and measured. See README.md."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

import measured

from runnel.errors import RunnelError, UsageError

RECIPES = ("long_memory", "text_generation", "forecast", "speech_activity", "intent")
HERE = Path(__file__).parent


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python export/recipes",
        description="Train a model on real data, certify it, stream it, and measure what comes of it.",
        epilog="recipes:\n" + "\n".join(f"  {name:<16}{about(name)}" for name in RECIPES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("name", choices=RECIPES, metavar="NAME", help="which one")
    add("--out", type=Path, metavar="DIR", help="where its files go (default: recipes-out/NAME)")
    add(
        "--quick",
        action="store_true",
        help="seconds instead of minutes: it all happens, and little is learnt",
    )
    add("--record", action="store_true", help="write the tables into the recipe's README")
    args = parser.parse_args(arguments)
    if args.quick and args.record:
        parser.error("--record is for figures, and those of --quick are none")
    out: Path = args.out or Path("recipes-out") / args.name
    began = time.monotonic()
    try:
        found = recipe(args.name)
        out.mkdir(parents=True, exist_ok=True)
        tables = found.run(out, args.quick, say)
    except (RunnelError, OSError) as error:
        print(f"{args.name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    took = time.monotonic() - began
    for table in tables:
        print(f"\n{table}")
    print(f"\n{args.name}: done in {took:.0f} s; its files are in {out}")
    if args.record:
        measured.record(HERE / args.name / "README.md", tables, took)
    return 0


def recipe(name: str) -> measured.Recipe:
    """The module of that name, imported only when it is wanted. UsageError where a package is missing."""
    try:
        found: measured.Recipe = importlib.import_module(f"{name}.recipe")
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error}: `make recipe NAME={name}` installs what it needs, or pip install '.[recipes]'"
        ) from None
    return found


def about(name: str) -> str:
    """The first line of its README, without importing what it needs."""
    return (HERE / name / "README.md").read_text("utf-8").partition("\n")[0].lstrip("# ")


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
