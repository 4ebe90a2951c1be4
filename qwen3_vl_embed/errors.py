"""What a client raises. Each message is a sentence for a person."""


class AdapterError(Exception):
    """The server refused, failed or is not there.

    Attributes:
        status: the HTTP status; None when no answer came.
        param: what the server blames: an item (`input[7]`), an option (`pooling`), or nothing ("").
    """

    def __init__(self, message: str, status: int | None = None, param: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.param = param

    @property
    def index(self) -> int | None:
        """The position of the item at fault: 7 for `input[7]`."""
        number = self.param.rpartition("[")[2].removesuffix("]")
        return int(number) if number.isdigit() else None


class NotNow(AdapterError):
    """The same request may succeed later; `after` is how many seconds the server wants us to wait."""

    def __init__(self, message: str, status: int | None = None, after: float = 0.0) -> None:
        super().__init__(message, status)
        self.after = after


class ItemError(AdapterError):
    """One item cannot be embedded, and the others can. The message begins with its name; `index` is its position."""
