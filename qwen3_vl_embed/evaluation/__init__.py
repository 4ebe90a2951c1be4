"""How well texts and images find each other: figures, verdict, page.

`report.py` is the way in: pairs of vectors in, a `Report` out, which `page.py` and `tsv.py` write down.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]  # vectors come in float32, figures are computed in float64
