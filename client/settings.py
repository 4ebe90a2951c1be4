"""What the adapter can be told, as environment variables `ADAPTER_*`, read once into one frozen object.

A misspelt name or an impossible value is refused by name at start. The model's own are `EMBED_*`.
"""

import os
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "ADAPTER_"
LONGEST_SECONDS = 3600.0  # of any deadline
# As browsers send it, or it would never be that of a page.
ORIGIN = r"(http(?!.*:80$)|https(?!.*:443$))://([a-z0-9._-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?"
LONGEST_SOCKET = 107  # bytes of its path (unix(7))


class SettingsError(ValueError):
    """A setting is unknown or impossible; the message names it."""


class Settings(BaseSettings):
    """One field per environment variable: `max_items` is `ADAPTER_MAX_ITEMS`. An empty one is as if it was not set."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 in a container; :: of IPv4 and IPv6.")
    port: int = Field(8001, ge=1, le=65535, description="Port to listen on.")
    workers: int = Field(1, ge=1, le=64, description="Processes that answer, on the one port.")
    triton_url: str = Field(
        "127.0.0.1:8011",
        description="host:port of Triton's gRPC endpoint; several: addresses with commas, or dns:///name:port.",
    )
    model_name: str = Field("qwen3_vl_embed", min_length=1, description="The model's name in Triton.")
    served_model_name: str | None = Field(
        None, pattern="^[a-z0-9][a-z0-9._-]*$", description="What it is asked for by; unset: the checkpoint's."
    )
    model_aliases: str | None = Field(
        None, description="More names to ask for it by: text-embedding-3-small,embed-v4.0; unset: none."
    )
    any_model_name: bool = Field(False, description="Any name will do in a request's `model`.")
    api_key: SecretStr | None = Field(None, description="Callers must know it; unset: anybody may ask.")
    api_key_file: Path | None = Field(None, description="The same from a file, one key a line: any will do.")
    cors_origins: str | None = Field(
        None, description="Web pages that may ask: https://a.example,http://localhost:3000, or *; unset: none."
    )
    max_connections: int = Field(
        4096, ge=1, le=2**20, description="Most connections at once; one more waits for another to close."
    )
    max_items: int = Field(256, ge=1, le=4096, description="Most items in one request; declared as maxItems.")
    max_list_items: int = Field(
        2048, ge=1, le=4096, description="The same of /v1 and /v2, and at most what may wait in one worker."
    )
    max_body_bytes: int = Field(64 * 2**20, ge=1024, description="Largest request body, in bytes.")
    max_concurrency: int = Field(128, ge=1, description="Most items at Triton at once; its own queue has no limit.")
    max_concurrent_pixels: int = Field(64_000_000, ge=1, description="Most pixels of larger images at Triton at once.")
    max_pending_pixels: int = Field(
        10**10, ge=1, description="Most pixels of larger images waiting or at Triton before a 429."
    )
    max_pending_items: int = Field(4096, ge=1, description="Most items waiting or at Triton before a 429.")
    max_pending_bytes: int = Field(2**30, ge=1024, description="Bytes of all bodies held, before a 429.")
    deadline_seconds: float | None = Field(
        None, gt=0, le=LONGEST_SECONDS, description="Longest a request may take before a 504."
    )
    cache_bytes: int = Field(128 * 2**20, ge=0, description="Bytes of the vector cache; 0 stores nothing.")
    probe_seconds: float = Field(5, gt=0, le=3600, description="A tiny text is sent after this silence.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="info: every request.")
    log_format: Literal["text", "json"] = Field("text", description="json: one object a line.")
    traces_url: str | None = Field(None, pattern=r"^https?://[^\s/]+\S*$", description="OTLP/HTTP receiver of spans.")

    @field_validator("triton_url")
    @classmethod
    def _host_and_port(cls, url: str) -> str:
        if url.startswith("unix:"):
            if len(os.fsencode(url.removeprefix("unix:"))) > LONGEST_SOCKET:
                raise ValueError(f"the path of a socket has at most {LONGEST_SOCKET} bytes, unlike {url!r}")
            return url
        scheme, targets = re.fullmatch(r"(dns:(?://[^/]*/)?|ipv[46]:|)(.*)", url, re.DOTALL).groups()  # type: ignore
        parts = [re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):([0-9]{1,5})", each) for each in targets.split(",")]
        hosts = [part[1] for part in parts if part and 0 < int(part[2]) < 2**16]
        if len(parts) == 1 and not scheme.startswith("ipv"):
            if not hosts:
                raise ValueError(f"{url!r} is not the host:port of Triton's gRPC endpoint, such as 127.0.0.1:8011")
            return url
        try:
            (version,) = {ip_address(host.strip("[]")).version for host in hosts}
        except ValueError:
            version = None
        if version and len(hosts) == len(parts) and scheme in ("", f"ipv{version}:"):
            return f"ipv{version}:{targets}"
        raise ValueError(
            f"{url!r} is no list of addresses of one kind, such as 10.0.0.1:8001,10.0.0.2:8001; "
            "for all addresses of a name it is dns:///triton:8001"
        )

    @field_validator("cors_origins")
    @classmethod
    def _web_pages(cls, origins: str | None) -> str | None:
        for origin in cls._split(origins):
            if origin != "*" and not re.fullmatch(ORIGIN, origin):
                raise ValueError(
                    f"{origin!r} is not an origin as browsers send it: https://a.example or http://localhost:3000, in "
                    "lower case, without a path, a wildcard or the scheme's own port; or * for all"
                )
        return origins

    @property
    def origins(self) -> list[str]:
        """Those of the web pages that may ask."""
        return self._split(self.cors_origins)

    @property
    def aliases(self) -> list[str]:
        """More names of the model."""
        return self._split(self.model_aliases)

    @property
    def list_items(self) -> int:
        """The most items in one request to /v1 and /v2: a full one must fit into what one worker lets wait."""
        return min(self.max_list_items, self.share(self.max_pending_items))

    @staticmethod
    def _split(values: str | None) -> list[str]:
        return [value.strip() for value in (values or "").split(",") if value.strip()]

    @model_validator(mode="after")
    def _one_full_request_fits(self) -> Self:
        if self.max_pending_items < self.max_items * self.workers:
            raise ValueError(
                f"{PREFIX}MAX_PENDING_ITEMS must be at least {PREFIX}MAX_ITEMS for each of the {PREFIX}WORKERS "
                f"({self.max_items * self.workers}), or no full request fits"
            )
        if self.max_pending_bytes < self.max_body_bytes * self.workers:
            raise ValueError(
                f"{PREFIX}MAX_PENDING_BYTES must be at least {PREFIX}MAX_BODY_BYTES for each of the {PREFIX}WORKERS "
                f"({self.max_body_bytes * self.workers}), or no full body fits"
            )
        if min(self.max_concurrency, self.max_connections) < self.workers:
            raise ValueError(
                f"{PREFIX}MAX_CONCURRENCY and {PREFIX}MAX_CONNECTIONS must be at least {PREFIX}WORKERS "
                f"({self.workers}): one for each"
            )
        return self

    @model_validator(mode="after")
    def _one_place_for_the_key(self) -> Self:
        if self.api_key and self.api_key_file:
            raise ValueError(f"{PREFIX}API_KEY and {PREFIX}API_KEY_FILE are both set: keep one of them")
        return self

    @property
    def keyed(self) -> bool:
        """Whether a caller must know a key."""
        return bool(self.api_key or self.api_key_file)

    def share(self, total: int) -> int:
        """What one worker may have of a total: the sum never exceeds it."""
        return total // self.workers

    @classmethod
    def from_environment(cls) -> Self:
        """Read the process's environment.

        Raises:
            SettingsError: a variable with the prefix is not a setting, or its value is impossible.
        """
        known = {PREFIX + name.upper() for name in cls.model_fields}
        ours = {name for name in os.environ if name.upper().startswith(PREFIX)}
        if unknown := sorted(name for name in ours if name.upper() not in known):
            raise SettingsError(f"Unknown setting {unknown[0]}. Use one of: {', '.join(sorted(known))}.")
        try:
            return cls()
        except ValidationError as error:
            raise SettingsError("\n".join(map(_sentence, error.errors()))) from None


def _sentence(problem: ErrorDetails) -> str:
    if not problem["loc"]:  # from the validator above, which names the settings itself
        return problem["msg"].removeprefix("Value error, ") + "."
    name, message = f"{PREFIX}{str(problem['loc'][0]).upper()}", problem["msg"]
    if problem["type"] == "value_error":  # from a validator of ours, which says what was given
        return f"{name}: {message.removeprefix('Value error, ')}."
    return f"{name}: {message}, not {problem['input']!r}."
