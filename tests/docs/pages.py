"""The documents, and what stands in them: headings, links, blocks of code, and the `pbkv` commands in these."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])

_RUN = "<!-- run -->\n"  # before a block that a test runs
_FENCE = re.compile(rf"(?P<run>{_RUN})?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_SHELL = ("sh", "bash")
_END_OF_COMMAND = {";", "|", "||", "&", "&&", ">", "<"}


class Block(NamedTuple):
    """A fenced block of code."""

    language: str
    text: str
    is_run: bool  # by a test, against a cluster


def title(document: Path) -> str:
    """The path of a document in the repository, which names a test of it."""
    return str(document.relative_to(ROOT))


def blocks(document: Path) -> list[Block]:
    """The fenced blocks of a document."""
    found = _FENCE.finditer(document.read_text())
    return [Block(each["language"], each["text"], each["run"] is not None) for each in found]


def prose(document: Path) -> str:
    """A document without its fenced blocks."""
    return _FENCE.sub("", document.read_text())


def inline_code(document: Path) -> list[str]:
    """What stands in backticks, outside blocks; a bar in a table without its escape."""
    return [each.replace(r"\|", "|") for each in re.findall(r"`([^`\n]+)`", prose(document))]


def anchors(document: Path) -> set[str]:
    """What links into a document may name: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def shell_commands(text: str) -> Iterator[list[str]]:
    """The words of each `pbkv` command in a block of shell, also of one that another command is given in quotes or after --."""
    open_line = ""
    for line in text.replace("\\\n", " ").splitlines():
        open_line += line
        lexer = shlex.shlex(open_line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # a quotation goes on in the next line
            open_line += " "
            continue
        open_line = ""
        yield from _commands(words)
    assert not open_line, f"a quotation does not end: {open_line}"


def pbkv_commands(document: Path) -> Iterator[list[str]]:
    """The words after `pbkv` of each command in a document's blocks of shell."""
    for block in blocks(document):
        if block.language in _SHELL:
            yield from shell_commands(block.text)


def _commands(words: list[str]) -> Iterator[list[str]]:
    for number, word in enumerate(words):
        if word == "pbkv" and (not number or _may_precede_a_command(words[number - 1])):
            rest = words[number + 1 :]
            stop = next((index for index, each in enumerate(rest) if each in _END_OF_COMMAND), len(rest))
            yield rest[:stop]
        elif word.startswith("pbkv "):
            yield from shell_commands(word)


def _may_precede_a_command(word: str) -> bool:
    return word in (*_END_OF_COMMAND, "--", "exec") or re.match(r"\w+=", word) is not None
