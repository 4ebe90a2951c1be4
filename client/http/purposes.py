"""What an input is for (`input_type`, `task`): a checkpoint's own prompt, where it has one for that.

A checkpoint may have been trained with a prompt for queries and none for documents; without it, its vectors are others.
Where it has none, an input's purpose changes nothing.
"""

from typing import Any

from client.errors import DeadlinePassed

# What Cohere, NIM, Voyage and Jina call it -> what checkpoints call it, as sentence-transformers saves them.
NAMES = {
    **dict.fromkeys(("search_query", "query", "retrieval.query", "nl2code.query", "code.query"), ("query",)),
    **dict.fromkeys(
        ("search_document", "document", "passage", "retrieval.passage", "code.passage"),
        ("document", "passage", "corpus"),
    ),
}


class Purpose:
    """One caller's, for the model that is known now."""

    def __init__(self, name: str | None, model: dict[str, Any] | None) -> None:
        self._name = name
        self._prompt = self._of(model)

    def over(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options with the checkpoint's own prompt for it, unless they name a prompt or an instruction."""
        if self._prompt is None or {"prompt", "instruction"} & options.keys():
            return options
        return options | {"prompt": self._prompt}

    def check(self, model: dict[str, Any]) -> None:
        """That the model which answered has the same prompt for it.

        Raises:
            DeadlinePassed: it has not: another one came meanwhile.
        """
        if self._of(model) != self._prompt:
            raise DeadlinePassed("timeout: the model was replaced while this request ran. Send the request again.")

    def _of(self, model: dict[str, Any] | None) -> str | None:
        if self._name is None or model is None:
            return None
        own = model.get("own_prompts", ())
        return next((name for name in NAMES.get(self._name, (self._name,)) if name in own), None)
