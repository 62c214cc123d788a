"""One thin click command per DVC stage; run from the project's root as `python -m stages.<name>`."""

import os
import sys

if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_DISABLE", "1")  # the bars of libraries are noise in a log
