"""The rules of the house that a machine can check: short files, small folders, wire and assembly apart, true reading guides."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "pbkv_cluster"
GENERATED = PACKAGE / "rpc" / "v1"
LINES_MAX = 300
MODULES_MAX = 12
GUIDED = ("cache", "cluster", "gateway", "gpu_worker", "predictor_service", "reuse", "store")


def modules(folder: Path) -> list[Path]:
    """The Python files below a folder that people write."""
    return sorted(file for file in folder.rglob("*.py") if GENERATED not in file.parents)


def test_files_are_short() -> None:
    written = [file for folder in (PACKAGE, ROOT / "benchmarks", ROOT / "proto") for file in modules(folder)]
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in written}
    assert {name: lines for name, lines in lengths.items() if lines > LINES_MAX} == {}


def test_folders_are_small() -> None:
    sizes = Counter(file.parent for file in modules(PACKAGE) if file.name != "__init__.py")
    assert {str(folder.relative_to(ROOT)): size for folder, size in sizes.items() if size > MODULES_MAX} == {}


@pytest.mark.parametrize("service", ["gateway", "gpu_worker", "predictor_service", "store"])
def test_a_service_has_its_wire_and_its_assembly_in_files_of_their_own(service: str) -> None:
    assert (PACKAGE / service / "servicer.py").exists()
    assert (PACKAGE / service / "server.py").exists()
    classes = ast.parse((PACKAGE / service / "server.py").read_text()).body
    assert [part.name for part in classes if isinstance(part, ast.ClassDef) and part.name.endswith("Servicer")] == []


@pytest.mark.parametrize("package", GUIDED)
def test_a_package_has_a_reading_guide_whose_files_exist(package: str) -> None:
    guide = ast.get_docstring(ast.parse((PACKAGE / package / "__init__.py").read_text())) or ""
    assert len(guide.splitlines()) > 3, "an __init__ of this package tells in which order to read its files"
    for name in re.findall(r"[\w/]+\.py\b", guide):
        assert (PACKAGE / package / name).exists(), f"the guide of {package} names {name}"


@pytest.mark.parametrize("package", ["cluster", "store"])
def test_a_guide_by_lines_has_every_file_once(package: str) -> None:
    guide = ast.get_docstring(ast.parse((PACKAGE / package / "__init__.py").read_text())) or ""
    listed = re.findall(r"^    ([\w/]+\.py) ", guide, re.MULTILINE)
    files = modules(PACKAGE / package)
    assert sorted(listed) == [str(file.relative_to(PACKAGE / package)) for file in files if file.name != "__init__.py"]


def test_names_of_test_files_are_unique() -> None:
    names = Counter(file.name for file in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, times in names.items() if times > 1] == []
