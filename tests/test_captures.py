"""What real clients were seen to send (tests/data/captures), sent to the server: each gets our vectors, or our reason.

Lists that a capture shortens are as long here as they were, and so are images: an image of one file each.
"""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.in_process import adapter, png64

CAPTURES = sorted(Path("tests/data/captures").glob("*.json"))
ELLIPSIS = re.compile(r"… (\d+) items in this request")
PNG = png64(200, 30, 30, 4)
# Paths of schemas that are not served.
UNKNOWN = {"/embed", "/api/embed", "/v1", "/v1/embed", "/v1/multimodalembeddings"}
# Calls that are refused, with words of the sentence that says why.
REFUSED = {
    "token array": "check_embedding_ctx_length=False",
    "token arrays": "check_embedding_ctx_length=False",
    "DEFAULT: cl100k_base token ids": "check_embedding_ctx_length=False",
    "DEFAULT, embed_query": "check_embedding_ctx_length=False",
    "truncate, types": "is not served: ask for",
    "openai_compatible, IMAGES without wrap_input: bare base64 strings, as if they were texts": "the text is an image",
}


def whole(value: Any) -> Any:
    """A body as it was before it was shortened."""
    if isinstance(value, list):
        if value and isinstance(value[-1], str) and (found := ELLIPSIS.fullmatch(value[-1])):
            return [f"c{index}" for index in range(int(found[1]))]
        return [whole(each) for each in value]
    if isinstance(value, dict):
        return {key: whole(each) for key, each in value.items()}
    return value


def requests(path: Path) -> list[dict]:
    text = re.sub(r'(base64,|")(iVBORw0KGgo=|AAAA)"', rf'\g<1>{PNG}"', path.read_text())
    return [request | {"body": whole(request["body"])} for request in json.loads(text)["requests"]]


def vectors(path: str, answer: dict) -> np.ndarray:
    if path == "/v2/embed":
        (values,) = answer["embeddings"].values()
    elif path == "/v1/embeddings":
        assert answer["object"] == "list"
        assert [each["index"] for each in answer["data"]] == list(range(len(answer["data"])))
        assert {each["object"] for each in answer["data"]} == {"embedding"}
        assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
        values = [each["embedding"] for each in answer["data"]]
    else:
        values = np.atleast_2d(answer["embedding"])
    numbers = [np.frombuffer(base64.b64decode(v), "<f4") if isinstance(v, str) else v for v in values]
    return np.array(numbers, dtype=np.float32)


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.stem)
async def test_each_captured_request_is_answered_or_refused_by_name(stack, path):
    async with adapter(stack.triton_grpc, any_model_name=True) as http:
        for sent in requests(path):
            answer = await http.request(sent["method"], sent["path"], json=sent["body"])
            about = f"{sent['call']}: {answer.text[:300]}"
            if sent["path"] in UNKNOWN:
                assert answer.status_code == 404, about
            elif sent["call"] in REFUSED:
                assert answer.status_code == 400, about
                assert REFUSED[sent["call"]] in answer.text
            elif sent["method"] == "GET":
                assert answer.json()["data"][0]["id"] == "qwen3-vl-color-tiny"
            else:
                assert answer.status_code == 200, about
                found = vectors(sent["path"], answer.json())
                asked = sent["body"].get("dimensions") or sent["body"].get("output_dimension") or 128
                assert found.shape[1] == asked, about
                assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
                key = next(k for k in ("input", "texts", "images", "inputs", "messages") if k in sent["body"])
                given = sent["body"][key]
                one = not isinstance(given, list) or (key == "messages" and isinstance(given[0], dict))
                assert len(found) == (1 if one else len(given)), about
