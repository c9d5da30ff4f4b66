"""Errors, told apart by who must act.

    OrdergateError
    ├── BadSettings          the operator: a variable is wrong; nothing was started, exit 2
    ├── BadUsage             whoever typed the command: a word of it is wrong; exit 2
    ├── SchemaMismatch       the operator: run `python -m worker migrate`, or update the worker; exit 2
    ├── PostgresRefused      the operator: a password, a right or a database is missing; exit 1
    ├── Unavailable          nobody yet: it passes
    │   ├── PostgresUnavailable  the entries stay pending and the step is repeated
    │   └── InfluxUnavailable    the points are owed, noted in Postgres and written later
    ├── EmbeddedUnavailable  whoever runs us: a server of our own cannot be had; exit 1
    ├── RowRefused           nobody: Postgres will never store this batch; it is split to find the row
    ├── NoAnswer             whoever typed the command: a server it asks is away, or refuses; exit 1
    └── PointsRefused        us: InfluxDB will never take these lines; they are parked with its answer

`streams.connection.RedisUnavailable` is their sibling for Redis. Bad input is no error here: it is an
outcome (`order.Malformed`). Anything else is a bug and is caught nowhere: the process ends, its entries
stay pending, and the next one finds them.
"""


class OrdergateError(Exception):
    """Whatever Ordergate raises on purpose. `str(error)` is one sentence for its reader."""


class BadSettings(OrdergateError):
    """A setting is missing or wrong; the message names the variable."""


class BadUsage(OrdergateError):
    """A word on the command line is wrong; the message says what is expected."""


class SchemaMismatch(OrdergateError):
    """The schema in Postgres is older or newer than this worker's."""


class PostgresRefused(OrdergateError):
    """Postgres refuses us: our password, role, database, rights or sessions; see `postgres.REFUSED`."""


class Unavailable(OrdergateError):
    """A server did not do it, or did it and the answer was lost.

    :ivar answered: it refused, with an error of its own
    :ivar retry_after_s: seconds it asked us to wait; 0 where it did not
    """

    def __init__(self, reason: str, *, answered: bool = False, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.answered = answered
        self.retry_after_s = retry_after_s


class PostgresUnavailable(Unavailable):
    """Postgres cannot take writes now. A commit under way may or may not have happened."""


class EmbeddedUnavailable(OrdergateError):
    """A server of our own cannot be had; the message says why, and what to do about it."""


class RowRefused(OrdergateError):
    """Postgres refuses the data of a row (SQLSTATE class 22, 23 or 54); nothing was stored."""


class InfluxUnavailable(Unavailable):
    """InfluxDB did not take the points: away, slow, overloaded, or it refuses our token or bucket."""


class NoAnswer(OrdergateError):
    """A server that an operator's command asks does not answer, or refuses."""


class PointsRefused(OrdergateError):
    """InfluxDB calls a line of these points malformed (400, 422), or says that they are too many (413).

    Others of them may be stored.
    """
