"""A real InfluxDB for the tests.

InfluxDB has no wheel, so this finds one, in this order: the server that INFLUXDB_URL or
INFLUXDB_HOST names; `influxd` 2.x on PATH; the engine 1.6.7 from Debian's and Ubuntu's packages.
The latter two are servers of our own, on 127.0.0.1, which the tests may stop, kill and pause.

The packages are unpacked into `.services/`: nothing is installed, and no root is needed. Engine
1.6.7 is older than `/api/v2/write` and its tokens: nginx stands before it, gives writes their old
address and checks the token. Bodies and replies, gzip and errors included, pass it unchanged.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import urllib3

from tests.packages import PackagesUnavailable, printed, unpacked
from worker import guardian

HOST = "127.0.0.1"
START_S_MAX = 60.0  #: seconds until a server answers; recovery after a kill is part of it
PATIENCE_S = 5.0  #: seconds a server has to stop by itself before it is killed
STOP_S_MAX = 10.0  #: seconds until every process of a stopped server is gone
ANSWER_S_MAX = 120.0  #: seconds for one request of ours; some ask for 100,000 points
OTHERWISE = "put influxd 2.x on PATH, or name a server in INFLUXDB_URL"

INFLUXDB_CONF = """
reporting-disabled = true
bind-address = "127.0.0.1:0"
[meta]
dir = "{directory}/data/meta"
[data]
dir = "{directory}/data/data"
wal-dir = "{directory}/data/wal"
query-log-enabled = false
cache-max-memory-size = "256m"
max-series-per-database = 0
max-values-per-tag = 0
[monitor]
store-enabled = false
[http]
bind-address = "127.0.0.1:0"
unix-socket-enabled = true
bind-socket = "{directory}/influxd.sock"
log-enabled = false
[continuous_queries]
enabled = false
"""

# One process, so that there is one to stop. `us` is InfluxDB 2's name for what 1 calls `u`.
NGINX_CONF = """
daemon off;
master_process off;
{user}
pid {directory}/nginx/pid;
error_log stderr warn;
events {{}}
http {{
    access_log off;
    default_type application/json;
    client_max_body_size 0;
    client_body_temp_path {directory}/nginx/body;
    proxy_temp_path {directory}/nginx/proxy;
    fastcgi_temp_path {directory}/nginx/fastcgi;
    uwsgi_temp_path {directory}/nginx/uwsgi;
    scgi_temp_path {directory}/nginx/scgi;
    upstream influxd {{ server unix:{directory}/influxd.sock; }}
    map $arg_precision $precision {{ default $arg_precision; us u; }}
    server {{
        listen {host}:{port};
        if ($http_authorization != "Token {token}") {{
            return 401 '{{"code":"unauthorized","message":"unauthorized access"}}';
        }}
        location = /api/v2/write {{
            proxy_pass http://influxd/write?db=$arg_bucket&precision=$precision;
        }}
        location = /query {{ proxy_pass http://influxd; }}
        location = /ping {{ proxy_pass http://influxd; }}
    }}
}}
"""


class InfluxUnavailable(Exception):
    """No InfluxDB can be had here; the message says why, and what to do about it."""


class InfluxServer:
    """One InfluxDB: the environment's, or one of our own on 127.0.0.1.

    Our own keeps its port and data from `start` to `start`; its files go with `close`. Not
    thread-safe: clients in other threads are served, `start` and its like belong to one.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        """Find a server; start nothing yet.

        :param environ: may name a server; in an empty one it is always one of our own
        :raises InfluxUnavailable: none is given and none can be had
        """
        given = _given_url(environ)
        environment: Mapping[str, str] = environ if given else {}
        self.token = environment.get("INFLUXDB_TOKEN", "test-token")
        self.org = environment.get("INFLUXDB_ORG", "test-org")
        self.is_own = given is None
        self._processes: list[_Process] = []
        if given:
            self.url = given
        else:
            port = _free_port()
            self.url = f"http://{HOST}:{port}"
            self._files = tempfile.TemporaryDirectory(prefix="influxdb-")
            self._processes = _own_processes(Path(self._files.name), port, self.token)

    def start(self) -> None:
        """Start our own server, or find the given one, and wait until it answers.

        :raises InfluxUnavailable: no answer within START_S_MAX seconds; nothing is left running
        """
        try:
            for process in self._processes:
                process.start()
            self._wait_until_it_answers()
            if self.is_own and self._major_version() == 2:
                self._set_up()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop our own server as an operator would; nothing to do for a given one."""
        for process in self._processes:
            process.stop()

    def kill(self) -> None:
        """Kill our own server at once; `start` recovers what it had acknowledged."""
        self._signal(signal.SIGKILL)
        self.stop()

    def pause(self) -> None:
        """Halt our own server: it accepts connections and answers nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on where it was."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop our own server and remove its files; leave a given one alone."""
        self.stop()
        if self.is_own:
            self._files.cleanup()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log_tail(self, lines: int = 40) -> str:
        """Give the last lines of each process's log, which spans every start."""
        return "\n".join(process.log_tail(lines) for process in self._processes)

    def create_bucket(self, name: str) -> None:
        """Make a bucket that keeps its points for ever.

        :raises RuntimeError: refused; 2.x also refuses a name that is taken
        """
        if self._major_version() == 1:
            self._influxql(f"CREATE DATABASE {_quoted(name)}")
            self._write_first_point(name)
            return
        org: str = self._call("GET", "/api/v2/orgs", {"org": self.org})["orgs"][0]["id"]
        body: dict[str, object] = {"orgID": org, "name": name, "retentionRules": []}
        self._call("POST", "/api/v2/buckets", body=body)

    def drop_bucket(self, name: str) -> None:
        """Remove a bucket and its points.

        :raises RuntimeError: refused; 2.x also refuses a name that it does not know
        """
        if self._major_version() == 1:
            self._influxql(f"DROP DATABASE {_quoted(name)}")
            return
        found = self._call("GET", "/api/v2/buckets", {"org": self.org, "name": name})
        self._call("DELETE", f"/api/v2/buckets/{found['buckets'][0]['id']}")

    def query(self, influxql: str, bucket: str) -> list[dict[str, object]]:
        """Run one InfluxQL query; one dict for each row, the tags of a GROUP BY included.

        Integers come back exact, `time` as integer nanoseconds.

        :raises RuntimeError: the query or the bucket is refused
        """
        rows: list[dict[str, object]] = []
        for series in self._influxql(influxql, bucket).get("series", []):
            tags: dict[str, object] = series.get("tags", {})
            columns: list[str] = series["columns"]
            rows += [
                tags | dict(zip(columns, row, strict=True)) for row in series.get("values", [])
            ]
        return rows

    def _signal(self, number: signal.Signals) -> None:
        if not self.is_own:
            raise InfluxUnavailable(f"{self.url} is not ours to stop: unset INFLUXDB_URL and _HOST")
        for process in self._processes:
            process.signal(number)

    def _write_first_point(self, bucket: str) -> None:
        """Spare the tests a fault of 1.6.7: of first writes at once to a new shard, all are answered 204,
        and the points of some are not seen before the server's next start."""
        parameters = urlencode({"bucket": bucket})
        reply = urllib3.request(
            "POST",
            f"{self.url}/api/v2/write?{parameters}",
            body=b"first_point value=1",
            headers={"Authorization": f"Token {self.token}"},
            timeout=ANSWER_S_MAX,
            retries=False,
        )
        if reply.status >= 300:
            raise RuntimeError(f"write to {bucket}: {reply.status} {reply.data.decode()}")

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_S_MAX
        while not self._answers():
            if time.monotonic() > deadline or not all(p.runs() for p in self._processes):
                raise InfluxUnavailable(f"no answer from {self.url}\n{self.log_tail(10)}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            return self._send("GET", "/ping").status in (200, 204)
        except urllib3.exceptions.HTTPError:
            return False

    def _set_up(self) -> None:
        """Make the user, org and token of a new InfluxDB 2; nothing to do where that is done."""
        if self._call("GET", "/api/v2/setup")["allowed"]:
            names = {"username": "tests", "password": "test-password", "bucket": "unused"}
            self._call("POST", "/api/v2/setup", body=names | {"org": self.org, "token": self.token})

    def _major_version(self) -> int:
        version = self._send("GET", "/ping").headers.get("X-Influxdb-Version", "")
        major = version.removeprefix("v").partition(".")[0]
        if major not in ("1", "2"):
            raise InfluxUnavailable(f"tests need InfluxDB 1.8 or 2.x; {self.url} is {version!r}")
        return int(major)

    def _influxql(self, statement: str, bucket: str = "") -> dict[str, Any]:
        """Run one statement. InfluxDB 2 finds a bucket by its name, without a DBRP mapping of ours.

        Source: https://docs.influxdata.com/influxdb/v2/query-data/influxql/dbrp/
        """
        parameters = {"q": statement, "db": bucket, "epoch": "ns"}
        result = self._call("POST", "/query", parameters)["results"][0]
        if "error" in result:
            raise RuntimeError(f"{statement}: {result['error']}")
        return result

    def _call(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, str] | None = None,
        body: object = None,
    ) -> dict[str, Any]:
        reply = self._send(method, path, parameters, body)
        if reply.status >= 300:
            raise RuntimeError(f"{method} {path}: {reply.status} {reply.data.decode()}")
        return json.loads(reply.data or b"{}")

    def _send(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, str] | None = None,
        body: object = None,
    ) -> urllib3.BaseHTTPResponse:
        return urllib3.request(
            method,
            f"{self.url}{path}?{urlencode(parameters or {})}",
            json=body,
            headers={"Authorization": f"Token {self.token}"},
            timeout=ANSWER_S_MAX,
            retries=False,
        )


class _Process:
    """One process of our own server, and the guardian that does not let it outlive us."""

    def __init__(self, log: Path, command: list[str]) -> None:
        self._log = log
        self._command = command
        self._guardian: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.runs():
            return
        how = [str(int(signal.SIGTERM)), str(PATIENCE_S), "{}"]
        with self._log.open("ab") as log:
            self._guardian = subprocess.Popen(
                [sys.executable, "-I", "-S", guardian.__file__, *how, *self._command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the owner's terminal reaches the owner alone
            )

    def runs(self) -> bool:
        return self._guardian is not None and self._guardian.poll() is None

    def signal(self, number: signal.Signals) -> None:
        if self._guardian is not None and self.runs():
            guardian.signal_server(self._guardian.pid, number)

    def stop(self) -> None:
        if self._guardian is not None and self._guardian.stdin is not None:
            self._guardian.stdin.close()
            self._guardian.wait(STOP_S_MAX)

    def log_tail(self, lines: int) -> str:
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


def _given_url(environment: Mapping[str, str]) -> str | None:
    """Give the address in the environment, if there is one; a file for points is not a server."""
    url = environment.get("INFLUXDB_URL", "")
    if url.startswith("http"):
        return url.rstrip("/")
    host = environment.get("INFLUXDB_HOST")
    return f"http://{host}:{environment.get('INFLUXDB_PORT', '8086')}" if host else None


def _free_port() -> int:
    """Choose a port that nobody listens on, below those the kernel gives to clients.

    It must stay free while our server is stopped. Parallel test runs choose at random.
    """
    for _ in range(100):
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) != 0:
                return port
    raise InfluxUnavailable(f"no free port on {HOST}")


def _quoted(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _own_processes(directory: Path, port: int, token: str) -> list[_Process]:
    on_path = shutil.which("influxd")
    if on_path and "InfluxDB v2" in printed([on_path, "version"]):
        return [_Process(directory / "influxd.log", _influxd_2(on_path, directory, port))]
    influxd, nginx = _packaged_programs()
    _write_configuration(directory, port, token)
    commands = {
        "influxd": [str(influxd), "-config", f"{directory}/influxdb.conf"],
        "nginx": [str(nginx), "-p", str(directory), "-c", f"{directory}/nginx.conf"],
    }
    return [_Process(directory / f"{name}.log", command) for name, command in commands.items()]


def _influxd_2(influxd: str, directory: Path, port: int) -> list[str]:
    return [
        influxd,
        f"--bolt-path={directory}/influxd.bolt",
        f"--sqlite-path={directory}/influxd.sqlite",
        f"--engine-path={directory}/engine",
        f"--http-bind-address={HOST}:{port}",
        "--reporting-disabled",
    ]


def _write_configuration(directory: Path, port: int, token: str) -> None:
    # Started by root, nginx would hand its directories to an account that cannot reach them.
    user = "user root;" if os.geteuid() == 0 else ""
    nginx = NGINX_CONF.format(directory=directory, host=HOST, port=port, token=token, user=user)
    (directory / "nginx").mkdir()
    (directory / "nginx.conf").write_text(nginx)
    (directory / "influxdb.conf").write_text(INFLUXDB_CONF.format(directory=directory))


def _packaged_programs() -> tuple[Path, Path]:
    """Give `influxd` 1.6.7 and `nginx`.

    :raises InfluxUnavailable: not Debian or Ubuntu, or the packages cannot be had or run
    """
    try:
        root = unpacked("influxdb", ("influxdb", "nginx"), ("usr/bin/influxd", "version"))
    except PackagesUnavailable as error:
        raise InfluxUnavailable(f"no InfluxDB for the tests: {error}\n{OTHERWISE}") from error
    return root / "usr/bin/influxd", root / "usr/sbin/nginx"
