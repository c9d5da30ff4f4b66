"""A reader beside the load: what may be seen at no moment, however briefly.

It has connections of its own, to Redis and to Postgres, and looks again and again while the faults go on.
"""

from pathlib import Path
from typing import Any, cast

import anyio
import asyncpg

from streams.connection import connect
from tests.chaos.journal import WINDOW_MS, Journal, Load
from tests.isolation import Place
from tests.record import AWAY

SURVEY = (Path(__file__).parent / "survey.lua").read_text()
EVERY_S = 0.3
TIMEOUT_S = 2.0

ACCEPTED_TWICE = f"""
SELECT encode(new.content_hash, 'hex') AS content, old.entry_id AS first, new.entry_id AS second
FROM orders new JOIN orders old USING (content_hash)
WHERE new.recorded_at > clock_timestamp() - interval '30 seconds' AND old.entry_id <> new.entry_id
    AND abs(extract(epoch FROM new.entry_at - old.entry_at)) * 1000 <= {WINDOW_MS}
"""
#: $1 entry ids
NOT_ON_RECORD = """
SELECT id FROM unnest($1::text[]) id
WHERE NOT EXISTS (SELECT FROM orders WHERE entry_id = id)
    AND NOT EXISTS (SELECT FROM duplicates WHERE entry_id = id)
    AND NOT EXISTS (SELECT FROM rejections WHERE entry_id = id)
"""


class Watcher:
    """Looks until cancelled. :ivar looks: how often it saw both servers"""

    def __init__(self, place: Place, journal: Journal, load: Load) -> None:
        self._place, self._journal, self._load = place, journal, load
        self._looked_through = "0-0"
        self.looks = 0

    async def run(self) -> None:
        """:raises AssertionError: content accepted twice in its window, or an entry acknowledged too soon"""
        while True:
            try:
                await self._look_on()
            except AWAY:
                await anyio.sleep(EVERY_S)

    async def _look_on(self) -> None:
        address = self._place.settings.database_address
        settings = {"search_path": self._place.schema, "application_name": "watcher"}
        postgres = await cast("Any", asyncpg.connect)(
            address, timeout=TIMEOUT_S, command_timeout=TIMEOUT_S, server_settings=settings
        )
        try:
            async with connect(self._place.settings.redis_address, timeout_ms=1_000) as redis:
                while True:
                    await self._look(redis, postgres)
                    await anyio.sleep(EVERY_S)
        finally:
            postgres.terminate()

    async def _look(self, redis: Any, postgres: Any) -> None:  # noqa: ANN401 - clients without types
        group = self._place.settings.group
        words = ("EVAL", SURVEY, 1, self._place.stream, group, self._looked_through)
        settled_to, self._load.backlog, acknowledged = await redis.execute_command(*words)
        new = [entry_id for entry_id in acknowledged if entry_id not in self._journal.seen]
        too_soon = [row["id"] for row in await postgres.fetch(NOT_ON_RECORD, new)]
        assert not too_soon, f"acknowledged, and not on record: {too_soon}"
        twice = [dict(row) for row in await postgres.fetch(ACCEPTED_TWICE)]
        assert not twice, f"accepted twice within the window: {twice}"
        self._journal.seen.update(new)
        self._looked_through = settled_to
        self.looks += 1
