"""What compose.yaml, .env.example, the Dockerfile and the README promise, as far as their text shows it."""

import ast
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from tests.unit.test_rejections import NEVER, REJECTIONS, codes_of_the_source
from worker import __version__, batch, ledger
from worker.order import Malformed, parse
from worker.settings import VARIABLES, Settings, duration_ms, load

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMPOSE_TEXT = (ROOT / "compose.yaml").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")

Service = Mapping[str, Any]
COMPOSE = cast("dict[str, Any]", yaml.safe_load(COMPOSE_TEXT))
SERVICES = cast("dict[str, Service]", COMPOSE["services"])
ONE_SHOT = {"migrate"}
LONG_RUNNING = sorted(SERVICES.keys() - ONE_SHOT)

#: Where each image keeps what must outlive its container. Source: the images' own Dockerfiles.
STATE = {
    "redis": "/data",
    "postgres": "/var/lib/postgresql",
    "influxdb": "/var/lib/influxdb2",
    "grafana": "/var/lib/grafana",
}

SECRET = re.compile(r"PASSWORD|TOKEN|_URL$|AUTH")
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(:-|:\?)?([^}]*)\}")

#: What compose.yaml alone needs to know: first users, and ports of this machine.
OF_COMPOSE = {
    "INFLUXDB_USER",
    "INFLUXDB_PASSWORD",
    "GRAFANA_PASSWORD",
    "GRAFANA_PORT",
    "HTTP_PORTS",
}

#: Codes of rejections that `order.parse` cannot give, and where they stand.
LATER_CODES = {"entry_id_out_of_range": batch, "delivery_limit": batch, "not_storable": ledger}


# --- compose.yaml ---


def test_ports_are_open_to_this_machine_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == len(STATE | {"worker": "its page"})
    assert all(str(port).startswith("127.0.0.1:") for port in ports), ports


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_a_service_that_runs_on_has_a_health_check(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] in ("CMD", "CMD-SHELL")
    assert {"interval", "timeout", "retries", "start_period"} <= check.keys()


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_has_a_restart_policy_bounded_logs_and_an_init(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == ("no" if name in ONE_SHOT else "unless-stopped")
    assert {"max-size", "max-file"} <= service["logging"]["options"].keys()
    assert service["init"] is True


@pytest.mark.parametrize("name", sorted(STATE))
def test_state_is_kept_in_a_named_volume(name: str) -> None:
    mounts = [mount.split(":") for mount in SERVICES[name]["volumes"]]
    volumes = {path: volume for volume, path, *_ in mounts if not volume.startswith("./")}
    assert STATE[name] in volumes
    assert set(volumes.values()) <= COMPOSE["volumes"].keys()


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_images_are_pinned_to_a_version(name: str) -> None:
    tag = SERVICES[name]["image"].partition(":")[2]
    assert re.match(r"\d+\.\d+" if name != "postgres" else r"\d+-\w+", tag), tag


def test_redis_loses_at_most_a_second_and_evicts_nothing() -> None:
    options = dict(
        line.split(maxsplit=1)
        for line in COMPOSE["configs"]["redis"]["content"].splitlines()
        if line and not line.startswith("#")
    )
    assert options["appendonly"] == "yes"
    assert options["appendfsync"] == "everysec"
    assert options["maxmemory-policy"] == "noeviction"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_credentials_stand_in_no_service_but_as_variables_without_a_default(name: str) -> None:
    environment = SERVICES[name].get("environment", {})
    for variable, value in environment.items():
        if SECRET.search(variable) and value is not None:
            found = VARIABLE.fullmatch(value)
            assert found, variable
            assert found[2] == ":?" or found[3] == "", variable  # required, or empty


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_no_command_line_holds_a_credential(name: str) -> None:
    service = SERVICES[name]
    words = [*service.get("command", []), *service.get("healthcheck", {}).get("test", [])]
    assert not VARIABLE.search(" ".join(words))  # `$$NAME` is the container's own variable


def test_the_worker_is_given_settings_that_exist_and_every_knob() -> None:
    given = SERVICES["worker"]["environment"].keys()
    assert given <= VARIABLES.keys()
    knobs = {name for name in VARIABLES if name.startswith("WORKER_")}
    assert knobs - given == {"WORKER_CONSUMER"}  # each container names its own


def test_the_migration_is_given_the_workers_database() -> None:
    worker, migrate = (SERVICES[name]["environment"] for name in ("worker", "migrate"))
    assert migrate == {name: worker[name] for name in worker if name.startswith("DATABASE_")}


def test_the_worker_starts_after_its_servers_and_the_migration() -> None:
    conditions = {n: d["condition"] for n, d in SERVICES["worker"]["depends_on"].items()}
    healthy = dict.fromkeys(STATE.keys() - {"grafana"}, "service_healthy")
    assert conditions == {**healthy, "migrate": "service_completed_successfully"}


def test_the_worker_is_not_killed_before_its_own_bound() -> None:
    grace_ms = cast("int", duration_ms(SERVICES["worker"]["stop_grace_period"]))
    assert grace_ms > 2 * load({}).shutdown_timeout_ms


def test_the_workers_health_check_is_in_the_image() -> None:
    command = SERVICES["worker"]["healthcheck"]["test"]
    assert command[:3] == ["CMD", "python", "-m"]
    module = Path(*command[3].split(".")).with_suffix(".py")
    assert (ROOT / module).is_file()
    assert module.parts[0] in {source for source, _ in copied()}


def test_files_that_compose_mounts_are_there_and_cannot_be_changed_from_within() -> None:
    mounts = [m for service in SERVICES.values() for m in service.get("volumes", []) if m[0] == "."]
    assert mounts
    for source, _, mode in (mount.split(":") for mount in mounts):
        assert (ROOT / source).is_dir()
        assert mode == "ro"


# --- .env.example ---


def example() -> dict[str, str]:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def taken() -> set[str]:
    """Every variable that compose.yaml takes from its surroundings."""
    passed = {
        name
        for service in SERVICES.values()
        for name, value in service.get("environment", {}).items()
        if value is None
    }
    return passed | {found[1] for found in VARIABLE.finditer(COMPOSE_TEXT)}


def test_the_example_has_every_variable_that_compose_takes_and_no_other() -> None:
    assert example().keys() == taken()
    assert taken() - VARIABLES.keys() == OF_COMPOSE


def test_the_example_is_what_a_worker_takes_without_any_setting() -> None:
    ours = {name: value for name, value in example().items() if name not in OF_COMPOSE}
    assert settings_without_consumer(ours) == settings_without_consumer({})


def test_the_defaults_in_compose_are_those_of_the_example() -> None:
    for found in VARIABLE.finditer(COMPOSE_TEXT):
        if found[2] == ":-":
            assert found[3] == example()[found[1]], found[1]


def settings_without_consumer(environ: Mapping[str, str]) -> dict[str, object]:
    return load(environ).model_dump(exclude={"consumer"})


# --- the image ---


def instructions(name: str) -> list[str]:
    """The arguments of every instruction of a kind in the last stage."""
    lines = re.sub(r"\\\n\s*", "", DOCKERFILE).splitlines()
    last = max(n for n, line in enumerate(lines) if line.startswith("FROM "))
    return [line.partition(" ")[2] for line in lines[last:] if line.startswith(f"{name} ")]


def copied() -> list[tuple[str, str]]:
    """What the image takes from the checkout: sources and targets."""
    pairs = [text.split() for text in instructions("COPY") if not text.startswith("--from=")]
    return [(source, target) for source, target in pairs]


def test_the_image_runs_the_worker_as_nobody_special() -> None:
    assert instructions("ENTRYPOINT") == ['["python", "-m", "worker"]']
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    user = instructions("USER")[-1].partition(":")[0]
    assert int(user) > 0


def test_the_image_holds_locked_dependencies_and_no_tools_to_build_with() -> None:
    assert "--require-hashes --requirement requirements.lock" in DOCKERFILE
    assert "--only-binary :all:" in DOCKERFILE
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", instructions("FROM")[0])
    assert not re.search(r"apt-get|pip install|curl|wget|gcc", "\n".join(instructions("RUN")))


def test_every_dependency_is_locked_with_hashes() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", lock, flags=re.MULTILINE).strip())
    assert len(entries) > 10
    for entry in entries:
        assert re.match(r"[\w.-]+==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry


def test_the_build_sees_what_it_copies_and_little_else() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    seen = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert "*" in ignored
    assert seen == {source for source, _ in copied()} | {"requirements.lock"}
    assert all((ROOT / name).exists() for name in seen)


def test_the_image_carries_the_packages_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"VERSION={project['version']}" in instructions("ARG")
    assert SERVICES["worker"]["image"] == f"{project['name']}:{project['version']}"
    assert project["version"] == __version__


# --- the README ---


def table(heading: str) -> list[list[str]]:
    """The rows of the table under a heading, as cells; without its first two lines."""
    section = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_settings_table_has_every_variable_in_the_order_of_the_settings() -> None:
    assert [row[0].strip("` ") for row in table("Settings")] == list(VARIABLES)


@pytest.mark.parametrize("row", table("Settings"), ids=lambda row: row[0].strip("` "))
def test_a_default_in_the_settings_table_is_the_settings_own(row: list[str]) -> None:
    variable, default, meaning = row[0].strip("` "), row[1], row[2]
    field = VARIABLES[variable]
    assert meaning
    if variable == "WORKER_CONSUMER":  # differs from process to process
        assert default == "host name and process id"
        return
    written = default.strip("`")
    assert getattr(load({variable: written}), field) == getattr(load({}), field)
    assert (written == "") == (text_of(Settings.model_fields[field].default) in ("", None))


def text_of(default: object) -> object:
    secret = getattr(default, "get_secret_value", None)
    return secret() if secret else default


def test_the_rejections_table_has_every_code_and_no_other() -> None:
    listed = [code for codes, _ in rejections() for code in codes]
    assert len(listed) == len(set(listed))
    assert set(listed) == (codes_of_the_source() - NEVER) | LATER_CODES.keys()


@pytest.mark.parametrize("code", sorted(LATER_CODES))
def test_a_code_that_parsing_cannot_give_stands_in_the_source(code: str) -> None:
    tree = ast.parse(Path(str(LATER_CODES[code].__file__)).read_text(encoding="utf-8"))
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    sentence = next(sentence for codes, sentence in rejections() if code in codes)
    assert {code, sentence.removesuffix("…").strip()} <= {str(text).strip() for text in texts}


def test_the_sentence_of_a_rejection_is_one_that_the_worker_gives() -> None:
    given = dict[str, list[str]]()
    for case in REJECTIONS:
        rejected = parse(case.fields)
        if isinstance(rejected, Malformed):
            given.setdefault(rejected.code, []).append(rejected.reason)
    for codes, sentence in rejections():
        pattern = ".+".join(map(re.escape, sentence.split("…")))
        for code in set(codes) - LATER_CODES.keys():
            assert any(re.fullmatch(pattern, reason) for reason in given[code]), code


def rejections() -> Iterator[tuple[list[str], str]]:
    """Each row of the table: its codes, and the sentence, in which `…` stands for anything."""
    for codes, sentence in table("Rejections"):
        yield re.findall(r"`(\w+)`", codes), sentence


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_links_lead_to_files_that_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert ((ROOT / page).parent / target).exists(), target
