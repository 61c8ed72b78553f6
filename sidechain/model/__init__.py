"""Exact scoring, training and running models. torch is imported below here and nowhere else."""

import os
from typing import Final

PATIENT: Final = "OMP_WAIT_POLICY"
"""torch's threads wait for one another thousands of times a second. By default they keep a core
busy meanwhile, which on cores that miners or other trainers use makes two of them ten times slower
than one (tried). It is read when torch is loaded."""

os.environ.setdefault(PATIENT, "passive")
