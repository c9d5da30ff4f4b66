"""Settings: read from the environment once, checked whole, passed down.

Every field names its variable, so this module is also the table of settings. Any variable may be
given as a file instead: `DATABASE_PASSWORD_FILE=/run/secrets/password`.
"""

import difflib
import os
import re
import socket
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import quote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from worker.errors import BadSettings
from worker.fields import MODEL_FIELDS
from worker.order import ENVELOPE_FIELDS

DURATION = re.compile(r"(\d{1,12})(ms|s|m|h|d)", re.ASCII)
UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
SCHEMA_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}", re.ASCII)


def duration_ms(value: object) -> object:
    """Milliseconds of `500ms`, `60s`, `10m`, `24h` or `7d`; other types pass as they are."""
    if not isinstance(value, str):
        return value
    match = DURATION.fullmatch(value.strip())
    if not match:
        raise ValueError("must be a duration such as 500ms, 60s, 10m, 24h or 7d")
    return int(match[1]) * UNIT_MS[match[2]]


def at_most(days: int) -> AfterValidator:
    """Refuse a longer duration: it is a slip, and Postgres and Python count less far than a setting reads."""

    def check(value_ms: int) -> int:
        if value_ms > days * UNIT_MS["d"]:
            raise ValueError(f"must be at most {days}d")
        return value_ms

    return AfterValidator(check)


def comma_separated(value: object) -> object:
    """The names in `a, b,c`; other types pass as they are."""
    if not isinstance(value, str):
        return value
    return [name.strip() for name in value.split(",") if name.strip()]


def schema_name(value: str) -> str:
    """Refuse a schema name that would need quoting."""
    if not SCHEMA_NAME.fullmatch(value):
        raise ValueError("must be lower case letters, digits and underscores, at most 63")
    return value


def stream_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse a stream given twice, and braces: they would put a stream and its claims apart."""
    if len(set(names)) < len(names):
        raise ValueError("must not name the same stream twice")
    if any("{" in name or "}" in name for name in names):
        raise ValueError(
            "must not hold braces: they mark the hash tag of the keys beside the stream"
        )
    if any("\\" in name or not name.isprintable() for name in names):
        raise ValueError("must be printable and hold no backslash: no tag of InfluxDB can")
    return names


def url_of(*schemes: str) -> BeforeValidator:
    """Refuse what is no URL of one of `schemes`, without repeating it: it may hold a password."""
    forms = ", ".join(f"{scheme}://" for scheme in schemes)

    def check(value: object) -> object:
        if isinstance(value, str) and not is_url(value, schemes):
            raise ValueError(f"must be a URL that begins with one of {forms} and says where")
        return value

    return BeforeValidator(check)


def is_url(text: str, schemes: Collection[str]) -> bool:
    """Whether it is of one of the schemes, says where the server or the file is, and its port is one."""
    try:
        url = urlsplit(text)
        if "," not in url.netloc:  # Postgres takes several hosts, each with its port
            _ = url.port
    except ValueError:
        return False
    where = {"file": url.path, "unix": url.path, "http": url.netloc, "https": url.netloc}
    return url.scheme in schemes and bool(where.get(url.scheme, url.netloc + url.path))


def in_url(host: str) -> str:
    """A host as a URL has it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def listen_address(value: str) -> str:
    """Refuse what is neither `off` nor a host with a port, 0 for any that is free."""
    if value == "off":
        return value
    try:
        url = urlsplit(f"//{value}")
        complete = url.hostname and url.port is not None and url.netloc == value
    except ValueError:
        complete = False
    if not complete or "@" in value:
        raise ValueError("must be a host and a port, such as 127.0.0.1:9080, or off")
    return value


RedisUrl = Annotated[SecretStr, url_of("redis", "rediss", "unix")]
Duration = Annotated[int, BeforeValidator(duration_ms), Field(gt=0), at_most(3650)]
Timeout = Annotated[Duration, at_most(1)]
Names = Annotated[
    tuple[str, ...],
    BeforeValidator(comma_separated),
    AfterValidator(stream_names),
    Field(min_length=1),
]
Port = Annotated[int, Field(ge=1, le=65535)]


class Settings(BaseModel):
    """All settings, named by their environment variables. Durations are milliseconds here.

    The parts of an address count only where its URL is not given: use `redis_address` and its like.
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True, extra="ignore")

    redis_url: RedisUrl = Field(
        SecretStr(""), alias="REDIS_URL", description="Redis with the streams"
    )
    redis_host: str = Field("localhost", alias="REDIS_HOST")
    redis_port: Port = Field(6379, alias="REDIS_PORT")
    redis_db: int = Field(0, ge=0, alias="REDIS_DB")
    redis_password: SecretStr = Field(SecretStr(""), alias="REDIS_PASSWORD")
    dedupe_redis_url: RedisUrl | None = Field(
        None, alias="DEDUPE_REDIS_URL", description="another Redis for the claims"
    )

    database_url: Annotated[SecretStr, url_of("postgresql", "postgres")] = Field(
        SecretStr(""), alias="DATABASE_URL", description="Postgres"
    )
    database_host: str = Field("localhost", alias="DATABASE_HOST")
    database_port: Port = Field(5432, alias="DATABASE_PORT")
    database_name: str = Field("tbot_dev", alias="DATABASE_NAME")
    database_user: str = Field("tbot", alias="DATABASE_USER")
    database_password: SecretStr = Field(SecretStr("tbot_password"), alias="DATABASE_PASSWORD")
    database_schema: Annotated[str, AfterValidator(schema_name)] = Field(
        "public", alias="DATABASE_SCHEMA", description="the schema that holds everything of ours"
    )

    influxdb_url: Annotated[str, url_of("http", "https", "file")] = Field(
        "", alias="INFLUXDB_URL", description="InfluxDB, or file:///path for a line-protocol file"
    )
    influxdb_host: str = Field("localhost", alias="INFLUXDB_HOST")
    influxdb_port: Port = Field(8086, alias="INFLUXDB_PORT")
    influxdb_token: SecretStr = Field(SecretStr("test-token"), alias="INFLUXDB_TOKEN")
    influxdb_org: str = Field("test-org", alias="INFLUXDB_ORG")
    influxdb_bucket: str = Field("test-bucket", alias="INFLUXDB_BUCKET")

    streams: Names = Field(("orders",), alias="WORKER_STREAMS", description="streams to read")
    group: str = Field(
        "order-workers", min_length=1, alias="WORKER_GROUP", description="the consumer group"
    )
    consumer: str = Field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}",
        min_length=1,
        alias="WORKER_CONSUMER",
        description="this worker's name in the group; no two workers may share one",
    )
    batch_size: int = Field(
        1000, ge=1, le=5000, alias="WORKER_BATCH_SIZE", description="entries read at once, at most"
    )
    batches_in_flight: int = Field(
        4,
        ge=1,
        le=16,
        alias="WORKER_BATCHES_IN_FLIGHT",
        description="batches of a stream under way at once",
    )
    dedupe_window_ms: Duration = Field(
        86_400_000,
        alias="WORKER_DEDUPE_WINDOW",
        description="how long a repeat of an accepted order is a duplicate",
    )
    envelope_fields: Annotated[frozenset[str], BeforeValidator(comma_separated)] = Field(
        ENVELOPE_FIELDS,
        alias="WORKER_ENVELOPE_FIELDS",
        description="fields that are not content; order_id never is",
    )
    takeover_after_ms: Duration = Field(
        30_000,
        alias="WORKER_TAKEOVER_AFTER",
        description="entries that a consumer left unacknowledged so long are taken over",
    )
    delivery_limit: int = Field(
        3,
        ge=1,
        le=1000,
        alias="WORKER_DELIVERY_LIMIT",
        description="an entry that has ended its worker so often when tried alone is rejected",
    )
    retention_ms: Duration | None = Field(
        None,
        alias="WORKER_RETENTION",
        description="settled entries older than this are trimmed from their stream; unset: kept",
    )
    redis_timeout_ms: Timeout = Field(
        2_000, alias="WORKER_REDIS_TIMEOUT", description="bound on one call to Redis"
    )
    postgres_timeout_ms: Timeout = Field(
        10_000, alias="WORKER_POSTGRES_TIMEOUT", description="bound on one transaction"
    )
    points_timeout_ms: Timeout = Field(
        2_000, alias="WORKER_POINTS_TIMEOUT", description="bound on one write of points"
    )
    shutdown_timeout_ms: Timeout = Field(
        10_000,
        alias="WORKER_SHUTDOWN_TIMEOUT",
        description="what is held after a signal may take so long to finish",
    )
    http: Annotated[str, AfterValidator(listen_address)] = Field(
        "127.0.0.1:9080",
        alias="WORKER_HTTP",
        description="where health checks, metrics and the page are served: host:port, or off",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", alias="WORKER_LOG_LEVEL"
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", alias="WORKER_LOG_FORMAT", description="auto: console on a terminal, else json"
    )

    @model_validator(mode="before")
    @classmethod
    def an_empty_variable_is_not_given(cls, given: dict[str, object]) -> dict[str, object]:
        """`VARIABLE=` in an .env file means its default."""
        return {name: value for name, value in given.items() if value != ""}

    @model_validator(mode="after")
    def a_takeover_waits_for_the_slowest_worker(self) -> Self:
        """A live worker may hold entries for the bounds of all its calls; not longer is quiet."""
        held_ms_max = self.postgres_timeout_ms + self.points_timeout_ms + 3 * self.redis_timeout_ms
        if self.takeover_after_ms <= held_ms_max:
            raise ValueError(
                f"WORKER_TAKEOVER_AFTER must exceed {held_ms_max} ms, the bounds of the calls that "
                "a live worker makes for a batch (WORKER_POSTGRES_TIMEOUT + WORKER_POINTS_TIMEOUT + 3 x "
                "WORKER_REDIS_TIMEOUT)"
            )
        return self

    @model_validator(mode="after")
    def the_model_is_content(self) -> Self:
        """A price outside the content would make different orders equal."""
        hidden = sorted(self.envelope_fields & (MODEL_FIELDS - {"order_id"}))
        if hidden:
            raise ValueError(
                f"WORKER_ENVELOPE_FIELDS must not name {', '.join(hidden)}: it is content"
            )
        return self

    @property
    def redis_address(self) -> str:
        """The URL of the Redis with the streams, password included."""
        if url := self.redis_url.get_secret_value():
            return url
        password = quote(self.redis_password.get_secret_value(), safe="")
        login = f":{password}@" if password else ""
        return f"redis://{login}{in_url(self.redis_host)}:{self.redis_port}/{self.redis_db}"

    @property
    def claims_address(self) -> str:
        """The URL of the Redis with the claims: the streams' unless DEDUPE_REDIS_URL is given."""
        return (
            self.dedupe_redis_url.get_secret_value()
            if self.dedupe_redis_url
            else self.redis_address
        )

    @property
    def database_address(self) -> str:
        """The URL of Postgres, password included."""
        if url := self.database_url.get_secret_value():
            return url
        user, password = (
            quote(part, safe="")
            for part in (self.database_user, self.database_password.get_secret_value())
        )
        name = quote(self.database_name, safe="")
        return f"postgresql://{user}:{password}@{in_url(self.database_host)}:{self.database_port}/{name}"

    @property
    def http_address(self) -> tuple[str, int] | None:
        """Host and port to listen on; None for not at all."""
        if self.http == "off":
            return None
        url = urlsplit(f"//{self.http}")
        return url.hostname or "", url.port or 0

    @property
    def influxdb_address(self) -> str:
        """The URL of InfluxDB, or of the line-protocol file."""
        return self.influxdb_url or f"http://{in_url(self.influxdb_host)}:{self.influxdb_port}"


VARIABLES = {str(field.alias): name for name, field in Settings.model_fields.items()}


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read and check all settings.

    :raises BadSettings: naming each variable that is wrong, and what it should be
    """
    given = {name: _value(environ, name) for name in VARIABLES}
    try:
        return Settings.model_validate({k: v for k, v in given.items() if v is not None})
    except ValidationError as error:
        problems = (_problem(detail["loc"], detail["msg"]) for detail in error.errors())
        raise BadSettings("; ".join(problems)) from None


def unknown_variables(environ: Mapping[str, str] = os.environ) -> dict[str, str | None]:
    """Variables that look like ours and are not, each with the one that may have been meant.

    A warning and not an error: Kubernetes adds `WORKER_SERVICE_HOST` for a service named worker.
    """
    known = VARIABLES.keys() | {f"{name}_FILE" for name in VARIABLES}
    strange = [name for name in environ if name.startswith("WORKER_") and name not in known]
    return {name: next(iter(difflib.get_close_matches(name, known, 1)), None) for name in strange}


def _value(environ: Mapping[str, str], name: str) -> str | None:
    path = environ.get(f"{name}_FILE")
    if not path:
        return environ.get(name)
    if environ.get(name):
        raise BadSettings(f"{name} and {name}_FILE are both given; give one of them")
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadSettings(f"{name}_FILE: cannot read {path} ({error.__class__.__name__})") from None


def _problem(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    name = next((str(part) for part in location if str(part) in VARIABLES), None)
    return f"{name}: {message[0].lower()}{message[1:]}" if name else message
