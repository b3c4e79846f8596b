"""Where this package was installed from. It is on no package index, so its extras are installed from there, too."""

import json
import shlex
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

DISTRIBUTION = "pbkv-cluster"
CHECKOUT = Path(__file__).resolve().parents[3]  # if the package runs in one


def install_command(extra: str) -> str:
    """The command that installs an extra of this package, for a message to whoever lacks it."""
    return f"pip install {shlex.quote(f'{_source()}[{extra}]')}"


def _source() -> Path:
    """The checkout that this package runs in or was installed from; where nothing tells it, the folder that one is in."""
    if (CHECKOUT / "pyproject.toml").is_file():
        return CHECKOUT
    try:
        url = json.loads(metadata.distribution(DISTRIBUTION).read_text("direct_url.json") or "{}").get("url", "")
    except metadata.PackageNotFoundError:
        url = ""
    folder = Path(url2pathname(urlsplit(url).path)) if url.startswith("file:") else Path()
    return folder if (folder / "pyproject.toml").is_file() else Path()
