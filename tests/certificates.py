"""Certificates made for a test, by OpenSSL's command."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

_KIND = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]


@dataclass(frozen=True)
class Certificate:
    """Paths of PEM files."""

    certificate: str
    key: str
    ca: str  # that has signed it


class Authority:
    """Signs certificates."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self.ca, self._key = str(folder / f"{name}.pem"), str(folder / f"{name}.key")
        _openssl("req", "-x509", *_KIND, "-keyout", self._key, "-out", self.ca, "-subj", f"/CN={name}")

    def sign(self, name: str, alternative_names: str = "IP:127.0.0.1,DNS:localhost") -> Certificate:
        """A certificate with these names."""
        made = Certificate(str(self._folder / f"{name}.pem"), str(self._folder / f"{name}.key"), self.ca)
        names = ["-subj", f"/CN={name}", "-addext", f"subjectAltName={alternative_names}"]
        signed = ["-CA", self.ca, "-CAkey", self._key, "-addext", "basicConstraints=critical,CA:FALSE"]
        _openssl("req", "-x509", *_KIND, "-keyout", made.key, "-out", made.certificate, *names, *signed)
        return made


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)
