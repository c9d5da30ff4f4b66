"""Who takes part in the contest, and what each promises. One module for each; each is one process.

A contestant reads the stream that `told` names, from its first entry, until it is stopped. `orders` and
`schema.sql` are what those who are not Ordergate share: a validated order, its hash, and two tables.
"""

from typing import NamedTuple


class Contestant(NamedTuple):
    """One program that drains the stream.

    :ivar command: what follows `python -m`
    :ivar share: of the load; who takes entries one by one needs no more for a steady figure
    :ivar records_duplicates: whether its design keeps a row for each repeat
    :ivar writes_points: whether its design writes a point for each entry
    :ivar needs: a package that `make bench` installs for it
    """

    name: str
    command: tuple[str, ...]
    share: float = 1.0
    records_duplicates: bool = False
    writes_points: bool = False
    needs: str = ""


HERE = "tests.load.contestants"
ORDERGATE = "Ordergate"
FLOOR = "floor"
EXPERT = "expert's batches"

CONTESTANTS = {
    "ordergate": Contestant(
        ORDERGATE, ("worker", "--drain"), records_duplicates=True, writes_points=True
    ),
    "floor": Contestant(FLOOR, (f"{HERE}.floor",), records_duplicates=True, writes_points=True),
    "expert": Contestant(EXPERT, (f"{HERE}.expert",), writes_points=True),
    "faststream-batch": Contestant(
        "FastStream, batches",
        (f"{HERE}.faststream_batches",),
        writes_points=True,
        needs="faststream",
    ),
    "faststream": Contestant(
        "FastStream, one by one", (f"{HERE}.faststream_singles",), 0.05, needs="faststream"
    ),
    "tutorial": Contestant("tutorial loop", (f"{HERE}.tutorial",), 0.05),
}
