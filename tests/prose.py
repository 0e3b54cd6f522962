"""Count odd constructions in docstrings, comments and pages, per 1,000 words and folder.

    python -m tests.prose                  every folder
    python -m tests.prose deploy --worst 20    one folder, with more of its sentences

A low count does not make a text clear. The measure is that a reader understands each sentence at the first
reading.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
GOAL = 5.0  # per 1,000 words; h11, httpx, trio, uvicorn and river have 0.6 to 2.2
FOLDERS = {  # folder: most that is allowed; lower it when the folder is rewritten, down to GOAL
    ".": 5.0,
    "engine": 5.0,
    "engine/runnel": 5.0,
    "plugins": 5.0,
    "export": 5.0,
    "export/runnel_export": 5.0,
    "export/recipes": 5.0,
    "deploy": 5.0,
    "tests": 5.0,
}
PATTERNS = {
    "conditional 'where'": r"\bwhere (?:it|they|there (?:is|are)|that|one|none|no|nothing|nobody|memory)\b"
    r"|\bwhere (?:the|a|an) \w+ (?:is|are|has|have|can|cannot|was|were|does|fails)\b",
    "tell, told": r"\b(?:tell|tells|told|telling)\b",
    "fused subject": r"(?:^|(?<=[.;:] ))(?:What|Whatever|Whoever|Who) (?:is|are|was|has|\w+s) [^?]*$",
    "so many": r"\bso (?:many|much|long)\b",
    "nobody, whoever": r"\b(?:nobody|whoever|whatever|somebody|anybody)\b",
    "inverted 'Of'": r"(?:^|(?<=[.;:] ))Of (?:what|which|these|those|all|a|an|the|such)\b",
    "is to be": r"\b(?:is|are|was|were) to be\b",
}
_PATTERNS = {
    name: re.compile(pattern, re.I if name != "fused subject" else 0) for name, pattern in PATTERNS.items()
}
_FENCED = re.compile(r"^```.*?^```$|^ {4}[^\n]*$|<!--.*?-->|^\|[-| ]*\|$", re.M | re.S)
_CODE = re.compile(r"`[^`]*`|\]\([^)]*\)|https?://\S+")


class Sentence(NamedTuple):
    """One sentence, where it is, and which patterns it has."""

    place: str
    text: str
    found: list[str]


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text) of each docstring and comment of a module, or each paragraph of a page."""
    source = path.read_text("utf-8")
    if path.suffix == ".md":
        plain = _FENCED.sub(lambda found: "\n" * found[0].count("\n"), source)
        at = 1
        for part in re.split(r"(\n\s*\n|\n(?=[-*|#]))", plain):
            if part.strip():
                yield at, part.replace("|", ". ").lstrip("#-* ")
            at += part.count("\n")
        return
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and (text := ast.get_docstring(node)):
            for part in re.split(r"\n\s*\n", text):
                yield node.body[0].lineno, part
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not re.match(r"#\s*(?:type:|noqa|fmt:|!)", token.string):
            yield token.start[0], token.string.lstrip("# ")


def sentences(path: Path) -> Iterator[Sentence]:
    """Every sentence of a file."""
    for line, text in texts(path):
        plain = " ".join(_CODE.sub("x", text).split())
        for sentence in re.split(r"(?<=[.;:?!])\s+", plain):
            if re.search(r"\w", sentence):
                found = [name for name, pattern in _PATTERNS.items() for _ in pattern.findall(sentence)]
                yield Sentence(f"{path.relative_to(ROOT)}:{line}", sentence, found)


def files(folder: str) -> list[Path]:
    """The folder's modules and pages that are in no folder below it that has a bound of its own."""
    below = [
        ROOT / other for other in FOLDERS if other != folder and (ROOT / folder) in (ROOT / other).parents
    ]
    if folder == ".":
        return sorted(path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md")
    found = [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.md")]
    return sorted(p for p in found if not any(q in p.parents for q in below) and p.name != "RESULTS.md")


def measure(folder: str) -> tuple[float, int, list[Sentence]]:
    """Odd constructions per 1,000 words, the number of words, and the sentences with the most of them."""
    words, odd = 0, []
    for path in files(folder):
        for sentence in sentences(path):
            words += len(sentence.text.split())
            if sentence.found:
                odd.append(sentence)
    odd.sort(key=lambda sentence: -len(sentence.found))
    return 1000 * sum(len(s.found) for s in odd) / max(1, words), words, odd


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="*", metavar="FOLDER", help=f"of {', '.join(FOLDERS)}")
    parser.add_argument(
        "--worst", type=int, default=5, metavar="N", help="sentences to print for each folder"
    )
    args = parser.parse_args()
    if unknown := set(args.folder) - set(FOLDERS):
        parser.error(f"no folder {min(unknown)!r}: expected one of {', '.join(FOLDERS)}")
    for folder in args.folder or FOLDERS:
        rate, words, odd = measure(folder)
        print(f"{folder}: {rate:.1f} per 1,000 of {words} words (bound {FOLDERS[folder]:g}, goal {GOAL:g})")
        for sentence in odd[: args.worst]:
            print(f"    {sentence.place}: {sentence.text}  [{', '.join(sentence.found)}]")


if __name__ == "__main__":
    main()
