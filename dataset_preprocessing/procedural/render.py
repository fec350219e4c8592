"""Renders data sets of procedural scenes; see --help.

Do not import this file: `procedural.render` is the function.
"""

import os
import sys

if __package__ in (None, ""):       # run as a file: Python then looks for modules beside it instead of in the project
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from dataset_preprocessing.procedural.cli import main
from dnnlib.util import run_program

if __name__ == "__main__":
    run_program(main)
