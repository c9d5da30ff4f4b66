"""`check`: the streams and their workers, and settings that do not fit each other."""

from collections.abc import Generator

from worker.operate.command import human
from worker.operate.figures import StreamFigures
from worker.operate.finding import Finding, fail, ok, warn
from worker.settings import Settings, unknown_variables


def look_at_settings(settings: Settings) -> Generator[Finding]:
    """Settings that are each right and do not go together, and variables that mean nothing."""
    window, retention = settings.dedupe_window_ms, settings.retention_ms
    if retention is not None and retention < window:
        yield warn(
            "WORKER_RETENTION",
            f"{human(retention)}, less than WORKER_DEDUPE_WINDOW, {human(window)}: after a loss in Postgres "
            "the stream cannot be read again for the whole window",
            f"set it to {human(window)} or more",
        )
    else:
        kept = "unset: entries are kept" if retention is None else human(retention)
        yield ok("WORKER_RETENTION", f"{kept}; the dedupe window is {human(window)}")
    for name, meant in unknown_variables().items():
        yield warn(name, "is no setting of ours", f"{meant} may be meant" if meant else "unset it")


def look_at_stream(found: StreamFigures, settings: Settings) -> Generator[Finding]:
    """A stream, its group, and who reads it."""
    name = f"stream {found.stream}"
    if not found.has_group:
        yield warn(name, f"no group {found.group} yet; {found.waiting:,} entries wait", *START)
        return
    yield _reading(name, found, settings)
    yield _pending(name, found, settings)
    if found.lost:
        yield warn(
            name,
            f"{found.lost:,} entries were trimmed or deleted before they were read",
            "let producers keep more (MAXLEN), then have those orders sent again",
        )
    if found.dead_letters:
        yield ok(name, f"{found.dead_letters:,} dead letters: `dead-letters list`")


START = ("start a worker", "python -m worker")
DEAD_OR_WAITING = (
    "a worker that waits for a server looks so, too: mend what fails below; if nothing does, start one",
    "python -m worker",
)


def _asking_counts(found: StreamFigures) -> bool:
    return all(it.asking_counts for it in found.consumers)


def _reading(name: str, found: StreamFigures, settings: Settings) -> Finding:
    """Who reads. A consumer that lives asks at least every second; a busy one holds entries no longer than
    a takeover waits."""
    quiet = settings.takeover_after_ms
    live = [it for it in found.consumers if it.idle_ms < quiet]
    dead = [it for it in found.consumers if it.idle_ms >= quiet and it.pending]
    waits = f"{found.waiting:,}" if found.waiting is not None else "some" if found.lag_ms else "0"
    if dead:
        held = sum(it.pending for it in dead)
        names = ", ".join(f"{it.name} ({human(it.idle_ms)})" for it in dead[:3])
        says = f"{held:,} entries are held by consumers not seen for long: {names}"
        if live:
            return warn(name, says, "the others take them over; if this stays, see the runbook")
        return fail(name, f"{says}; nobody reads, {waits} wait", *DEAD_OR_WAITING)
    if not live and waits == "0" and found.consumers and not _asking_counts(found):
        says = f"{len(found.consumers)} consumers, which Redis before 7.2 does not see while 0 entries wait"
        return ok(name, says)
    if not live:
        return warn(name, f"nobody reads; {waits} entries wait", *START)
    return ok(name, f"{len(live)} consumers read; {waits} entries wait")


def _pending(name: str, found: StreamFigures, settings: Settings) -> Finding:
    oldest = found.oldest
    if oldest is None:
        return ok(name, "nothing is pending")
    says = f"{found.pending:,} pending, the oldest held for {human(oldest.held_ms)} by {oldest.consumer}"
    if oldest.held_ms <= 2 * settings.takeover_after_ms:
        return ok(name, says)
    return warn(
        name,
        f"{says}, delivered {oldest.deliveries} times",
        "see what becomes of it",
        f"python -m worker explain {oldest.entry_id} --stream {found.stream}",
    )
