"""Ordered pairs of faults: both within one life of the worker, or the second after its restart."""

from collections.abc import Iterator, Mapping, Sequence
from random import Random

from tests.chaos.faulty_io import Fault, FaultyIO, Point
from tests.chaos.scenarios import Scenario
from tests.chaos.sweep import Run


def seconds_of(first: Run, lives: Sequence[FaultyIO], idle: Sequence[Point]) -> Iterator[Run]:
    """Every pair that begins with the one fault of a run, given what that run did.

    :param lives: the life with the fault, and the one after it
    :param idle: the calls of a worker that finds nothing to do; a life of these alone shows nothing new
    """
    [(point, fault)] = first.lives[0].items()
    if not fault.is_fatal and point in lives[0].calls:
        for later in lives[0].calls[lives[0].calls.index(point) + 1 :]:
            for second in Fault:
                yield Run(first.scenario, [{point: fault, later: second}])
    if set(lives[1].calls) - set(idle):
        for later in lives[1].calls:
            for second in Fault:
                yield Run(first.scenario, [{point: fault}, {later: second}])


def random_pair(chance: Random, points: Mapping[Scenario, Sequence[Point]]) -> Run:
    """Any two faults of a scenario, in one life or two."""
    scenario = chance.choice(list(points))
    first, second = (
        (chance.choice(points[scenario]), chance.choice(list(Fault))) for _ in range(2)
    )
    one_life = not first[1].is_fatal and chance.random() < 0.5
    return Run(scenario, [dict([first, second])] if one_life else [dict([first]), dict([second])])
