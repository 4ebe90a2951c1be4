"""What `make serve` can be told: `SERVE_*` variables (and `CHECKPOINT`), read once into one frozen object."""

import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "SERVE_"
APIS = "(shared-memory|model-repository|logging|trace)"
# What the adapter is told here by these.
INSTEAD = {"ADAPTER_HOST": "SERVE_HOST", "ADAPTER_PORT": "SERVE_PORT", "ADAPTER_TRITON_URL": "SERVE_TRITON_GRPC_PORT"}
ROOT = Path(__file__).resolve().parents[2]


class ServingError(Exception):
    """It cannot be served as asked; the message says what to change."""


def beside(number: int) -> Callable[[dict[str, Any]], int]:
    """Triton's port 0, 1 or 2 by the adapter's: three of its own for each, from 8010 for 8001, within 1026 to 65534."""
    return lambda given: 1026 + (8010 + 3 * (given["port"] - 8001) - 1026) % 64509 + number


class ServeSettings(BaseSettings):
    """One field for each environment variable: `port` is `SERVE_PORT`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True)

    host: str = Field("127.0.0.1", description="address that the adapter listens on")
    port: int = Field(8001, ge=1, le=65535, description="the adapter's port")
    triton_host: str = Field("127.0.0.1", description="address that Triton listens on, past every limit and the key")
    triton_http_port: int = Field(default_factory=beside(0), ge=1, le=65535, description="Triton's HTTP port")
    triton_grpc_port: int = Field(default_factory=beside(1), ge=1, le=65535, description="Triton's gRPC port")
    triton_metrics_port: int = Field(default_factory=beside(2), ge=1, le=65535, description="Triton's Prometheus port")
    triton_open_apis: str | None = Field(
        None,
        pattern=f"^({APIS}(,{APIS})*)?$",
        description="of Triton's: load tools want model-repository, shared-memory",
    )
    tritonserver: Path | None = Field(None, description="the binary; unset: the one on PATH, else the wheel's")
    start_seconds: float = Field(
        3600, gt=0, description="longest time to load and warm up a checkpoint before giving up"
    )
    stop_seconds: int = Field(10, ge=1, le=3600, description="longest time for requests under way when stopping")
    verbose: bool = Field(False, description="show every line that Triton logs")

    @field_validator("host", "triton_host")
    @classmethod
    def _as_address(cls, host: str) -> str:
        """Of a name its IPv4 address, where it has one."""
        try:
            found = {str(address[0]) for *_, address in socket.getaddrinfo(host, None)}
        except (OSError, UnicodeError):
            raise ValueError(f"{host!r} is neither an address nor a name that this machine knows") from None
        return min(found, key=lambda address: ":" in address)

    @field_validator("triton_host")
    @classmethod
    def _in_ipv4(cls, host: str) -> str:
        if ":" in host:
            raise ValueError(f"Triton listens on an IPv4 address, and {host} is none")
        return host

    @classmethod
    def from_environment(cls) -> Self:
        """This process's settings.

        Raises:
            ServingError: a `SERVE_*` variable is not a setting, or its value is impossible.
        """
        known = {PREFIX + name.upper() for name in cls.model_fields}
        ours = (name for name in os.environ if name.upper().startswith(PREFIX))
        if unknown := sorted(name for name in ours if name.upper() not in known):
            raise ServingError(f"{unknown[0]} is not a setting; the settings are {', '.join(sorted(known))}")
        for name, instead in INSTEAD.items():
            if os.environ.get(name):
                raise ServingError(f"{name} is for an adapter that is started by itself: set {instead}, or unset it")
        try:
            return cls()
        except ValidationError as error:
            first = error.errors()[0]
            message = first["msg"].removeprefix("Value error, ")
            given = "" if first["type"] == "value_error" else f", not {first['input']!r}"
            raise ServingError(f"{PREFIX}{str(first['loc'][0]).upper()}: {message}{given}") from None

    @property
    def ports(self) -> dict[str, int]:
        """Each port under the name of its variable."""
        return {PREFIX + name.upper(): getattr(self, name) for name in type(self).model_fields if name.endswith("port")}

    @property
    def url(self) -> str:
        """The adapter's, as it is asked from this machine."""
        host = _reached(self.host)
        return f"http://{'localhost' if host == '127.0.0.1' else host}:{self.port}"

    @property
    def triton_http(self) -> str:
        """host:port of Triton's HTTP endpoint, as it is asked from this machine."""
        return f"{_reached(self.triton_host)}:{self.triton_http_port}"

    @property
    def triton_grpc(self) -> str:
        """The same of its gRPC endpoint."""
        return f"{_reached(self.triton_host)}:{self.triton_grpc_port}"


def _reached(host: str) -> str:
    """Where one asks what listens there, as part of an address."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def checkpoint(environment: Mapping[str, str] = os.environ) -> str:
    """What to serve: `CHECKPOINT`, else `EMBED_CHECKPOINT`, else the tiny colour checkpoint that ships here."""
    shipped = str(ROOT / "checkpoints" / "qwen3-vl-color-tiny")
    return environment.get("CHECKPOINT") or environment.get("EMBED_CHECKPOINT") or shipped
