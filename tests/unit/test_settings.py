"""Settings: what each variable does, and the one message that names those that are wrong."""

import os
import socket
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from worker import errors
from worker.__main__ import main
from worker.fields import MODEL_FIELDS
from worker.order import ENVELOPE_FIELDS
from worker.settings import VARIABLES, Settings, load, unknown_variables


def refused(**environ: str) -> str:
    """The message that these variables are refused with."""
    with pytest.raises(errors.BadSettings) as caught:
        load(environ)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.__cause__ is None
    return message


# --- the variables ---


def test_the_defaults_are_those_of_compose() -> None:
    settings = load({})
    assert settings.redis_address == "redis://localhost:6379/0"
    assert settings.claims_address == settings.redis_address
    assert settings.database_address == "postgresql://tbot:tbot_password@localhost:5432/tbot_dev"
    assert settings.database_schema == "public"
    assert settings.influxdb_address == "http://localhost:8086"
    assert settings.influxdb_token.get_secret_value() == "test-token"
    assert (settings.influxdb_org, settings.influxdb_bucket) == ("test-org", "test-bucket")
    assert settings.streams == ("orders",)
    assert settings.group == "order-workers"
    assert settings.dedupe_window_ms == 24 * 3_600_000
    assert settings.envelope_fields == ENVELOPE_FIELDS


def test_a_consumer_is_named_after_its_host_and_process() -> None:
    assert load({}).consumer == f"{socket.gethostname()}-{os.getpid()}"


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("REDIS_HOST", "cache.internal", "cache.internal"),
        ("REDIS_PORT", "6380", 6380),
        ("REDIS_DB", "15", 15),
        ("DATABASE_HOST", "db.internal", "db.internal"),
        ("DATABASE_PORT", "65535", 65535),
        ("DATABASE_NAME", "orders", "orders"),
        ("DATABASE_USER", "ordergate", "ordergate"),
        ("DATABASE_SCHEMA", "orders_2", "orders_2"),
        ("INFLUXDB_URL", "https://influx.internal", "https://influx.internal"),
        ("INFLUXDB_HOST", "influx.internal", "influx.internal"),
        ("INFLUXDB_PORT", "1", 1),
        ("INFLUXDB_ORG", "desk", "desk"),
        ("INFLUXDB_BUCKET", "orders", "orders"),
        ("WORKER_STREAMS", "a", ("a",)),
        ("WORKER_STREAMS", "a, b,c ,", ("a", "b", "c")),
        ("WORKER_GROUP", "workers", "workers"),
        ("WORKER_CONSUMER", "worker-1", "worker-1"),
        ("WORKER_BATCH_SIZE", "1", 1),
        ("WORKER_BATCH_SIZE", "5000", 5000),
        ("WORKER_BATCHES_IN_FLIGHT", "16", 16),
        ("WORKER_DEDUPE_WINDOW", "500ms", 500),
        ("WORKER_DEDUPE_WINDOW", "60s", 60_000),
        ("WORKER_DEDUPE_WINDOW", "10m", 600_000),
        ("WORKER_DEDUPE_WINDOW", "24h", 86_400_000),
        ("WORKER_DEDUPE_WINDOW", "7d", 604_800_000),
        ("WORKER_DEDUPE_WINDOW", "1ms", 1),
        ("WORKER_DEDUPE_WINDOW", "3650d", 315_360_000_000),
        ("WORKER_DEDUPE_WINDOW", " 5m ", 300_000),
        ("WORKER_ENVELOPE_FIELDS", "order_id, nonce", {"order_id", "nonce"}),
        ("WORKER_TAKEOVER_AFTER", "2m", 120_000),
        ("WORKER_REDIS_TIMEOUT", "1s", 1_000),
        ("WORKER_POSTGRES_TIMEOUT", "5s", 5_000),
        ("WORKER_POINTS_TIMEOUT", "250ms", 250),
        ("WORKER_SHUTDOWN_TIMEOUT", "1m", 60_000),
        ("WORKER_SHUTDOWN_TIMEOUT", "24h", 86_400_000),
        ("WORKER_LOG_LEVEL", "debug", "debug"),
        ("WORKER_LOG_FORMAT", "json", "json"),
    ],
)
def test_a_variable_sets_its_field(variable: str, text: str, value: object) -> None:
    assert getattr(load({variable: text}), VARIABLES[variable]) == value


@pytest.mark.parametrize("variable", VARIABLES)
def test_an_empty_variable_means_its_default(variable: str) -> None:
    assert load({variable: ""}) == load({})


def test_variables_of_others_are_left_alone() -> None:
    assert load({"PATH": "/bin", "REDIS": "x", "WORKER_SERVICE_HOST": "10.0.0.1"}) == load({})


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load({}).group = "others"  # pyright: ignore[reportAttributeAccessIssue]


# --- addresses ---


def test_an_address_is_made_of_its_parts() -> None:
    settings = load(
        {
            "REDIS_HOST": "cache",
            "REDIS_PORT": "1",
            "REDIS_DB": "2",
            "REDIS_PASSWORD": "p@ss/word?#:%",
            "DATABASE_HOST": "db",
            "DATABASE_PORT": "3",
            "DATABASE_NAME": "my db",
            "DATABASE_USER": "me@home",
            "DATABASE_PASSWORD": "p@ss/word?#:%",
            "INFLUXDB_HOST": "influx",
            "INFLUXDB_PORT": "4",
        }
    )
    redis, database = urlsplit(settings.redis_address), urlsplit(settings.database_address)
    assert (redis.scheme, redis.hostname, redis.port, redis.path) == ("redis", "cache", 1, "/2")
    assert unquote(redis.password or "") == "p@ss/word?#:%"
    assert (database.scheme, database.hostname, database.port) == ("postgresql", "db", 3)
    assert unquote(database.username or "") == "me@home"
    assert unquote(database.password or "") == "p@ss/word?#:%"
    assert unquote(database.path) == "/my db"
    assert settings.influxdb_address == "http://influx:4"


@pytest.mark.parametrize("server", ["redis", "database", "influxdb"])
def test_a_url_goes_before_its_parts(server: str) -> None:
    urls = {
        "redis": "rediss://:secret@other:1/9",
        "database": "postgres://a:secret@other/b",
        "influxdb": "http://other:9",
    }
    name = server.upper()
    settings = load({f"{name}_URL": urls[server], f"{name}_HOST": "ignored", f"{name}_PORT": "7"})
    assert getattr(settings, f"{server}_address") == urls[server]


def test_claims_may_be_on_another_redis() -> None:
    settings = load({"REDIS_URL": "redis://a", "DEDUPE_REDIS_URL": "redis://:secret@b"})
    assert settings.redis_address == "redis://a"
    assert settings.claims_address == "redis://:secret@b"


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("REDIS_URL", "redis://localhost"),
        ("REDIS_URL", "rediss://user:secret@cache.internal:6380/3?ssl_cert_reqs=none"),
        ("REDIS_URL", "unix:///run/redis.sock?db=1"),
        ("DEDUPE_REDIS_URL", "redis://[::1]:6379"),
        ("DATABASE_URL", "postgresql://tbot@/tbot_dev?host=/run/postgresql"),
        ("DATABASE_URL", "postgres://a:secret@h1:5432,h2:5433/db?target_session_attrs=primary"),
        ("INFLUXDB_URL", "http://localhost:8086"),
        ("INFLUXDB_URL", "https://influx.internal/path"),
        ("INFLUXDB_URL", "file:///var/lib/ordergate/points.lp"),
    ],
)
def test_a_url_may_take_any_form_that_its_client_knows(variable: str, url: str) -> None:
    settings = load({variable: url})
    assert url in {
        settings.redis_address,
        settings.claims_address,
        settings.database_address,
        settings.influxdb_address,
    }


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        (variable, url)
        for variable, urls in {
            "REDIS_URL": ["hunter2", "localhost:6379", "http://:hunter2@h", "redis://:hunter2@h:port"],
            "DEDUPE_REDIS_URL": ["hunter2", "//h:6379", "redis://:hunter2@h:99999"],
            "DATABASE_URL": ["hunter2", "localhost:5432", "mysql://u:hunter2@h/db"],
            "INFLUXDB_URL": ["hunter2", "localhost:8086", "http://", "ftp://h", "file://", "http://h:port"],
        }.items()
        for url in urls
    ],
)  # fmt: skip
def test_a_url_that_its_client_will_never_know_is_refused_by_name_and_not_shown(
    variable: str, url: str
) -> None:
    message = refused(**{variable: url})
    assert message.startswith(f"{variable}: ")
    assert "hunter2" not in message


@pytest.mark.parametrize("server", ["redis", "database", "influxdb"])
def test_a_host_may_be_an_ipv6_address(server: str) -> None:
    url: str = getattr(load({f"{server.upper()}_HOST": "::1"}), f"{server}_address")
    address = urlsplit(url)
    assert address.hostname == "::1"
    assert address.port == getattr(load({}), f"{server}_port")


# --- secrets ---

SECRETS = ["REDIS_PASSWORD", "DATABASE_PASSWORD", "INFLUXDB_TOKEN"]
SECRET_URLS = {
    "REDIS_URL": "redis://:hunter2@h",
    "DEDUPE_REDIS_URL": "redis://:hunter2@h",
    "DATABASE_URL": "postgresql://u:hunter2@h/db",
}


@pytest.mark.parametrize(
    ("variable", "text"), [*((name, "hunter2") for name in SECRETS), *SECRET_URLS.items()]
)
def test_a_secret_is_in_no_repr_and_in_no_message(variable: str, text: str) -> None:
    settings = load({variable: text})
    assert "hunter2" not in f"{settings} {settings!r} {settings.model_dump()}"
    assert "hunter2" not in refused(**{variable: text, "REDIS_PORT": "x", "WORKER_STREAMS": ","})
    assert "hunter2" not in refused(**{variable: text, "WORKER_TAKEOVER_AFTER": "1s"})


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_variable_may_be_given_as_a_file(variable: str, tmp_path: Path) -> None:
    texts = {**SECRET_URLS, "INFLUXDB_URL": "http://influx:9", "WORKER_LOG_LEVEL": "error",
             "WORKER_LOG_FORMAT": "json", "WORKER_TAKEOVER_AFTER": "60s",
             "WORKER_RETENTION": "60s", "WORKER_HTTP": "off"}  # fmt: skip
    field = VARIABLES[variable]
    is_number = isinstance(getattr(load({}), field), int)
    text = texts.get(variable, ("3s" if field.endswith("_ms") else "7") if is_number else "name")
    file = tmp_path / "secret"
    file.write_text(f"{text}\n")
    assert load({f"{variable}_FILE": str(file)}) == load({variable: text}) != load({})


def test_a_file_goes_with_an_empty_variable(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("hunter2\n")
    settings = load({"REDIS_PASSWORD": "", "REDIS_PASSWORD_FILE": str(file)})
    assert settings.redis_password.get_secret_value() == "hunter2"
    assert load({"REDIS_HOST": "cache", "REDIS_HOST_FILE": ""}).redis_host == "cache"


def test_a_variable_and_its_file_are_one_too_many(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("hunter2")
    message = refused(DATABASE_PASSWORD="hunter3", DATABASE_PASSWORD_FILE=str(file))
    assert "DATABASE_PASSWORD and DATABASE_PASSWORD_FILE" in message
    assert "hunter" not in message


def test_a_file_that_cannot_be_read_is_named_with_its_variable(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    for path in (tmp_path / "missing", tmp_path, binary):
        message = refused(DATABASE_PASSWORD_FILE=str(path))
        assert message.startswith("DATABASE_PASSWORD_FILE: ")
        assert str(path) in message


# --- what is wrong ---


@pytest.mark.parametrize(
    "duration",
    [
        "60",
        "1.5h",
        "-1s",
        "+1s",
        "1 h",
        "s",
        "1w",
        "1H",
        "1h30m",
        "1e3s",
        "٣s",
        "1" * 13 + "s",
        "day",
    ],
)
@pytest.mark.parametrize("variable", ["WORKER_DEDUPE_WINDOW", "WORKER_REDIS_TIMEOUT"])
def test_what_is_no_duration_is_refused_with_an_example(variable: str, duration: str) -> None:
    message = refused(**{variable: duration})
    assert message == f"{variable}: must be a duration such as 500ms, 60s, 10m, 24h or 7d"


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("REDIS_PORT", "six"),
        ("REDIS_PORT", "0"),
        ("REDIS_PORT", "65536"),
        ("REDIS_PORT", "6379.5"),
        ("REDIS_DB", "-1"),
        ("DATABASE_PORT", "-5432"),
        ("DATABASE_SCHEMA", "Orders"),
        ("DATABASE_SCHEMA", 'a"; DROP SCHEMA public; --'),
        ("DATABASE_SCHEMA", "a,b"),
        ("DATABASE_SCHEMA", "1a"),
        ("DATABASE_SCHEMA", "x" * 64),
        ("INFLUXDB_PORT", "8086/tcp"),
        ("WORKER_STREAMS", ","),
        ("WORKER_STREAMS", " , "),
        ("WORKER_STREAMS", "a,b,a"),
        ("WORKER_STREAMS", "a,{b}"),
        ("WORKER_STREAMS", "a}"),
        (
            "WORKER_STREAMS",
            "a\\",
        ),  # a tag of InfluxDB can neither end in a backslash nor hold a newline
        ("WORKER_STREAMS", "a\nb"),
        ("WORKER_BATCH_SIZE", "0"),
        ("WORKER_BATCH_SIZE", "5001"),
        ("WORKER_BATCH_SIZE", "many"),
        ("WORKER_BATCHES_IN_FLIGHT", "17"),
        ("WORKER_DEDUPE_WINDOW", "0s"),
        ("WORKER_DEDUPE_WINDOW", "3651d"),
        ("WORKER_POSTGRES_TIMEOUT", "0ms"),
        ("WORKER_POSTGRES_TIMEOUT", "25h"),
        ("WORKER_REDIS_TIMEOUT", "2d"),
        ("WORKER_POINTS_TIMEOUT", "999999999999d"),
        ("WORKER_SHUTDOWN_TIMEOUT", "2d"),
        ("WORKER_TAKEOVER_AFTER", "3651d"),
        ("WORKER_RETENTION", "999999999999d"),
        ("WORKER_HTTP", "9080"),
        ("WORKER_HTTP", "localhost"),
        ("WORKER_HTTP", ":9080"),
        ("WORKER_HTTP", "localhost:"),
        ("WORKER_HTTP", "localhost:http"),
        ("WORKER_HTTP", "localhost:70000"),
        ("WORKER_HTTP", "localhost:9080/page"),
        ("WORKER_HTTP", "http://localhost:9080"),
        ("WORKER_HTTP", "me@localhost:9080"),
        ("WORKER_HTTP", "OFF"),
        ("WORKER_LOG_LEVEL", "verbose"),
        ("WORKER_LOG_FORMAT", "xml"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(variable: str, text: str) -> None:
    assert refused(**{variable: text}).startswith(f"{variable}: ")


def test_what_is_too_long_is_told_as_it_is_written() -> None:
    assert refused(WORKER_RETENTION="4000d") == "WORKER_RETENTION: must be at most 3650d"
    assert refused(WORKER_POINTS_TIMEOUT="48h") == "WORKER_POINTS_TIMEOUT: must be at most 1d"


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("", ("127.0.0.1", 9080)),
        ("10.1.2.3:80", ("10.1.2.3", 80)),
        ("[::1]:9081", ("::1", 9081)),
        ("localhost:0", ("localhost", 0)),
        ("off", None),
    ],
)
def test_where_http_is_served(given: str, address: tuple[str, int] | None) -> None:
    assert load({"WORKER_HTTP": given}).http_address == address


def test_one_message_names_all_that_is_wrong() -> None:
    message = refused(REDIS_PORT="six", WORKER_BATCH_SIZE="0", WORKER_DEDUPE_WINDOW="1 day")
    assert [part.partition(":")[0] for part in message.split("; ")] == [
        "REDIS_PORT",
        "WORKER_BATCH_SIZE",
        "WORKER_DEDUPE_WINDOW",
    ]


@pytest.mark.parametrize("name", sorted(MODEL_FIELDS - {"order_id"}))
def test_a_field_of_the_model_cannot_be_envelope(name: str) -> None:
    message = refused(WORKER_ENVELOPE_FIELDS=f"order_id,{name}")
    assert "WORKER_ENVELOPE_FIELDS" in message
    assert name in message


def test_the_order_id_may_be_named_as_envelope_or_not() -> None:
    assert load({"WORKER_ENVELOPE_FIELDS": "order_id"}).envelope_fields == {"order_id"}
    assert load({"WORKER_ENVELOPE_FIELDS": ","}).envelope_fields == frozenset()


@pytest.mark.parametrize("takeover", ["18s", "17999ms", "1ms"])
def test_a_takeover_must_wait_for_the_slowest_live_worker(takeover: str) -> None:
    message = refused(WORKER_TAKEOVER_AFTER=takeover)
    assert message.startswith("WORKER_TAKEOVER_AFTER must exceed 18000 ms")
    for name in ("WORKER_POSTGRES_TIMEOUT", "WORKER_POINTS_TIMEOUT", "WORKER_REDIS_TIMEOUT"):
        assert name in message


def test_a_takeover_may_come_sooner_where_the_bounds_are_shorter() -> None:
    environ = {
        "WORKER_POSTGRES_TIMEOUT": "1s",
        "WORKER_POINTS_TIMEOUT": "500ms",
        "WORKER_REDIS_TIMEOUT": "100ms",
    }
    assert load({**environ, "WORKER_TAKEOVER_AFTER": "1801ms"}).takeover_after_ms == 1801
    assert "1800 ms" in refused(**environ, WORKER_TAKEOVER_AFTER="1800ms")


def test_a_longer_bound_asks_for_a_later_takeover() -> None:
    assert "WORKER_TAKEOVER_AFTER must exceed 38000 ms" in refused(WORKER_POSTGRES_TIMEOUT="30s")


@pytest.mark.parametrize("command", [[], ["--drain"], ["migrate"]])
def test_a_command_with_bad_settings_says_so_in_one_line_and_exits_2(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_PORT", "six")
    assert main(command) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("ordergate: REDIS_PORT: ")
    assert (printed.err.count("\n"), printed.out) == (1, "")


# --- misspelt variables ---


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("WORKER_DEDUP_WINDOW", "WORKER_DEDUPE_WINDOW"),
        ("WORKER_STREAM", "WORKER_STREAMS"),
        ("WORKER_BATCHSIZE", "WORKER_BATCH_SIZE"),
        ("WORKER_LOGLEVEL", "WORKER_LOG_LEVEL"),
        ("WORKER_GROUP_FIL", "WORKER_GROUP_FILE"),
        ("WORKER_QQQQQQQQQQQQQQQQQQQQQQQQQQQ", None),
    ],
)
def test_an_unknown_variable_is_told_with_the_one_that_was_meant(
    misspelt: str, meant: str | None
) -> None:
    assert unknown_variables({misspelt: "1"}) == {misspelt: meant}


def test_known_variables_and_those_of_others_are_not_unknown() -> None:
    known = dict.fromkeys(VARIABLES, "1") | {f"{name}_FILE": "1" for name in VARIABLES}
    assert unknown_variables({**known, "PATH": "/bin", "worker_streams": "a"}) == {}


def test_every_field_is_named_by_its_variable() -> None:
    assert len(VARIABLES) == len(Settings.model_fields)
    assert all(name.isupper() for name in VARIABLES)
