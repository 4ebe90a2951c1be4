"""Debian's nginx and HAProxy in front of an adapter, as their documentation configures them.

`.ci/run` installs both; elsewhere the tests that need one which is missing are skipped, and say so.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

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

KINDS = ("nginx", "nginx with its WebSocket lines", "haproxy")


@contextmanager
def gateway(kind: str, adapter: str, port: int, folder: Path) -> Iterator[str]:
    """The address of one in front of the adapter at `adapter` (host:port), until the block ends."""
    program = kind.partition(" ")[0]
    if not (path := shutil.which(program, path=os.environ["PATH"] + os.pathsep + "/usr/sbin")):
        assert os.environ.get("CI") != "true", f"{program} is missing"
        pytest.skip(f"needs {program}: apt install nginx-light haproxy")
    configuration, log = folder / f"{program}.conf", folder / "log"
    if program == "haproxy":
        configuration.write_text(HAPROXY.format(adapter=adapter, port=port))
        command = [path, "-db", "-f", str(configuration)]
    else:
        lines = PLAIN if kind == "nginx" else WEBSOCKET
        user = "user root;" if os.geteuid() == 0 else ""  # who else may not write into a test's folder
        configuration.write_text(NGINX.format(folder=folder, user=user, adapter=adapter, port=port, lines=lines))
        command = [path, "-p", str(folder), "-c", str(configuration)]
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            until(lambda: process.poll() is not None or httpx.get(f"{url}/health/live", timeout=LIMIT_SECONDS))
            assert process.poll() is None, log.read_text()
            yield url
        finally:
            process.terminate()
