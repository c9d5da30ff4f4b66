"""Workers and producers that are wrong on purpose, each by one small change, to try the tests with.

Each is a mistake that somebody might make. A test that lets one pass would let the same mistake pass in the
product.
"""

import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from hashlib import sha1, sha256
from importlib.resources import files
from pathlib import Path
from time import time, time_ns
from typing import Any, NamedTuple
from unittest.mock import patch

import msgspec
from redis import exceptions

from streams import group as streams_group
from streams import producer
from streams.connection import call
from streams.producer import PublishUncertain
from tests.chaos.faulty_io import Script, scripts
from worker import batch, claims, influx, intake, ledger, points, service
from worker.decide import Claim, Insert, Reject
from worker.errors import PostgresUnavailable, RowRefused
from worker.ledger import Recorded, Rules
from worker.order import Order
from worker.outcome import Accepted, Duplicate, Outcome, Rejected

FOR_EVER_MS = 10 * 365 * 86_400_000

Mistake = Callable[[], AbstractContextManager[object]]


class Wrong(NamedTuple):
    """One wrong worker or producer.

    :ivar make: makes all workers of this process, or producers, wrong while the block runs
    :ivar sql: text of the function `record_outcomes`, and what the wrong worker's schema has instead
    :ivar by: techniques that are likely to catch it; these are tried first
    """

    make: Mistake
    sql: Mapping[str, str]
    is_producer: bool
    by: Sequence[str]


WRONG: dict[str, Wrong] = {}


def _wrong(
    name: str, *, is_producer: bool = False, by: Sequence[str] = ()
) -> Callable[[Mistake], Mistake]:
    def register(make: Mistake) -> Mistake:
        WRONG[name] = Wrong(make, {}, is_producer, by)
        return make

    return register


def _wrong_schema(name: str, sql: Mapping[str, str], by: Sequence[str] = ()) -> None:
    """A worker of which the schema alone is wrong."""
    WRONG[name] = Wrong(nullcontext, sql, is_producer=False, by=by)


def _right(owner: Any, name: str) -> Any:
    """What the product has there."""
    return getattr(owner, name)


# --- when it acknowledges, and what it drops ---


@_wrong("acknowledges before it records")
@contextmanager
def acknowledges_first() -> Generator[None]:
    right = batch.process

    async def process(entries: Any, io: Any, *args: Any, **how: Any) -> list[Outcome]:
        ids = [entry.id for entry in entries]
        redis, its_group = _right(io.claims, "_redis"), _right(io.claims, "_group")
        await call(redis, "XACK", entries[0].stream, its_group, *ids)
        return await right(entries, io, *args, **how)

    with patch.object(intake, "process", process):
        yield


@_wrong("takes a commit whose answer was lost for done", by=("every moment", "single faults"))
@contextmanager
def takes_errors_for_commits() -> Generator[None]:
    right = ledger.Ledger.record

    async def record(self: Any, stream: str, decisions: Any, **how: Any) -> Recorded:
        try:
            return await right(self, stream, decisions, **how)
        except PostgresUnavailable:
            return Recorded([_believed(decision) for decision in decisions], [])

    with patch.object(ledger.Ledger, "record", record):
        yield


def _believed(decision: Any) -> Outcome:
    if isinstance(decision, Reject):
        return Rejected(decision.entry, decision.malformed)
    return Accepted(decision.entry, decision.order, 0)


@_wrong("sets a dead letter aside without its rejection")
@contextmanager
def records_no_rejections() -> Generator[None]:
    with _recording(lambda decision: isinstance(decision, Reject)):
        yield


@_wrong("drops the rest of a batch with a row that is refused", by=("a row refused", "audit"))
@contextmanager
def drops_the_other_half() -> Generator[None]:
    right = ledger.Ledger.record
    attempt = _right(ledger.Ledger, "_record")

    async def record(self: Any, stream: str, decisions: Any, **how: Any) -> Recorded:
        if len(decisions) == 1:
            return await right(self, stream, decisions, **how)
        try:
            return await attempt(
                self, stream, decisions, how["rules"], how["owe_points"], how["read_after"]
            )
        except RowRefused:
            half = len(decisions) // 2
            outcomes, in_hand = await record(self, stream, decisions[:half], **how)
            return Recorded([*outcomes, *map(_believed, decisions[half:])], in_hand)

    with patch.object(ledger.Ledger, "record", record):
        yield


@_wrong("acknowledges what was trimmed without a word")
@contextmanager
def forgets_trimmed_entries() -> Generator[None]:
    right = streams_group.Group.take_over

    async def take_over(self: Any, *args: Any, **how: Any) -> streams_group.TakenOver:
        taken = await right(self, *args, **how)
        if trimmed := [entry.id for entry in taken.entries if entry.fields is None]:
            await call(_right(self, "_redis"), "XACK", self.stream, self.name, *trimmed)
        return taken._replace(entries=[e for e in taken.entries if e.fields is not None])

    with patch.object(streams_group.Group, "take_over", take_over):
        yield


# --- what it believes of Redis ---


class Hinted(Insert, frozen=True, gc=False):
    """An order of which the wrong worker believes, by Redis, that it is a duplicate."""


@contextmanager
def _hinted(believes: Callable[[Any, Any], bool], *, looks: bool) -> Generator[None]:
    """A worker that acknowledges as duplicates what Redis makes it believe is one.

    :param looks: it records those whose original Postgres has
    """
    right = batch.decide

    def decide(entry: Any, parsed: Any, claim: Any, window_ms: int) -> Any:
        if isinstance(parsed, Order) and believes(entry, claim):
            return Hinted(entry, parsed)
        return right(entry, parsed, claim, window_ms)

    with patch.object(batch, "decide", decide), _recording(_is_hinted, looks=looks):
        yield


def _is_hinted(decision: object) -> bool:
    return isinstance(decision, Hinted)


@contextmanager
def _recording(drops: Callable[[Any], bool], *, looks: bool = False) -> Generator[None]:
    """A ledger that does not record some decisions, and says that it did."""
    right = ledger.Ledger.record

    async def record(self: Any, stream: str, decisions: Any, **how: Any) -> Recorded:
        dropped = {d.entry.id for d in decisions if drops(d)}
        if looks:
            dropped -= {d.entry.id for d in decisions if drops(d) and await _has_row(self, d)}
        kept = [decision for decision in decisions if decision.entry.id not in dropped]
        done = await right(self, stream, kept, **how) if kept else Recorded([], [])
        outcomes = iter(done.outcomes)
        told = [_dropped(d) if d.entry.id in dropped else next(outcomes) for d in decisions]
        return Recorded(told, done.in_hand)

    with patch.object(ledger.Ledger, "record", record):
        yield


async def _has_row(self: Any, decision: Any) -> bool:
    async with self.connection() as connection:
        found = "SELECT count(*) FROM orders WHERE content_hash = $1"
        return await connection.fetchval(found, decision.order.content_hash) > 0


def _dropped(decision: Any) -> Outcome:
    if isinstance(decision, Reject):
        return Rejected(decision.entry, decision.malformed)
    return Duplicate(decision.entry, decision.order, 0, decision.entry.id)


@_wrong("takes a claim that is held for a duplicate")
def trusts_held_claims() -> AbstractContextManager[object]:
    return _hinted(
        lambda entry, claim: _is_anothers(entry, claim) and not claim.stored, looks=False
    )


@_wrong("lets the answer of SET NX decide")
def lets_redis_decide() -> AbstractContextManager[object]:
    return _hinted(_is_anothers, looks=True)


@_wrong(
    "drops a duplicate whose original Postgres does not have", by=("Redis forgot", "every moment")
)
def drops_orphans() -> AbstractContextManager[object]:
    return _hinted(lambda entry, claim: _is_anothers(entry, claim) and claim.stored, looks=True)


def _is_anothers(entry: Any, claim: Claim | None) -> bool:
    return claim is not None and claim.entry_id != entry.id


@_wrong("takes its own claim for a rival's")
@contextmanager
def knows_no_claim_again() -> Generator[None]:
    def standing(*_: object) -> Claim:
        return Claim("0-0", False)

    with patch.object(claims, "_standing", standing), trusts_held_claims():
        yield


@_wrong("never corrects a claim", by=("Redis forgot", "audit"))
def never_corrects() -> AbstractContextManager[object]:
    def nothing(*_: object) -> dict[str, str]:
        return {}

    return patch.object(claims.Claims, "_wrong", nothing)


# --- which content it takes for the same, and when ---


@contextmanager
def _parsing(change: Callable[[Any, Order], Order]) -> Generator[None]:
    right = _right(batch, "_parse")

    def parse(entry: Any, forms: Any) -> Any:
        parsed = right(entry, forms)
        return change(entry, parsed) if isinstance(parsed, Order) else parsed

    with patch.object(batch, "_parse", parse):
        yield


@_wrong("reads prices as floats")
def reads_floats() -> AbstractContextManager[object]:
    def change(_entry: object, order: Order) -> Order:
        return msgspec.structs.replace(order, price=order.price and str(float(order.price)))

    return _parsing(change)


@_wrong("takes the order id for content")
def hashes_order_ids() -> AbstractContextManager[object]:
    def change(_entry: object, order: Order) -> Order:
        content_hash = sha256(order.content_hash + order.order_id.encode()).digest()
        return msgspec.structs.replace(order, content_hash=content_hash)

    return _parsing(change)


@_wrong("forgets that the account is content")
def ignores_accounts() -> AbstractContextManager[object]:
    def change(_entry: object, order: Order) -> Order:
        content = (order.symbol, order.side, order.type, order.quantity.rstrip("0."), order.price)
        return msgspec.structs.replace(order, content_hash=sha256(repr(content).encode()).digest())

    return _parsing(change)


@_wrong("measures the window by the wall clock")
@contextmanager
def uses_the_wall_clock() -> Generator[None]:
    right = _right(ledger, "_order_row")

    def row(decision: Any) -> tuple[Any, ...]:
        entry_id, _, *rest = right(decision)
        return entry_id, int(time() * 1000), *rest

    with patch.object(ledger, "_order_row", row):
        yield


@_wrong("lets no window end")
@contextmanager
def ends_no_window() -> Generator[None]:
    right = ledger.Ledger.record

    async def record(
        self: Any, stream: str, decisions: Any, *, rules: Rules, **how: Any
    ) -> Recorded:
        longer = rules._replace(window_ms=rules.window_ms + FOR_EVER_MS)
        return await right(self, stream, decisions, rules=longer, **how)

    with patch.object(ledger.Ledger, "record", record):
        yield


@_wrong("lets the last of twins win")
@contextmanager
def prefers_the_last() -> Generator[None]:
    right = ledger.Ledger.record

    async def record(self: Any, stream: str, decisions: Sequence[Any], **how: Any) -> Recorded:
        outcomes, in_hand = await right(self, stream, decisions[::-1], **how)
        return Recorded(outcomes[::-1], in_hand)

    with patch.object(ledger.Ledger, "record", record):
        yield


# --- how it writes to Postgres ---


_wrong_schema(
    "inserts unsorted",
    {
        "SELECT DISTINCT ON (e.content_hash) e.content_hash": "SELECT e.content_hash",
        "ORDER BY e.content_hash, e.ordinality\n        ON CONFLICT": (
            "ORDER BY e.ordinality\n        ON CONFLICT"
        ),
    },
    by=("chance", "rivals"),
)
_wrong_schema("counts a redelivered order twice", {"FROM found f WHERE NOT itself": "FROM found f"})


# --- points ---


_wrong_schema(
    "notes no points that it has in hand",
    {"UNION ALL SELECT e.entry_id FROM unnest(p_rejections) e))": "WHERE false))"},
    by=("Redis forgot all", "every moment"),
)


@_wrong(
    "leaves the points that a dead worker had in hand", by=("Redis forgot all", "pairs of faults")
)
@contextmanager
def leaves_points_in_hand() -> Generator[None]:
    right = ledger.Ledger.settle_in_hand

    async def settle(self: Any, *, left_after_ms: int) -> None:
        await right(self, left_after_ms=left_after_ms + FOR_EVER_MS)

    with patch.object(ledger.Ledger, "settle_in_hand", settle):
        yield


@_wrong("skips the point of a redelivery")
@contextmanager
def skips_points() -> Generator[None]:
    right = influx.points

    def once(outcomes: Sequence[Any]) -> list[points.Point]:
        return right(it for it in outcomes if not getattr(it, "redelivered", False))

    with patch.object(influx, "points", once):
        yield


@_wrong("gives points the time of writing")
def points_of_now() -> AbstractContextManager[object]:
    def now(_entry_id: str) -> str:
        return str(time_ns())

    return patch.object(points, "_time", now)


@_wrong("gives points a time in milliseconds")
def points_in_ms() -> AbstractContextManager[object]:
    return patch.object(points, "_time", _ms)


@_wrong("gives the points of one millisecond one time")
def points_without_sequence() -> AbstractContextManager[object]:
    def whole_ms(entry_id: str) -> str:
        return f"{_ms(entry_id)}000000"

    return patch.object(points, "_time", whole_ms)


def _ms(entry_id: str) -> str:
    return entry_id.partition("-")[0]


_wrong_schema(
    "takes no notice of changed rules",
    {"(p_stream, p_window, p_envelope, p_reading, v_alone)": "(p_stream, '0', '{}', 0, v_alone)"},
    by=("other rules", "interleavings"),
)
_wrong_schema(
    "takes no notice of what others gave up",
    {"IF v_some_rejected THEN": "IF false THEN"},
    by=("given up", "interleavings"),
)


# --- how it reads ---


@_wrong("reads on without its own history after a lost reply", by=("sound runs", "pairs of faults"))
@contextmanager
def reads_no_history() -> Generator[None]:
    async def read_own(self: Any, _batches: object) -> None:
        await self.group.read_own("0", 1)  # the group is there

    with patch.object(intake.Intake, "_read_own", read_own):
        yield


@_wrong("makes a lost group anew at `$`")
def begins_at_the_end() -> AbstractContextManager[object]:
    return _script(
        "streams", "create_group.lua", "ARGV[1], '0', 'MKSTREAM'", "ARGV[1], '$', 'MKSTREAM'"
    )


@_wrong("removes consumers with what they hold")
@contextmanager
def removes_holders() -> Generator[None]:
    with (
        _script("streams", "remove_consumers.lua", "and consumer.pending == 0 ", ""),
        patch.object(service, "QUIET_CONSUMER_MS", 0),
    ):
        yield


@_wrong("swallows that Redis has no memory for a dead letter", by=("Redis full", "every moment"))
def swallows_full_memory() -> AbstractContextManager[object]:
    wrong = "(letter and attempt('HSET', index, id, letter)) or true"
    return _script("worker", "settle.lua", "letter and attempt('HSET', index, id, letter)", wrong)


@contextmanager
def _script(package: str, name: str, right: str, wrong: str) -> Generator[None]:
    """A worker with another Lua script."""
    module = {"streams": streams_group, "worker": claims}[package]
    with tempfile.TemporaryDirectory() as directory:
        for file in (files(package) / "lua").iterdir():
            (Path(directory) / file.name).write_text(file.read_text())
        text = (files(package) / "lua" / name).read_text()
        assert right in text
        changed = text.replace(right, wrong)
        (Path(directory) / name).write_text(changed)
        digest = sha1(changed.encode()).hexdigest()  # noqa: S324 - Redis' own
        scripts()[digest] = Script(name, changed)
        with patch.object(module, "LUA", Path(directory)):
            yield
        del scripts()[digest]


# --- producers ---


@_wrong("a producer that sends again what was not answered", is_producer=True)
@contextmanager
def sends_again() -> Generator[None]:
    right = _right(producer.Producer, "_send")

    async def send(self: Any, chunk: Any, replies: list[Any], unsent: int) -> None:
        before = len(replies)
        try:
            await right(self, chunk, replies, unsent)
        except PublishUncertain:
            del replies[before:]
            await right(self, chunk, replies, unsent)

    with patch.object(producer.Producer, "_send", send):
        yield


@_wrong("a producer that swallows what Redis refuses", is_producer=True)
@contextmanager
def swallows_refusals() -> Generator[None]:
    async def read(link: Any, replies: list[str | None], answered: int) -> None:
        while len(replies) < answered:
            try:
                replies.append((await link.read_response()).decode())
            except exceptions.ResponseError:
                replies.append(None)

    with patch.object(producer, "_read", read):
        yield
