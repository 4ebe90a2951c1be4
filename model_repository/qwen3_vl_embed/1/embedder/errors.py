"""The embedder's errors, a closed set. `model.py` maps them to Triton's status codes.

EmbedError
├── InvalidInput            the caller's mistake: the message says what to change
├── InferenceFailed         ours: the model gave no usable vector
├── Abandoned               nobody's: the caller does not wait any more
└── UnsupportedCheckpoint   at start: this checkpoint cannot be served, and why
"""

LOST = 70  # the exit status of a process that lost its GPU, or cannot go on for a fault of ours (EX_SOFTWARE)
CAPTURE_FAILED = 71  # that of one in which a CUDA graph could not be captured: start it again with EMBED_GRAPHS=false


class EmbedError(Exception):
    """Base of all errors that the embedder raises or returns; `str(error)` is a sentence for a person."""


class InvalidInput(EmbedError):
    """The input cannot be embedded as it is; the caller can mend it."""


class InferenceFailed(EmbedError):
    """The model failed on a valid input, or produced NaN, infinity or zero."""


class Abandoned(EmbedError):
    """The caller does not wait any more; nothing was computed."""


class UnsupportedCheckpoint(EmbedError):
    """The checkpoint is not a Qwen3-VL one, is incomplete, or cannot be found."""
