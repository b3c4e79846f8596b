"""URLs as they may be shown: without their passwords."""

import re
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

MASK = "***"


def without_password(url: str) -> str:
    """A URL with its password masked, wherever Redis accepts one in it.

    A URL that can be read in more than one way, such as one whose password contains a slash, is masked as a whole.
    """
    try:
        parts = urlsplit(url)
        password = parts.password
        for host in parts.netloc.rpartition("@")[2].split(","):
            _ = urlsplit(f"//{host}").port  # raises for one that is none
    except ValueError:
        return MASK
    netloc = parts.netloc
    if password is not None:
        user, _, host = netloc.rpartition("@")
        netloc = f"{user.partition(':')[0]}:{MASK}@{host}"
    query = parts.query
    parameters = parse_qsl(query, keep_blank_values=True)  # unescaped, as Redis reads them
    if any("password" in key.lower() for key, _ in parameters):
        query = urlencode([(key, MASK if "password" in key.lower() else value) for key, value in parameters], safe="*")
    if "@" in parts.path + query + parts.fragment:  # the password may contain what ended the host's part of the URL
        return f"{parts.scheme}://{MASK}" if parts.scheme else MASK
    return urlunsplit(parts._replace(netloc=netloc, query=query))


def without_credentials(url: str) -> str:
    """A URL with its user masked too: where the password was forgotten, what stands for the user may be the password."""
    return re.sub(r"//[^/?#]*@", f"//{MASK}@", without_password(url))
