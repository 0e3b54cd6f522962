"""Recipes: a model trained here, certified, streamed and measured. See README.md."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import measured

from runnel.errors import RunnelError, UsageError

RECIPES = ("long_memory", "text_generation", "forecast", "speech_activity", "noise_suppression", "intent")
HERE = Path(__file__).parent


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python export/recipes",
        description="Train a model, certify it, stream it, and measure what comes of it.",
        epilog="recipes:\n" + "\n".join(f"  {name:<18}{about(name)}" for name in RECIPES),
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
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = f"its files cannot go to {out} ({error.strerror}): give a folder by --out"
            raise UsageError(why) from None
        tables = measure(found, out, args.quick)
    except ModuleNotFoundError as error:
        installed = f"`make recipe NAME={args.name}` installs what it needs, or pip install '.[recipes]'"
        return failed(args.name, f"{error}: {installed}")
    except (RunnelError, OSError, subprocess.SubprocessError) as error:
        return failed(args.name, str(error))
    except KeyboardInterrupt:
        return 130
    took = time.monotonic() - began
    for table in tables:
        print(f"\n{table}")
    print(f"\n{args.name}: done in {took:.0f} s; its files are in {out}")
    if args.record:
        measured.record(HERE / args.name / "README.md", tables, took)
    return 0


def measure(recipe: measured.Recipe, out: Path, quick: bool) -> Sequence[measured.Table | measured.Passage]:
    """Run the recipe with one torch thread: with two, sums differ in their last bits.

    A second thread helps such small networks little, and on a busy machine the two wait for each other.
    """
    import torch  # imported here, so that --help also works without torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return recipe.run(out, quick, say)
    finally:
        torch.set_num_threads(threads)


def recipe(name: str) -> measured.Recipe:
    """Import the recipe's module. Other recipes are not imported."""
    found: measured.Recipe = importlib.import_module(f"{name}.recipe")
    return found


def failed(name: str, why: str) -> int:
    print(f"{name}: {why}", file=sys.stderr)
    return 1


def about(name: str) -> str:
    """Return the first line of the recipe's README, without importing the recipe."""
    return (HERE / name / "README.md").read_text("utf-8").partition("\n")[0].lstrip("# ")


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
