"""`python -m lowbit.cli` is `lowbit`."""

import sys

from lowbit.cli import main

sys.exit(main())
