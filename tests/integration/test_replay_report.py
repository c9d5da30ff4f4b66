"""`replay_load.py --report`: every figure against the database, and the page against the figures."""

import json
from bisect import bisect_right
from collections import Counter
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import pytest

from tests.isolation import Place
from tests.workers import Workers

BITSTAMP = Path(__file__).resolve().parents[3] / "shared" / "data" / "orders_bitstamp.csv.gz"
EPOCH, MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
RECORDED = """
SELECT entry_id, outcome, order_id, symbol, code, original_entry_id, recorded_at FROM outcomes
WHERE stream = $1
"""
PERCENTILES = {"min": 0, "p50": 500, "p90": 900, "p95": 950, "p99": 990, "p999": 999, "max": 1000}
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>"

pytestmark = pytest.mark.anyio


class Ran(NamedTuple):
    """A replay that has ended."""

    code: int
    output: str
    log: str


async def replay(place: Place, workers: Workers, *options: object) -> Ran:
    words = map(str, options)
    process = await workers.run(dict(place.variables), *words, module="scripts.replay_load")
    return Ran(await process.ended(), process.output, process.log)


def figures_in(directory: Path) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads((directory / "figures.json").read_bytes()))


class Page(HTMLParser):
    """A page's elements, its texts, and its tables by the heading of their first column."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.tables: dict[str, list[list[str]]] = {}
        self._rows: list[list[str]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not {name for name, _ in attrs} & {"src", "href"}
        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("th", "td"):
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.tables[self._rows[0][0]] = self._rows[1:]
            self._rows = []

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._rows:
            self._rows[-1][-1] += data


# --- every value ---


class Recorded(NamedTuple):
    """An entry as the database has it, with the times that follow from that."""

    row: dict[str, Any]
    at_ms: float
    recorded_ms: float
    latency_ms: float

    @property
    def distance_ms(self) -> int | None:
        """From a duplicate to its original."""
        original = self.row["original_entry_id"]
        return abs(ms_of(self.row["entry_id"]) - ms_of(original)) if original else None


def ms_of(entry_id: str) -> int:
    return int(entry_id.partition("-")[0])


def micros_of(at: datetime) -> int:
    return (at - EPOCH) // MICROSECOND


async def recorded(place: Place, began_at: datetime) -> list[Recorded]:
    began = micros_of(began_at)
    return [
        Recorded(
            row,
            at_ms=(entry - began) / 1000,
            recorded_ms=(at - began) / 1000,
            latency_ms=(at - entry) / 1000,
        )
        for row in await place.fetch(RECORDED, place.stream)
        for entry, at in [(ms_of(row["entry_id"]) * 1000, micros_of(row["recorded_at"]))]
    ]


def percentiles_of(values: list[float]) -> dict[str, Any]:
    """Each the smallest that so many thousandths of the values do not exceed."""
    values = sorted(values)
    places = {name: max(ceil(of * len(values) / 1000), 1) for name, of in PERCENTILES.items()}
    return {name: pytest.approx(values[place - 1]) for name, place in places.items()}


def counts_of(values: list[float], buckets: list[dict[str, Any]]) -> list[int]:
    bounds = [bucket["to_ms"] for bucket in buckets[:-1]]
    counts = Counter(bisect_right(bounds, value) for value in values)
    return [counts[place] for place in range(len(buckets))]


def slices_of(rows: list[Recorded], length: int, count: int) -> list[dict[str, Any]]:
    slices: list[dict[str, Any]] = []
    waiting = 0
    for place in range(count):
        published = [it for it in rows if slice_at(it.at_ms, length) == place]
        done = sum(slice_at(it.recorded_ms, length) == place for it in rows)
        waiting += len(published) - done
        latencies = percentiles_of([it.latency_ms for it in published]) if published else None
        slices.append({
            "at_ms": place * length, "published": len(published), "recorded": done,
            "waiting": waiting, "latency_ms": latencies,
        })  # fmt: skip
    return slices


def slice_at(at_ms: float, length: int) -> int:
    return max(int(at_ms // length), 0)


@pytest.mark.skipif(not BITSTAMP.exists(), reason=f"no {BITSTAMP.name} here")
async def test_every_figure_of_real_orders_is_that_of_the_database(
    place: Place, workers: Workers, tmp_path: Path
) -> None:
    await workers.start(place)
    ran = await replay(place, workers, BITSTAMP, "--rate", 8000, "--report", tmp_path, "--json")
    assert ran.code == 0, ran.log
    assert str(tmp_path / "report.html") in ran.log
    said, found = json.loads(ran.output), figures_in(tmp_path)
    run, result, latency, timeline = (found[it] for it in ("run", "result", "latency", "timeline"))
    rows = await recorded(place, datetime.fromisoformat(run["began_at"]))

    assert found["version"] == 1
    assert (run["source"], run["pace"]) == (BITSTAMP.name, "8,000 orders per second")
    assert (run["entries"], run["stream"]) == (len(rows), place.stream) == (24_894, place.stream)
    counts = {"accepted": 18_547, "duplicates": 6_347, "rejected": 0}
    assert result["expected"] == result["found"] == said["found"] == counts
    assert (result["missing"], result["recorded_before"], result["as_expected"]) == (0, 0, True)
    seconds = max(it.recorded_ms for it in rows) / 1000
    assert result["recorded_seconds"] == pytest.approx(seconds)
    assert result["recorded_per_second"] == pytest.approx(24_894 / seconds)

    latencies = [it.latency_ms for it in rows]
    assert latency["count"] == 24_894
    assert latency["mean_ms"] == pytest.approx(sum(latencies) / 24_894)
    assert latency["percentiles_ms"] == percentiles_of(latencies)
    assert said["latency_ms"]["p99"] == latency["percentiles_ms"]["p99"]
    assert [it["count"] for it in latency["buckets"]] == counts_of(latencies, latency["buckets"])
    distances = [float(it.distance_ms) for it in rows if it.distance_ms is not None]
    assert [it["count"] for it in found["distances"]] == counts_of(distances, found["distances"])
    assert len(distances) == 6_347
    assert timeline["slices"] == slices_of(rows, timeline["slice_ms"], len(timeline["slices"]))
    assert timeline["slices"][-1]["waiting"] == 0

    slowest = sorted(rows, key=lambda it: (-it.latency_ms, it.row["entry_id"]))[:20]
    for slow, row in zip(found["slowest"], slowest, strict=True):
        assert slow["latency_ms"] == pytest.approx(row.latency_ms)
        assert slow["at_ms"] == pytest.approx(row.at_ms)
        assert {name: row.row[name] for name in slow if name in row.row}.items() <= slow.items()
    assert (
        abs(found["clocks"]["difference_ms"]) <= found["clocks"]["uncertainty_ms"] + 1
    )  # one machine
    the_page_tells(Page(tmp_path / "report.html"), found)


def the_page_tells(page: Page, found: dict[str, Any]) -> None:
    """Every table of it has the figures."""
    assert page.tags.count("figure") == 6
    assert page.tags.count("desc") == 6
    assert "As expected" in page.text
    outcomes = [[*row] for row in page.tables["outcome"]]
    assert outcomes[:2] == [["accepted", "18,547", "18,547"], ["duplicates", "6,347", "6,347"]]
    slices = found["timeline"]["slices"]
    counts = [[f"{it[name]:,}" for name in ("published", "recorded", "waiting")] for it in slices]
    assert [row[1:4] for row in page.tables["from"]] == counts
    used = [f"{it['count']:,}" for it in found["distances"] if it["count"]]
    shown = [row[1] for row in page.tables["distance from the original"] if row[1] != "0"]
    assert shown == used
    assert [row[0] for row in page.tables["entry"]] == [it["entry_id"] for it in found["slowest"]]


# --- other runs ---


async def test_hostile_orders_are_text_in_the_page(
    place: Place, workers: Workers, tmp_path: Path
) -> None:
    good = {"symbol": "BTCUSD", "side": "buy", "type": "market", "quantity": "1"}
    rows = [
        {**good, "order_id": HOSTILE},
        {**good, "order_id": "b", "symbol": HOSTILE},
        {**good, "order_id": HOSTILE, "quantity": "none"},
    ]
    file = tmp_path / "<script>x<:script>.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    await workers.start(place)
    ran = await replay(place, workers, file, "--report", tmp_path)
    assert ran.code == 0, ran.log
    page = Page(tmp_path / "report.html")
    assert HOSTILE in page.text
    assert file.name in page.text
    assert {"script", "img"}.isdisjoint(page.tags)
    codes = {row["code"]: 1 for row in await place.fetch("SELECT code FROM rejections")}
    assert {it["code"]: it["count"] for it in figures_in(tmp_path)["result"]["rejections"]} == codes
    assert len(codes) == 2
    assert sorted(page.tables["code of rejection"]) == sorted([code, "1"] for code in codes)


async def test_event_times_have_outcomes_and_distances_but_no_latencies(
    place: Place, workers: Workers, tmp_path: Path
) -> None:
    file = tmp_path / "day.csv"
    file.write_text(
        "order_id,symbol,side,type,quantity,time\n"
        "1,A,buy,market,1,2015-05-01T00:00:00Z\n"
        "2,A,buy,market,1,2015-05-01T00:00:02Z\n"
        "3,A,buy,market,1,2015-05-01T03:00:00Z\n"
    )
    await workers.start(place)
    ran = await replay(place, workers, file, "--event-time", "--report", tmp_path)
    assert ran.code == 0, ran.log
    found = figures_in(tmp_path)
    assert (found["latency"], found["clocks"], found["slowest"]) == (None, None, [])
    assert found["latency_omitted"] == "entry ids are the orders' own times"
    assert sum(it["recorded"] for it in found["timeline"]["slices"]) == 3
    assert {it["published"] for it in found["timeline"]["slices"]} == {None}
    used = {it["from_ms"]: it["count"] for it in found["distances"] if it["count"]}
    assert used == {1000: 1, 3_600_000: 1}
    assert (
        "Not measured: entry ids are the orders' own times." in Page(tmp_path / "report.html").text
    )


async def test_a_redis_that_may_not_tell_its_time_leaves_a_report_without_it(
    place: Place, workers: Workers, tmp_path: Path
) -> None:
    await workers.start(place)
    user = place.stream
    await place.command("ACL", "SETUSER", user, "on", ">pw", "~*", "+@all", "-info", "-time")
    address = urlsplit(place.variables["REDIS_URL"])
    server = address.netloc.rpartition("@")[2]
    url = address._replace(netloc=f"{user}:pw@{server}").geturl()
    ran = await replay(place.having(REDIS_URL=url), workers, "--report", tmp_path)
    await place.command("ACL", "DELUSER", user)
    assert ran.code == 0, ran.log
    found = figures_in(tmp_path)
    assert (found["clocks"], found["run"]["redis_version"]) == (None, None)
    assert found["latency"]["count"] == 70
    assert "Redis did not tell its time" in Page(tmp_path / "report.html").text


async def test_a_run_that_gave_up_has_its_report(
    place: Place, workers: Workers, tmp_path: Path
) -> None:
    ran = await replay(place, workers, "--timeout", "500ms", "--report", tmp_path / "new/one")
    assert ran.code == 1
    found = figures_in(tmp_path / "new/one")
    assert found["result"]["missing"] == 70
    assert found["latency_omitted"] == "nothing was recorded during this run"
    assert "Gave up" in Page(tmp_path / "new/one/report.html").text


# --- side by side ---


async def test_two_reports_are_put_side_by_side(
    place: Place, workers: Workers, tmp_path: Path
) -> None:
    await workers.start(place)
    one, other = tmp_path / "one", tmp_path / "other"
    for directory, orders in ((one, 400), (other, 1000)):
        seed = ("--seed", orders)
        ran = await replay(place, workers, "--orders", orders, *seed, "--report", directory)
        assert ran.code == 0, ran.log
    ran = await replay(place, workers, "--compare", one, other, "--report", tmp_path, "--json")
    assert ran.code == 0, ran.log
    first, second, said = figures_in(one), figures_in(other), json.loads(ran.output)
    assert said["accepted"] == {"first": 400, "second": 1000, "ratio": 2.5}
    rates = [it["result"]["recorded_per_second"] for it in (first, second)]
    assert said["recorded per second"]["ratio"] == pytest.approx(rates[1] / rates[0])
    p99 = [it["latency"]["percentiles_ms"]["p99"] for it in (first, second)]
    assert said["latency p99"]["ratio"] == pytest.approx(p99[1] / p99[0])
    page = Page(tmp_path / "comparison.html")
    assert ["accepted", "400", "1,000", "2.5 \N{MULTIPLICATION SIGN}"] in page.tables["figure"]
    assert "they differ in source." in page.text


# --- what goes wrong ---


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--report", "FILE"], "FILE: File exists"),
        (["--compare", "DIR", "DIR"], "--compare needs --report"),
        (["--compare", "DIR", "DIR", "--report", "DIR", "--wait"], "--compare replays nothing"),
        (["FILE", "--compare", "DIR", "DIR", "--report", "DIR"], "--compare replays nothing"),
        (["--compare", "DIR", "DIR", "--report", "DIR"], "DIR/figures.json: No such file"),
        (
            ["--compare", "BAD", "DIR", "--report", "DIR"],
            "BAD/figures.json: no figures of a replay",
        ),
    ],
)
async def test_what_is_wrong_is_said_before_anything_is_published(
    place: Place, workers: Workers, tmp_path: Path, options: list[str], complaint: str
) -> None:
    (tmp_path / "FILE").write_text("")
    (tmp_path / "BAD").mkdir()
    (tmp_path / "BAD/figures.json").write_text("[]")
    (tmp_path / "DIR").mkdir()
    words = [str(tmp_path / it) if it.isupper() else it for it in options]
    ran = await replay(place, workers, *words)
    assert ran.code == 2
    last = ran.log.splitlines()[-1]
    assert last.startswith("replay_load")
    assert complaint in last
    assert "Traceback" not in ran.log
    assert await place.command("XLEN", place.stream) == 0
