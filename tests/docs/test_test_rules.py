"""Rules for the tests themselves: they use public interfaces, and wait by polling with a deadline instead of sleeping."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
FOLDERS = sorted(folder.name for folder in TESTS.iterdir() if folder.is_dir() and any(folder.rglob("*.py")))
NAMED_TUPLE = {"_asdict", "_fields", "_make", "_replace"}  # public in spite of their names
NO_PUBLIC_WAY = {"_forward_hooks"}  # of torch: whether a module still has hooks
PUBLIC = NAMED_TUPLE | NO_PUBLIC_WAY


def nodes(folder: str) -> Iterator[tuple[str, ast.AST]]:
    """Every syntax node of the tests in a folder, with its place."""
    for file in sorted((TESTS / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            yield f"{file.relative_to(TESTS)}:{getattr(node, 'lineno', 0)}", node


def is_private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.endswith("__") and name not in PUBLIC


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_test_reads_or_sets_private_state(folder: str) -> None:
    found = set()
    for place, node in nodes(folder):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                pass
            case ast.Attribute(attr=name) if is_private(name):
                found.add(f"{place} {ast.unparse(node)}")
            case ast.Call(func=ast.Attribute(attr="setattr"), args=[_, ast.Constant(value=name), *_]) if is_private(name):
                found.add(f"{place} {ast.unparse(node)}")
    assert sorted(found) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_test_sleeps(folder: str) -> None:
    found = set()
    for place, node in nodes(folder):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="time" | "asyncio"), attr="sleep"), args=[ast.Constant(value=0)]
            ):
                pass  # gives other tasks a turn
            case ast.Call(func=ast.Attribute(value=ast.Name(id="time" | "asyncio"), attr="sleep")):
                found.add(f"{place} {ast.unparse(node)}")
    assert sorted(found) == []
