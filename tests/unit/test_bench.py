"""What the benchmark computes: figures, verdicts, loads, plots, and its place in the page."""

from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest

from tests.load.bench import PAGE
from tests.load.figures import Spread, percentile, ratios, spread
from tests.load.guard import CPU, SPEED, verdict
from tests.load.loads import Load, quantity_sum
from tests.load.plot import bars, curves
from tests.load.sections import PAGE as PAGE_FILE
from tests.load.sections import Section, write

TEXT = PAGE_FILE.read_text(encoding="utf-8")
BEFORE = {
    SPEED: Spread(0.5, 0.48, 0.52),
    CPU: Spread(3.0, 2.9, 3.1),
    "… parse": Spread(0.6, 0.58, 0.62),
    "… claim": Spread(0.1, 0.09, 0.11),
}


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50), (0.99, 99), (0.999, 100), (1, 100), (0.001, 1)]
)
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(
    share: float, expected: float
) -> None:
    assert percentile(range(1, 101), share) == expected


def test_a_ratio_is_taken_within_a_round() -> None:
    assert spread(ratios([10, 40, 30], [20, 40, 20])) == (1.0, 0.5, 1.5)


# --- the guard ---


def test_the_same_figures_are_not_worse() -> None:
    assert verdict(BEFORE, BEFORE) == []


def test_slower_and_dearer_names_the_stage_that_takes_more() -> None:
    now = {
        **BEFORE,
        SPEED: Spread(0.4, 0.39, 0.41),
        CPU: Spread(3.6, 3.5, 3.7),
        "… parse": Spread(1.2, 1.1, 1.3),
    }
    assert verdict(now, BEFORE) == [SPEED, CPU, "… parse"]


def test_dearer_at_the_same_speed_is_worse() -> None:
    assert verdict({**BEFORE, CPU: Spread(3.6, 3.5, 3.7)}, BEFORE) == [CPU]


@pytest.mark.parametrize(
    "now",
    [Spread(0.40, 0.39, 0.49), Spread(0.47, 0.46, 0.475), Spread(0.6, 0.58, 0.62)],
    ids=["a round reaches the range of before", "within the noise", "faster"],
)
def test_what_is_not_clearly_slower_passes(now: Spread) -> None:
    assert verdict({**BEFORE, SPEED: now}, BEFORE) == []


def test_a_stage_that_moved_does_not_matter_where_the_whole_did_not() -> None:
    assert verdict({**BEFORE, "… claim": Spread(0.2, 0.19, 0.21)}, BEFORE) == []


# --- loads ---


@pytest.mark.parametrize("load", [Load(70, 30), Load(10, 0, times=5), Load(5, 15, fields=64)])
def test_a_load_holds_the_orders_and_repeats_it_promises(load: Load) -> None:
    contents = Counter(
        tuple(pair for pair in order.items() if pair[0] != "order_id") for order in load
    )
    assert len(contents) == load.orders
    assert contents.total() == load.entries
    assert load.repeats == load.entries - load.orders
    units = [int(dict(content)["quantity"].replace(".", "")) for content in contents]
    assert len(set(units)) == load.orders
    assert sum(units) == quantity_sum(load.orders)


def test_an_entry_has_as_many_fields_as_asked_for() -> None:
    assert {len(order) for order in Load(20, 0, fields=64)} == {64}


# --- plots and the page ---


def test_plots_are_well_formed_and_hold_every_name() -> None:
    spreads = {"one & all": Spread(10, 9, 12), "<two>": Spread(1000, 900, 1100)}
    points = {"p50": [(100, 1.5), (5000, 3)], "p99": [(100, 20), (5000, 90)]}
    for svg in (
        bars("orders/s", spreads),
        curves("title", "x", "y", points, log_x=True, log_y=True),
        curves("title", "x", "y", {"p50": [(0, 5), (1, 7)]}),
    ):
        Xml.fromstring(svg)  # noqa: S314 - our own
    texts = [it.text for it in Xml.fromstring(bars("orders/s", spreads)).iter()]  # noqa: S314
    assert {"one & all", "<two>", "1,000"} <= set(texts)


@pytest.mark.parametrize("name", PAGE)
def test_the_page_has_a_place_for_each_table(name: str) -> None:
    assert TEXT.count(f"<!-- {name} -->\n") == TEXT.count(f"<!-- /{name} -->") == 1


def test_a_section_replaces_its_own_table_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "performance.md"
    page.write_text("<!-- a -->\nold\n<!-- /a -->\nkept\n<!-- b -->\n<!-- /b -->\n")
    monkeypatch.setattr("tests.load.sections.PAGE", page)
    monkeypatch.setattr("tests.load.sections.FIGURES", tmp_path / "performance")
    write(Section("a", {}, "new\n", {"a": "<svg/>"}))
    assert page.read_text() == "<!-- a -->\nnew\n<!-- /a -->\nkept\n<!-- b -->\n<!-- /b -->\n"
    assert (tmp_path / "performance" / "a.svg").read_text() == "<svg/>"
    with pytest.raises(ValueError, match="no place for c"):
        write(Section("c", {}, ""))
