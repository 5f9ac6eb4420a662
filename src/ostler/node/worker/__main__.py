"""Start of the worker: `python -I …/worker SETTINGS` (JSON).

The interpreter may be another venv's that has no Ostler. So the package is made from the files that lie here: what tasks
import as `ostler.task` is then this release's, everywhere.
"""

import importlib.util
import os
import sys

here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib costs a tenth of this program's start
root = os.path.dirname(os.path.dirname(here))  # noqa: PTH120
sys.path[:] = [place for place in sys.path if place != here]  # the modules beside this one are no top-level modules of a task
spec = importlib.util.spec_from_file_location("ostler", f"{root}/__init__.py", submodule_search_locations=[root])
if spec is None or spec.loader is None:
    raise SystemExit(f"no package at {root}")
package = importlib.util.module_from_spec(spec)
sys.modules["ostler"] = package
spec.loader.exec_module(package)

main = importlib.import_module("ostler.node.worker.serve").main

if __name__ == "__main__":
    main(sys.argv[1])
