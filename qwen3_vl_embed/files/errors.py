"""What was typed wrong, and files that cannot be written. Messages are sentences; `app.sentences` prints them."""


class SourceError(Exception):
    """What was named cannot be read, or could mean two things; the message says which and what to write instead."""


class VectorFileError(Exception):
    """The file cannot be written; the message says why and what would work."""
