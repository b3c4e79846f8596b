"""Generates pbkv_cluster/rpc/v1 from proto/pbkv/v1. With `--check`, writes nothing and fails if that code is outdated."""

import sys
import sysconfig
import tempfile
from pathlib import Path

from grpc_tools import protoc

PROTO = Path(__file__).parent
TARGET = PROTO.parent / "pbkv_cluster" / "rpc" / "v1"
# By its path: it is on PATH only if the virtual environment is activated.
STUBS_PLUGIN = Path(sysconfig.get_path("scripts"), "protoc-gen-mypy_grpc")


def generate() -> dict[str, str]:
    """Contents of the generated files by name, with imports rewritten to the package."""
    with tempfile.TemporaryDirectory() as out:
        sources = sorted(str(path) for path in PROTO.glob("pbkv/v1/*.proto"))
        outputs = ["--mypy_grpc_opt=quiet"]
        outputs += [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python", "mypy_grpc")]
        if protoc.main(["protoc", f"--plugin={STUBS_PLUGIN}", f"-I{PROTO}", *outputs, *sources]) != 0:
            raise SystemExit("protoc failed")
        files = {path.name: path.read_text() for path in sorted(Path(out, "pbkv", "v1").iterdir())}
    files["__init__.py"] = '"""Generated from proto/pbkv/v1 by `make proto`; not to be edited."""\n'
    return {name: text.replace("from pbkv.v1 import", "from pbkv_cluster.rpc.v1 import") for name, text in files.items()}


def main() -> None:
    files = generate()
    present = {path.name: path.read_text() for path in TARGET.iterdir() if path.is_file()} if TARGET.exists() else {}
    if "--check" in sys.argv[1:]:
        if files != present:
            raise SystemExit("the generated protobuf code is outdated: run `make proto`")
        return
    TARGET.mkdir(exist_ok=True)
    for stale in present.keys() - files.keys():
        (TARGET / stale).unlink()
    for name, text in files.items():
        (TARGET / name).write_text(text)


if __name__ == "__main__":
    main()
