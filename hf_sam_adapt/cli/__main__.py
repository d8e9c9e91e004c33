"""`python -m hf_sam_adapt.cli`."""

import sys

from . import main


sys.exit(main())
