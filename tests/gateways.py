"""Debian's nginx and HAProxy in front of an adapter, as their documentation configures them.

`.ci/run` installs both; elsewhere the tests that need one which is missing are skipped, and say so.
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.in_process import png64
from tests.waits import LIMIT_SECONDS, until

NGINX = """
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
{user}
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 64m;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
    upstream adapter {{ server {adapter}; keepalive 1; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://adapter;
            proxy_http_version 1.1;
            {lines}
        }}
    }}
}}
"""
PLAIN = 'proxy_set_header Connection "";'
# https://nginx.org/en/docs/http/websocket.html
WEBSOCKET = "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;"

HAPROXY = """
defaults
    mode http
    http-reuse always
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend callers
    bind 127.0.0.1:{port}
    default_backend adapter
backend adapter
    server adapter {adapter} maxconn 1
"""

# As docs/kubernetes.md says; a `server` line for each adapter, `{folder}/admin` takes and gives them traffic.
BALANCED = """
global
    stats socket {folder}/admin level admin
defaults
    mode http
    balance leastconn
    option httpchk GET /health
    option redispatch 1
    retries 5
    retry-on conn-failure empty-response
    timeout connect 5s
    timeout client 65s
    timeout server 65s
frontend callers
    bind 127.0.0.1:{port}
    default_backend adapters
backend adapters
    default-server check inter 500ms
    {servers}
"""

KINDS = ("nginx", "nginx with its WebSocket lines", "haproxy")


@contextmanager
def gateway(kind: str, adapter: str, port: int, folder: Path) -> Iterator[str]:
    """The address of one in front of the adapter at `adapter` (host:port), until the block ends."""
    program = kind.partition(" ")[0]
    if program == "haproxy":
        text = HAPROXY.format(adapter=adapter, port=port)
    else:
        lines = PLAIN if kind == "nginx" else WEBSOCKET
        user = "user root;" if os.geteuid() == 0 else ""  # who else may not write into a test's folder
        text = NGINX.format(folder=folder, user=user, adapter=adapter, port=port, lines=lines)
    with _running(program, text, port, folder) as url:
        yield url


@contextmanager
def balancer(adapters: dict[str, str], port: int, folder: Path) -> Iterator[str]:
    """The address of HAProxy in front of several adapters, each (host:port) by a name of one word."""
    servers = "\n    ".join(f"server {name} {address}" for name, address in adapters.items())
    with _running("haproxy", BALANCED.format(folder=folder, port=port, servers=servers), port, folder) as url:
        yield url


def tell(folder: Path, *lines: str) -> None:
    """Have a balancer's HAProxy do this, such as `set server adapters/old state drain`."""
    for line in lines:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(folder / "admin"))
            admin.sendall(f"{line}\n".encode())
            assert not (said := admin.recv(4096).strip()), said


@contextmanager
def _running(program: str, text: str, port: int, folder: Path) -> Iterator[str]:
    if not (path := shutil.which(program, path=os.environ["PATH"] + os.pathsep + "/usr/sbin")):
        assert os.environ.get("CI") != "true", f"{program} is missing"
        pytest.skip(f"needs {program}: apt install nginx-light haproxy")
    configuration, log = folder / f"{program}.conf", folder / "log"
    configuration.write_text(text)
    flags = ["-db", "-f"] if program == "haproxy" else ["-p", str(folder), "-c"]
    command = [path, *flags, str(configuration)]
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            until(lambda: process.poll() is not None or httpx.get(f"{url}/health/live", timeout=LIMIT_SECONDS))
            assert process.poll() is None, log.read_text()
            yield url
        finally:
            process.terminate()


def a_list(caller: int, turn: int) -> tuple[str, dict[str, list[str]]]:
    """Path and body of three texts or three images, by turns, that nobody else asks for."""
    if turn % 2:
        return "/img/embed", {"input": [png64(caller, turn % 256, item) for item in range(3)]}
    return "/txt/embed", {"input": [f"{caller} {turn} {item}" for item in range(3)]}
