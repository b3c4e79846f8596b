"""Text that others have chosen, for a terminal."""


def plain(text: str) -> str:
    """Text that others have chosen, with a backslash escape for each character that does not print; lines stay lines."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in "\n\t" else each.encode("unicode_escape").decode("ascii") for each in text
    )
