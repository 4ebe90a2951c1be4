"""Where a stack of one's own can listen on this machine."""

import socket

from qwen3_vl_embed.serving.settings import ServeSettings


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that nobody listens on, and that nobody else is given while this process lives.

    A socket stays bound to each, and does not listen: Linux chooses none of them for another socket.
    Who names one may bind to it all the same, with SO_REUSEADDR, as servers do.
    """
    ports = []
    for _ in range(count):
        kept = socket.socket()
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        ports.append(kept.getsockname()[1])
        kept.detach()  # open until this process ends
    return ports


def serve_settings(**changes: object) -> ServeSettings:
    """The defaults on free ports, with these changes."""
    names = [name for name in ServeSettings.model_fields if name.endswith("port")]
    return ServeSettings.model_validate(dict(zip(names, free_ports(len(names)), strict=True)) | changes)
