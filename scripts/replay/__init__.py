"""The parts of `scripts/replay_load.py`: where orders come from, how they go out, what is expected.

It has its own reading of the rules, in `reference`, so that it can tell when the worker errs.
"""
