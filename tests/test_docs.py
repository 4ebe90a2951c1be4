"""GET /docs: Swagger from this server alone, which its policy says to the browser too."""

import base64
import re
from hashlib import sha256
from urllib.parse import urljoin

import pytest

from client.http import docs
from tests.in_process import adapter, refused

KEY = "s3cret-Key"


async def test_all_that_the_page_names_is_served_here_without_a_key():
    async with adapter(api_key=KEY) as http:
        page = await http.get("/docs")
        assert page.status_code == 200
        named = re.findall(r'(?:src=|href=|url: )"([^"]*)"', page.text)
        assert named == ["data:,", "docs/swagger-ui.css", "docs/swagger-ui-bundle.js", "openapi.json"]
        for address in named[1:]:
            answer = await http.get(urljoin("/docs", address))
            assert answer.status_code == 200, address
            assert len(answer.content) == int(answer.headers["content-length"]) > 1000
            head = await http.head(urljoin("/docs", address))
            assert (head.status_code, head.content) in ((200, b""), (405, head.content))


async def test_the_root_leads_to_the_page_below_any_prefix_and_without_a_key():
    async with adapter(api_key=KEY) as http:
        for method in ("GET", "HEAD"):
            answer = await http.request(method, "/")
            assert answer.status_code == 307
            assert urljoin("https://gateway.example/embed/", answer.headers["location"]) == (
                "https://gateway.example/embed/docs"
            )
        assert (await http.get("/", follow_redirects=True)).text == (await http.get("/docs")).text


async def test_the_browser_may_run_nothing_else():
    async with adapter() as http:
        page = await http.get("/docs")
        policy = dict(rule.split(" ", 1) for rule in page.headers["content-security-policy"].split("; "))
        scripts = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
        hashes = [f"'sha256-{base64.b64encode(sha256(each.encode()).digest()).decode()}'" for each in scripts]
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"].split() == ["'self'", *hashes]
        assert policy["connect-src"] == "'self'"
        assert not re.search(r"\son[a-z]+=", page.text)
        for path in docs.FILES:
            answer = await http.head(path, headers={"host": "a/b?c#d"})
            assert answer.status_code == 200
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["content-type"].startswith(docs.FILES[path])


@pytest.mark.parametrize("path", ["/docs/redoc.standalone.js", "/docs/../docs.py", "/docs/%2e%2e/core.py"])
async def test_no_other_file_is(path):
    async with adapter() as http:
        refused(await http.get(path), 404)
