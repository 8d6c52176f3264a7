"""python -m datadream.cli"""

import sys

from datadream.cli import main

sys.exit(main())
