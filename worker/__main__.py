"""`python -m worker`: see `worker.entrypoints.cli`."""

import sys

from worker.entrypoints.cli import main

sys.exit(main())
