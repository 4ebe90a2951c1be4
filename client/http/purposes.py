"""What an input is for (`input_type`, `task`): a checkpoint's own prompt, where it has one for that.

A checkpoint may have been trained with a prompt for queries and none for documents; without it, its vectors are others.
Where it has none, an input's purpose changes nothing.
"""

from typing import Any

from client.errors import DeadlinePassed, InvalidInput

# What Cohere, NIM, Voyage and, behind a dot, Jina call it -> what checkpoints do, as sentence-transformers saves them.
NAMES = {
    **dict.fromkeys(("search_query", "query"), ("query",)),
    **dict.fromkeys(("search_document", "document", "passage"), ("document", "passage", "corpus")),
    **dict.fromkeys(("image", "classification", "clustering", "separation", "text-matching", "retrieval", "code"), ()),
}


class Purpose:
    """One caller's, for the model that is known now.

    Raises:
        InvalidInput: a name that nobody knows, where a known one may mean a prompt.
    """

    def __init__(self, name: str | None, model: dict[str, Any] | None, param: str = "input_type") -> None:
        self._name = name
        self._prompt = self._of(model)
        own = (model or {}).get("own_prompts")
        if name is not None and own and self._prompt is None and name.rpartition(".")[2] not in NAMES:
            known = ", ".join(dict.fromkeys((*own, *NAMES)))
            raise InvalidInput(
                f'"{param}" is "{name[:64]}", and this checkpoint has prompts: send one of {known}.', param
            )

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
        own, last = model.get("own_prompts", ()), self._name.rpartition(".")[2]
        return next((name for name in (self._name, *NAMES.get(last, ())) if name in own), None)
