"""Web pages of other origins: none may ask, but those that the settings name, who may read refusals too."""

import pytest

from client.http import openapi
from client.settings import Settings, SettingsError
from tests.in_process import adapter, refused

KEY, PAGE = "s3cret-Key", "https://app.example"
ASKED = {"origin": PAGE, "access-control-request-method": "POST"}
PREFLIGHT = ASKED | {"access-control-request-headers": "authorization,content-type,x-timeout"}


async def test_by_default_no_page_may():
    async with adapter() as http:
        for answer in (await http.options("/txt/embed", headers=PREFLIGHT), await http.get("/info", headers=ASKED)):
            assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_the_browser_of_a_named_page_asks_first_without_the_key():
    async with adapter(cors_origins=f"http://localhost:3000, {PAGE}", api_key=KEY) as http:
        answer = await http.options("/txt/embed", headers=PREFLIGHT)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert answer.headers["access-control-allow-headers"] == PREFLIGHT["access-control-request-headers"]
        assert "access-control-allow-credentials" not in answer.headers  # a key is no cookie


@pytest.mark.parametrize(
    ("status", "path", "headers"),
    [
        (401, "/txt/embed", {}),
        (400, "/txt/embed", {"authorization": f"Bearer {KEY}"}),
        (404, "/nowhere", {"authorization": f"Bearer {KEY}"}),
    ],
)
async def test_a_named_page_reads_why_it_was_refused(status, path, headers):
    async with adapter(cors_origins=PAGE, api_key=KEY) as http:
        headers = {"origin": PAGE, "content-type": "application/json", **headers}
        answer = await http.post(path, content=b"{", headers=headers)
        refused(answer, status)
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.headers["x-request-id"]


async def test_one_that_there_is_no_room_for_reads_it_too():
    async with adapter(cors_origins=PAGE, max_pending_items=1, max_items=1) as http:
        http.app.state.admission.pending = 1
        answer = await http.post("/txt/embed", json={"input": "red"}, headers={"origin": PAGE})
        refused(answer, 429)
        assert answer.headers["access-control-allow-origin"] == PAGE


async def test_a_page_may_read_our_headers_and_another_may_not():
    async with adapter(cors_origins=PAGE) as http:
        answer = await http.get("/info", headers={"origin": PAGE})
        exposed = {name.strip() for name in answer.headers["access-control-expose-headers"].split(",")}
        assert {"x-recipe", "x-request-id", "x-tokens"} <= exposed == set(openapi.HEADERS)
        other = await http.get("/info", headers={"origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers
    async with adapter(cors_origins="*") as http:
        answer = await http.get("/info", headers={"origin": "https://other.example"})
        assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    "value",
    [
        *(f"{PAGE}/", f"{PAGE}/page", "app.example", f"{PAGE} https://b.example", "ws://a"),
        *("https://App.example", "https://*.example", "https://app.example:443", "http://localhost:80"),
    ],
)
def test_what_no_browser_would_ever_call_an_origin_is_refused(monkeypatch, value):
    monkeypatch.setenv("ADAPTER_CORS_ORIGINS", value)
    with pytest.raises(SettingsError, match=r"ADAPTER_CORS_ORIGINS: .* is not an origin"):
        Settings.from_environment()
