"""The optional API key: what needs it, what does not, and that nobody ever sees it."""

import asyncio
import logging

import pytest

from client.http import api_key
from client.settings import Settings, SettingsError
from tests.in_process import adapter, listening, refused
from tests.waits import LIMIT_SECONDS
from tests.wire import JSON, connected, raw, told

KEY = "s3cret-Key"
BEARER = {"authorization": f"Bearer {KEY}"}


@pytest.mark.parametrize("path", ["/health", "/health/live", "/openapi.json", "/docs"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_probes_and_the_contract_need_no_key(path, method):
    async with adapter(api_key=KEY) as http:
        assert (await http.request(method, path)).status_code in (200, 405, 503)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/txt/embed"),
        ("POST", "/img/embed"),
        ("POST", "/debug/render"),
        ("GET", "/info"),
        ("GET", "/metrics"),
        ("POST", "/health"),
        ("GET", "/anything/else"),
    ],
)
async def test_everything_else_does(method, path):
    async with adapter(api_key=KEY) as http:
        response = await http.request(method, path)
        assert "Bearer" in refused(response, 401)["message"]
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["x-request-id"]
        assert (await http.request(method, path, headers=BEARER)).status_code != 401


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Basic {KEY}",
        KEY,
        "Bearer \xff",
    ],
)
async def test_a_key_is_the_whole_key_after_bearer(value):
    async with adapter(api_key=KEY) as http:
        refused(await http.get("/info", headers={"authorization": value.encode("latin-1")}), 401)
        assert (await http.get("/info", headers={"authorization": f"bearer  {KEY} "})).status_code == 200


async def test_a_key_in_the_query_is_none_and_nothing_tells_it(caplog):
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.WARNING, "httpx")  # the caller's own log
    async with adapter(api_key=KEY) as http:
        answers = [await http.get("/info", params={"api_key": KEY, "key": KEY})]
        refused(answers[0], 401)
        answers += [await http.get(path, headers=BEARER) for path in ("/info", "/metrics", "/openapi.json", "/x")]
        assert not any(KEY in answer.text or KEY in str(answer.headers) for answer in answers)
    assert KEY not in caplog.text
    assert KEY not in repr(Settings(api_key=KEY))


async def test_a_body_without_a_key_is_not_waited_for():
    async with listening(api_key=KEY) as http, connected(http) as (reader, writer):
        writer.write(raw(JSON, b"Content-Length: 100"))
        answer = await asyncio.wait_for(reader.readuntil(b"}}"), LIMIT_SECONDS)
        told(answer, 401)


async def test_any_key_of_the_file_will_do(tmp_path):
    file = tmp_path / "keys"
    file.write_text("old-key\n\n  new-key  \n")
    async with adapter(api_key_file=file) as http:
        for key in ("old-key", "new-key"):
            assert (await http.get("/info", headers={"authorization": f"Bearer {key}"})).status_code == 200
        for key in ("", "old-key\nnew-key".replace("\n", " "), str(file)):
            refused(await http.get("/info", headers={"authorization": f"Bearer {key}"}), 401)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"two words", b"\xc3\xa4", b"\xff", None])
def test_a_file_without_a_usable_key_stops_the_start(tmp_path, content):
    """An adapter that was meant to have a key must not be open because a secret was not mounted."""
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match="ADAPTER_API_KEY_FILE: ") as caught:
        api_key.digests(Settings(api_key_file=file))
    assert "two words" not in str(caught.value)


def test_two_places_for_the_key_stop_the_start(monkeypatch, tmp_path):
    monkeypatch.setenv("ADAPTER_API_KEY", KEY)
    monkeypatch.setenv("ADAPTER_API_KEY_FILE", str(tmp_path))
    with pytest.raises(SettingsError, match="both set") as caught:
        Settings.from_environment()
    assert KEY not in str(caught.value)


async def test_the_contract_says_where_the_key_goes():
    async with adapter(api_key=KEY) as http:
        paths = (await http.get("/openapi.json")).json()["paths"]
    assert paths["/txt/embed"]["post"]["security"] == [{"key": []}]
    assert paths["/health"]["get"]["security"] == []
    assert "401" in paths["/metrics"]["get"]["responses"]
    async with adapter() as http:
        assert "security" not in (await http.get("/openapi.json")).json()["paths"]["/txt/embed"]["post"]
