"""What becomes of a text in a list where padding is done wrong: computed by transformers, which pads. Needs torch."""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from embedder.checkpoint import Checkpoint, load_tokenizer
from qwen3_vl_embed.compare.local import transformers_model
from qwen3_vl_embed.compare.sides import Vector
from qwen3_vl_embed.compare.variants import cosines

# Of the states (T, D) of a padded sequence, and of its length and side, the row that is taken for the vector.
TAKEN: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "the last position": lambda states, length: states[-1],
    "the position of the mask's sum": lambda states, length: states[length - 1],
    "the mean of all positions": lambda states, length: states.mean(dim=0),
}


def faults(
    checkpoint: Checkpoint, sequences: Sequence[NDArray[np.int64]], theirs: Sequence[Vector], least: float
) -> list[str]:
    """The ways of padding that give all these vectors of token ids that were sent in one list."""
    model, pad = transformers_model(checkpoint), load_tokenizer(checkpoint).pad_token_id
    longest = max(map(len, sequences))
    found = []
    for left, masked in product((True, False), (True, False)):
        ids = torch.full((len(sequences), longest), pad)
        mask = torch.full_like(ids, int(not masked))
        for row, each in enumerate(sequences):
            own = slice(longest - len(each), None) if left else slice(len(each))
            ids[row, own], mask[row, own] = torch.from_numpy(each), 1
        with torch.inference_mode():
            states = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False)
        for taken, take in TAKEN.items():
            rows = [take(each, len(own)) for each, own in zip(states.last_hidden_state, sequences, strict=True)]
            given = [row.float().cpu().numpy()[None] for row in rows]
            if min(float(cosines(row, vector)[0]) for row, vector in zip(given, theirs, strict=True)) >= least:
                side, without = "left" if left else "right", "" if masked else ", without an attention mask"
                found.append(f"padded on the {side}{without}, and {taken} taken")
    return found
