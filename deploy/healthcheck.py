"""Whether a gateway serves, by its HTTP API: `python healthcheck.py HOST PORT` exits with 0 if it does, else with 1.

For the container's own check, which has no API key. It asks over HTTP, and over HTTPS where that is not understood; the
certificate is not compared with anything, since who answers is the container itself.
"""

import ssl
import sys
from http.client import HTTPConnection, HTTPException, HTTPSConnection

_TIMEOUT_S = 4.0


def is_well(host: str, port: int) -> bool:
    """Whether GET /health, which asks for no key, answers 200: a worker is reachable."""
    unchecked = ssl.create_default_context()
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    status = _status(HTTPConnection(host, port, timeout=_TIMEOUT_S))
    return (status or _status(HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=unchecked))) == 200


def _status(connection: HTTPConnection) -> int:
    """Of the answer; 0: nobody listens, or not in this protocol."""
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status
    except (OSError, HTTPException):
        return 0
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(0 if is_well(sys.argv[1], int(sys.argv[2])) else 1)
