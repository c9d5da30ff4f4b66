#!/usr/bin/env python3
"""Replay orders into a stream and see what becomes of them; `--help` says how."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python scripts/replay_load.py`

from scripts.replay.command import main

if __name__ == "__main__":
    sys.exit(main())
