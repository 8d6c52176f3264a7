"""python -m datadream"""

import sys

from datadream.cli import main

sys.exit(main())
