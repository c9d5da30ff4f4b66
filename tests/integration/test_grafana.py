"""The dashboard that compose.yaml provisions: every query finds what a replay has left in InfluxDB."""

import json
import re
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from scripts.replay.synthetic import synthetic_orders
from tests.isolation import Place
from tests.orders import order
from tests.record import settled, until
from tests.workers import Workers

pytestmark = pytest.mark.anyio

GRAFANA = Path(__file__).resolve().parents[2] / "deploy/grafana"
DASHBOARD = cast(
    "dict[str, Any]", json.loads((GRAFANA / "dashboards/ordergate.json").read_text("utf-8"))
)
SOURCES: Any = yaml.safe_load((GRAFANA / "datasources/influxdb.yaml").read_text("utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]

#: What Grafana puts in place of its variables.
VARIABLES = {"$timeFilter": "time >= now() - 1h", "$__interval_ms": "10000", "$__interval": "10s"}


def test_every_query_is_for_the_data_source_that_is_provisioned() -> None:
    (source,) = SOURCES["datasources"]
    for panel in PANELS:
        for target in panel["targets"]:
            assert target["datasource"] == {"type": source["type"], "uid": source["uid"]}
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)


async def test_every_query_finds_data_after_a_replay(place: Place, workers: Workers) -> None:
    replayed = [dict(it) for it in synthetic_orders(200, 20, 1)]
    await place.publish([*replayed, order(0, side="hold"), order(0, quantity="0")])
    await workers.start(place)
    await settled(place)

    async def told_of_itself() -> bool:
        return bool(place.influx.query("SELECT * FROM worker", place.bucket))

    await until(told_of_itself)
    for panel in PANELS:
        for target in panel["targets"]:
            values, tags = (
                found(place, target["query"]),
                re.findall(r"\$tag_(\w+)", target["alias"]),
            )
            assert values, panel["title"]
            assert all(row.get(tag) for row in values for tag in tags), (panel["title"], values)


def found(place: Place, query: str) -> list[dict[str, object]]:
    """The rows of a query that hold a value and not only a time."""
    for variable, text in VARIABLES.items():
        query = query.replace(variable, text)
    assert "$" not in query
    rows = place.influx.query(query, place.bucket)
    values = re.compile("count|max|mean|sum")  # a column is named for its function, or functions
    return [row for row in rows if any(row[name] is not None for name in row if values.match(name))]
