"""A quantiser whose codes can be read off a picture, and random points on its grid."""

import numpy as np
import torch
from hypothesis import strategies as st

from digr.sids.rkmeans import RKMeans

# two dimensions: the first level tells left from right, the second has three offsets
GRID = RKMeans(
    mean=torch.zeros(2),
    scale=torch.ones(2),
    codebooks=(torch.tensor([[-10.0, 0.0], [10.0, 0.0]]), torch.tensor([[0.0, -1.0], [0.0, 0.0], [0.0, 1.0]])),
)

POINTS = st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=40)


def grid_vectors(listed):
    """Points as vectors of the two dimensions."""
    return np.array([[10 * np.sign(x + 0.5), y] for x, y in listed], np.float32)
