"""Orders from a file, its columns mapped to the fields of an order.

The file is read twice: once to check every row and to count them, so that a mistake in the last row
stops the replay before its first entry; then to publish, and it is never held as a whole.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

from scripts.replay.source import Item
from scripts.replay.tables import BadSource, Row, reading

REQUIRED = ("order_id", "symbol", "side", "type", "quantity")
FIELDS = (*REQUIRED, "account", "price", "stop_price", "time_in_force", "expire_time")
TIME = "time"

_EPOCH, _MS = datetime(1970, 1, 1, tzinfo=UTC), timedelta(milliseconds=1)


class OrderFile:
    """The orders of a file; iterating gives each as an `Item`, as often as wanted.

    :ivar first_ms: time of the first order, milliseconds since 1970; 0 without `timed`
    :ivar left_out: columns that are not sent
    """

    def __init__(
        self,
        path: Path,
        mapping: dict[str, str],
        keep: Sequence[str],
        *,
        timed: bool,
        limit: int | None = None,
    ) -> None:
        """Check the whole file, or its first rows where there is a limit.

        :param mapping: column by order field or `time`, where a column has another name
        :param keep: columns to send besides, under their own names
        :param timed: every row must have a time, ISO 8601, no earlier than the row before; a time
            without an offset is UTC, and what is below a millisecond is cut off
        :param limit: how many rows to read at most
        :raises BadSource: naming what is wrong, and where
        """
        self._path, self._timed, self._mapping, self._keep = path, timed, mapping, keep
        self._limit = limit
        self._time = mapping.get(TIME, TIME)
        self._columns = {field: mapping.get(field, field) for field in FIELDS}
        self._columns |= {column: column for column in keep}
        self._count, self.first_ms = 0, 0
        self.left_out = self._scan()

    def __str__(self) -> str:
        name = self._path.name.encode(errors="replace").decode()  # a name may be no text
        return name if self._limit is None else f"{name}, its first {self._limit:,} orders"

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        columns = tuple(self._columns.items())
        with reading(self._path) as table:
            for row in islice(table.rows, self._limit):
                cells = row.cells
                order = {field: cells[column] for field, column in columns if column in cells}
                yield Item(order, self._at_ms(row) if self._timed else 0)

    def _scan(self) -> list[str]:
        """Check every row; give the columns that are not sent."""
        sent = set(self._columns.values())
        with reading(self._path) as table:
            seen = dict.fromkeys(table.header)
            before_ms = 0
            for row in islice(table.rows, self._limit):
                seen |= dict.fromkeys((*row.cells, *row.nested))
                self._check_row(row, sent)
                before_ms = self._next_ms(row, before_ms) if self._timed else 0
                self.first_ms = self.first_ms or before_ms
                self._count += 1
        self._check_columns(seen)
        return [
            name for name in seen if name not in sent and not (self._timed and name == self._time)
        ]

    def _check_row(self, row: Row, sent: set[str]) -> None:
        where = f"{self._path}, line {row.line}"
        if nested := sorted(row.nested & sent):
            raise BadSource(f"{where}: {nested[0]} is neither text nor a number")
        if sent.isdisjoint(row.cells):
            raise BadSource(f"{where} has no field of an order")

    def _check_columns(self, seen: Mapping[str, None]) -> None:
        if not self._count:
            raise BadSource(f"{self._path} holds no orders")
        wanted = {field: self._columns[field] for field in (*REQUIRED, *self._keep)} | self._mapping
        for field, column in wanted.items():
            if column not in seen:
                hint = "" if field in self._keep else f"; give --map {field}=COLUMN"
                raise BadSource(
                    f"{self._path} has no column {column!r}, it has {', '.join(seen)}{hint}"
                )

    def _next_ms(self, row: Row, before_ms: int) -> int:
        at_ms = self._at_ms(row)
        if at_ms < before_ms:
            raise BadSource(
                f"{self._path}, line {row.line}: {row.cells[self._time]} is earlier than the row "
                "before, and entry ids only grow; sort the file by time first"
            )
        return at_ms

    def _at_ms(self, row: Row) -> int:
        text = row.cells.get(self._time)
        where = f"{self._path}, line {row.line}"
        if text is None:
            raise BadSource(f"{where} has no {self._time!r}; give --map {TIME}=COLUMN")
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            raise BadSource(f"{where}: {text!r} is not a time in ISO 8601") from None
        since = (at if at.tzinfo else at.replace(tzinfo=UTC)) - _EPOCH
        if since < _MS:
            raise BadSource(f"{where}: {text} is not after 1970, as entry ids are")
        return since // _MS
