"""`status` tells how far each stream is, once or live."""

import os
import pty
import signal
import subprocess
import sys

import pytest
from anyio import to_thread

from tests.integration.operate.conftest import Ask
from tests.isolation import Place
from tests.orders import order, orders
from tests.record import until
from tests.workers import ROOT, Workers, drain

pytestmark = pytest.mark.anyio


@pytest.fixture
async def traffic(place: Place) -> Place:
    """Five settled entries, then two pending with w-7, and one that waits."""
    await place.publish([*orders(range(3)), order(0), order(9, side="hold")])
    await drain(place)
    await place.publish(orders(range(10, 13)))
    group = place.settings.group
    read = ("XREADGROUP", "GROUP", group, "w-7", "COUNT", 2, "STREAMS", place.stream, ">")
    await place.command(*read)
    return place


async def test_everything_is_told_of_a_stream(traffic: Place, ask: Ask) -> None:
    reply = await ask(traffic, "status", "--json")
    assert reply.code == 0
    found = reply.document
    (stream,) = found["streams"]
    assert (stream["entries"], stream["pending"], stream["dead_letters"]) == (8, 2, 1)
    assert stream["waiting"] in (1, None)
    assert stream["lag_ms"] > 0
    assert stream["oldest"]["consumer"] == "w-7"
    assert [(it["name"], it["pending"]) for it in stream["consumers"]] == [("w-7", 2)]
    counts = {"accepted": 3, "duplicate": 1, "rejected": 1}
    assert found["on_record"] == {traffic.stream: counts}
    assert found["last_minute"] == {traffic.stream: counts}
    assert found["points"] == {traffic.stream: {"owed": 0, "owed_since": None, "parked": 0}}
    assert found["unanswered"] == {}


async def test_the_same_is_told_in_words(traffic: Place, ask: Ask) -> None:
    text = (await ask(traffic, "status")).output
    for words in (
        "8 in the stream; 5 settled by order-workers",
        "2, the oldest ",
        "by w-7, delivered 1 times",
        "3 accepted, 1 duplicate, 1 rejected",
        "5, 0.1 a second: 0.1 accepted, 0.0 duplicate, 0.0 rejected",
        "0 owed, 0 parked",
        "dead letters 1\n",
    ):
        assert words in text
    assert text.splitlines()[-1].split()[:2] == ["w-7", "2"]


async def test_of_nothing_all_is_zero_and_nothing_is_made(place: Place, ask: Ask) -> None:
    reply = await ask(place, "status", "--stream", place.stream, "--stream", "other")
    assert reply.code == 0
    assert reply.output.count("0 in the stream; 0 settled by no group order-workers yet") == 2
    assert await place.command("KEYS", "*") == []


async def test_names_that_others_give_cannot_control_the_terminal(traffic: Place, ask: Ask) -> None:
    group, name = traffic.settings.group, "\x1b[31m\u202e"
    await traffic.command("XGROUP", "CREATECONSUMER", traffic.stream, group, name)
    text = (await ask(traffic, "status")).output
    assert "\\x1b[31m\\u202e" in text
    assert "\x1b" not in text


async def test_what_one_server_knows_is_told_without_the_other(traffic: Place, ask: Ask) -> None:
    reply = await ask(traffic.having(DATABASE_URL="postgresql://x:x@127.0.0.1:1/x"), "status")
    assert reply.code == 1
    assert "Postgres does not answer: " in reply.output
    assert "8 in the stream" in reply.output
    reply = await ask(traffic.having(REDIS_URL="redis://127.0.0.1:1/0"), "status")
    assert reply.code == 1
    assert "Redis does not answer: " in reply.output
    assert "3 accepted, 1 duplicate, 1 rejected" in reply.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_watching_goes_on_with_the_stream_and_ends_well(
    traffic: Place, workers: Workers, number: signal.Signals
) -> None:
    watch = await workers.start(traffic, "status", "--watch", "100ms")
    await until(lambda: printed(watch.output, "8 in the stream", times=2))
    await traffic.publish([order(20)])
    await until(lambda: printed(watch.output, "9 in the stream"))
    watch.signal(number)
    assert await watch.ended() == 0
    assert watch.log == ""


async def printed(output: str, text: str, times: int = 1) -> bool:
    return output.count(text) >= times


async def test_on_a_terminal_the_screen_is_drawn_anew_and_given_back(traffic: Place) -> None:
    shown = await to_thread.run_sync(watched_on_a_terminal, traffic)
    assert "8 in the stream" in shown
    assert "Traceback" not in shown
    assert shown.count("\x1b[?1049h") == shown.count("\x1b[?1049l") == 1  # the alternate screen


def watched_on_a_terminal(place: Place) -> str:
    """Watch on a terminal, press Ctrl-C once a text was drawn; gives all that was written there."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "worker", "status", "--watch", "100ms"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=ROOT,
        env={**os.environ, **place.variables, "TERM": "xterm", "COLUMNS": "150", "LINES": "40"},
        start_new_session=True,
    )
    os.close(theirs)
    shown, pressed, ended = b"", False, False
    while not ended:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # the other side is closed
            ended = True
        if b"8 in the stream" in shown and not pressed:
            process.send_signal(signal.SIGINT)
            pressed = True
    os.close(ours)
    assert process.wait(30) == 0
    return shown.decode()


@pytest.mark.parametrize(
    "words",
    [
        ("extra",),
        ("--stream", ""),
        ("--watch", "often"),
        ("--watch", "--json"),
        ("--fix",),
    ],
)
async def test_wrong_usage_is_told_in_words(place: Place, ask: Ask, words: tuple[str, ...]) -> None:
    reply = await ask(place, "status", *words)
    assert (reply.code, reply.output) == (2, "")
    assert "ordergate: " in reply.errors or "error: " in reply.errors
