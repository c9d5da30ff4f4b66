"""What is asked in the page's search box, in the words of `explain`. Pure."""

from worker.errors import BadUsage
from worker.fields import MODEL_FIELDS
from worker.operate.explain import ENTRY_ID, Question

LENGTH_MAX = 4096  #: characters; an address that is longer is no question of a person


def question_of(text: str) -> Question:
    """An entry id, an order id, an order's fields as `name=value …`, or a payload as JSON.

    :raises BadUsage: it is none of these
    """
    text = text.strip()
    if not text or len(text) > LENGTH_MAX:
        raise BadUsage(
            "ask for an entry id, an order id, fields as name=value, or a payload as JSON"
        )
    if text.startswith("{"):
        return Question(fields=["payload", text])
    pairs = [word.partition("=") for word in text.split()]
    if pairs[0][0] in MODEL_FIELDS and all(equals for _, equals, _ in pairs):
        return Question(fields=[word for name, _, value in pairs for word in (name, value)])
    if len(text) > 128 or not text.isprintable():
        raise BadUsage("an order id is 1 to 128 printable characters")
    return Question(text if ENTRY_ID.fullmatch(text) else None, text)
