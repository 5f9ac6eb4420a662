"""One turn of one contestant: `python -m turn MODULE:CLASS PLAN`, with `bench` and `bench/peers` on the path."""

import importlib
import sys

from driver import main

if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(":")
    main(getattr(importlib.import_module(module), name), sys.argv[2])
