"""Where a stack of one's own can listen on this machine."""

import socket
from contextlib import ExitStack

from qwen3_vl_embed.serving.settings import ServeSettings


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that nobody listens on now."""
    with ExitStack() as open_at_once:
        sockets = [open_at_once.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def serve_settings(**changes: object) -> ServeSettings:
    """The defaults on free ports, with these changes."""
    names = [name for name in ServeSettings.model_fields if name.endswith("port")]
    return ServeSettings.model_validate(dict(zip(names, free_ports(len(names)), strict=True)) | changes)
