"""`python -m ostler.node.keeper --socket PATH --state DIR`."""

import os
import sys

if not sys.flags.no_site:
    # Once more without `site` and `runpy`: they cost a tenth of the memory that this process keeps for months.
    # Symbols are bound at once, else each child would look up anew those that only children call.
    os.environ["LD_BIND_NOW"] = "1"
    os.execv(sys.executable, [sys.executable, "-I", "-S", os.path.abspath(__file__), *sys.argv[1:]])  # noqa: S606

if __name__ == "__main__":
    package = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, os.path.normpath(os.path.join(package, *[os.pardir] * 3)))
    from ostler.node.keeper.main import main

    sys.exit(main(sys.argv[1:]))
