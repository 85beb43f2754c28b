"""Every setting, declared once: environment, command-line flags and the reference page all come from here.

Each is ``SEKALI_<NAME>`` in the environment; a few older names are accepted too.
"""

from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

ENV_PREFIX = "SEKALI_"
KIB, MIB = 1024, 1024 * 1024


Network = IPv4Network | IPv6Network


def networks(text: str) -> tuple[Network, ...]:
    """Read addresses and networks, separated by commas.

    Raises:
        ValueError: one of them is neither.

    """
    return tuple(ip_network(part.strip(), strict=False) for part in text.split(",") if part.strip())


def _older_name(name: str) -> AliasChoices:
    return AliasChoices(ENV_PREFIX + name, name)


class _Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="ignore", populate_by_name=True)


class ServerSettings(_Settings):
    """What ``sekali serve`` reads."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    db_path: Path = Field(
        Path("data/store.db"),
        validation_alias=_older_name("DB_PATH"),
        description="The SQLite file. Its folder also holds the write-ahead log and a lock, and is made if missing.",
    )
    consumer_workers: int = Field(
        0,
        ge=0,
        le=64,
        validation_alias=_older_name("CONSUMER_WORKERS"),
        description="1 or more: a thread prepares events for the writer; 0: the event loop does, which is faster.",
    )
    queue_events_max: int = Field(
        100_000, ge=1, description="Events accepted and not yet answered, over all requests; beyond: 503."
    )
    queue_bytes_max: int = Field(
        64 * MIB, ge=1, description="Bytes of request bodies held at once, over all requests; beyond: 503."
    )
    commit_events_max: int = Field(
        10_000, ge=1, description="Events committed together at most (one larger request is still one commit)."
    )
    commit_wait_ms_max: float = Field(
        0.0, ge=0, le=1000, description="How long a commit waits for company; 0 commits what is there at once."
    )
    body_bytes_max: int = Field(10 * MIB, ge=1, description="Size of a request body; beyond: 413.")
    batch_events_max: int = Field(10_000, ge=1, description="Events in one request; beyond: 413.")
    event_bytes_max: int = Field(
        1 * MIB, ge=1, description="Size of one event's values; beyond: that event is invalid."
    )
    subscriptions_max: int = Field(1000, ge=0, description="Durable subscriptions; beyond: 409.")
    push_allowed_networks: str = Field(
        "",
        description="Addresses and networks, separated by commas, that webhooks may be sent to although they are "
        "private, loopback or otherwise not public.",
    )
    push_pause_after_s: float = Field(
        86_400.0, gt=0, description="Time without any success, after which an endpoint that is down is paused."
    )
    topics_max: int = Field(100_000, ge=1, description="Topics in the store; an event of one more is invalid.")
    disk_free_bytes_min: int = Field(
        128 * MIB, ge=0, description="Bytes to keep free on the disk; with less, publishing answers 503. 0: no limit."
    )
    read_timeout_s: float = Field(
        10.0, gt=0, description="Time for one page of a query; then it is ended, because it holds the log's files back."
    )
    header_timeout_s: float = Field(
        10.0, gt=0, description="Time to send a request's headers, also on an idle new connection; then it is closed."
    )
    body_timeout_s: float = Field(30.0, gt=0, description="Time to send a request's body; beyond: 408.")
    bootstrap_key: SecretStr | None = Field(
        None,
        description="A key, id.secret, that may do everything, to begin with; `sekali keys bootstrap` makes one. "
        "Only from the environment.",
    )
    allow_anonymous: bool = Field(
        False, description="Let everybody in where there are no keys, also on an address that others can reach."
    )
    rate_limit_per_s: float = Field(
        0.0, ge=0, description="Requests and events a second from all keys of one name; beyond: 429. 0: no limit."
    )
    tls_cert_file: Path | None = Field(
        None,
        description="The server's certificate and those up to its root (PEM), for https; with TLS_KEY_FILE.",
    )
    tls_key_file: Path | None = Field(None, description="The private key of TLS_CERT_FILE (PEM, without a password).")
    trusted_proxies: str = Field(
        "",
        description="Addresses and networks, separated by commas, of the proxies whose X-Forwarded-For and Forwarded "
        "headers are believed.",
    )
    answer_timeout_s: float = Field(
        30.0, gt=0, description="Time in which a client has to take its answer, or 64 KiB of it; else it is cut."
    )
    idle_timeout_s: float = Field(75.0, gt=0, description="Time without a request, after which a connection is closed.")
    connections_max: int = Field(
        1000, ge=1, description="Connections at once; beyond, an idle one gives way, or else the new one gets 503."
    )
    connection_bytes_max: int = Field(
        64 * MIB,
        ge=16 * MIB,
        description="Bytes that wait on connections, answers not taken and requests whose turn has not come; beyond: "
        "who has waited longest is cut.",
    )
    stop_timeout_s: float = Field(10.0, gt=0, description="Time to commit, answer and stop after SIGTERM.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="debug adds one line for each duplicate."
    )

    @field_validator("trusted_proxies", "push_allowed_networks")
    @classmethod
    def _are_networks(cls, text: str) -> str:
        networks(text)
        return text

    @model_validator(mode="after")
    def _combinations_that_cannot_work(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("TLS_CERT_FILE and TLS_KEY_FILE belong together: give both or neither")
        for smaller, larger in (
            ("body_bytes_max", "queue_bytes_max"),
            ("batch_events_max", "queue_events_max"),
            ("event_bytes_max", "body_bytes_max"),
        ):
            low, high = getattr(self, smaller), getattr(self, larger)
            if low > high:
                raise ValueError(
                    f"{smaller.upper()} ({low}) is above {larger.upper()} ({high}), so the largest request allowed "
                    "could never be taken: lower the first or raise the second"
                )
        return self


class PublisherSettings(_Settings):
    """What ``sekali publish`` reads when it generates a load."""

    aggregator_url: str = Field(
        "http://127.0.0.1:8080",
        validation_alias=_older_name("AGGREGATOR_URL"),
        description="The server to talk to; every client command reads it.",
    )
    api_key: SecretStr | None = Field(
        None, description="The key, id.secret, for every client command. Only from the environment."
    )
    api_key_file: Path | None = Field(
        None, description="A file that holds the key, for every client command; it counts before API_KEY."
    )
    ca_file: Path | None = Field(
        None, description="Certificates (PEM) to trust for https instead of the system's, for every client command."
    )
    publish_count: int = Field(
        6000, ge=0, validation_alias=_older_name("PUBLISH_COUNT"), description="Events to send, duplicates included."
    )
    dup_ratio: float = Field(
        0.20,
        ge=0,
        lt=1,
        validation_alias=_older_name("DUP_RATIO"),
        description="Share of the events that repeat an earlier one.",
    )
    batch_size: int = Field(500, ge=1, validation_alias=_older_name("BATCH_SIZE"), description="Events in one request.")
    topics: str = Field(
        "kano1,kano2,kano3,kano4",
        validation_alias=_older_name("TOPICS"),
        description="Topics to spread the events over, separated by commas.",
    )
    publish_seed: int | None = Field(None, description="With a seed, ids and payloads repeat from run to run.")

    @property
    def topic_names(self) -> list[str]:
        """The topics as a list, without empty names."""
        return [name.strip() for name in self.topics.split(",") if name.strip()]


def is_secret(field: FieldInfo) -> bool:
    """Tell whether a setting must not stand on a command line, where every process of the machine can read it."""
    return SecretStr in (field.annotation, *get_args(field.annotation))


def environment_names(settings: type[BaseSettings], field_name: str) -> list[str]:
    """Return the environment variables that set a field, the first being the one to recommend."""
    alias = settings.model_fields[field_name].validation_alias
    if isinstance(alias, AliasChoices):
        return [str(choice) for choice in alias.choices]
    return [ENV_PREFIX + field_name.upper()]


def explain(error: Any) -> str:
    """Turn pydantic's findings into one line each, in the words of the environment."""
    lines = []
    for found in error.errors():
        name = ".".join(str(part) for part in found["loc"]).upper()
        message = found["msg"].removeprefix("Value error, ")
        lines.append(f"{name}: {message} (it is {found['input']!r})" if name else message)
    return "\n".join(lines)
