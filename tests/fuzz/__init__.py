"""Input as an attack: entries that nobody would send by mistake, and what must hold for each of them.

`mutator` makes them from the corpus by chance, `strategies` with Hypothesis, `fuzz_order` guided by coverage;
`judge` says what must hold, by `reference` and by a parser of the line protocol.
"""
