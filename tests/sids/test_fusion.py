"""Further views enter the quantised vectors, and an item without one is placed by what its text says of it."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from digr.sids.fusion import FUSION, fit_fusion, load_fusion, save_fusion


def _both(num=400, seed=0):
    """Three hidden causes: one seen in the text, one in both, one in the image alone."""
    rng = np.random.default_rng(seed)
    causes = rng.normal(size=(num, 3)).astype(np.float32)
    text_of, image_of = np.random.default_rng(9).normal(size=(2, 6)), np.random.default_rng(8).normal(size=(2, 5))
    return (causes[:, :2] @ text_of).astype(np.float32), (7 + causes[:, 1:] @ image_of).astype(np.float32), causes


def _explained(fused, causes):
    design = np.column_stack([fused, np.ones(len(fused))])
    left = causes - design @ np.linalg.lstsq(design, causes, rcond=None)[0]
    return 1 - left.var(0) / causes.var(0)


def test_the_fused_vector_keeps_what_only_the_image_shows():
    text, image, causes = _both()
    fusion = fit_fusion(text, {"image": image}, {"image": 0.5})
    assert fusion(text, {"image": image}).shape == (400, 6)
    assert _explained(fusion(text, {"image": image}), causes).min() > 0.99
    assert _explained(text, causes)[2] < 0.05


def test_a_missing_image_is_what_the_text_says_of_images_and_not_a_zero_vector():
    text, image, _ = _both()
    blank = image.copy()
    blank[:100] = np.nan
    fusion = fit_fusion(text, {"image": blank}, {"image": 0.5})
    whole = fusion(text[:100], {"image": image[:100]})
    guessed, zero = fusion(text[:100]), fusion(text[:100], {"image": np.zeros_like(image[:100])})
    assert np.isfinite(guessed).all()
    assert np.square(guessed - whole).sum() < 0.6 * np.square(zero - whole).sum()
    # nothing of it depends on the other rows
    np.testing.assert_allclose(fusion(text[:1], {"image": blank[:1]}), guessed[:1], rtol=1e-5, atol=1e-6)


def test_the_maps_keep_the_joint_principal_components_and_spread_them_over_all_dimensions():
    text, image, causes = _both()
    views = {"image": image, "behaviour": causes[:, 2:] + np.random.default_rng(1).normal(size=(400, 2)).astype(np.float32)}
    fused = fit_fusion(text, views, {"image": 0.3, "behaviour": 0.5})(text, views)
    parts = [(text - text.mean(0)) / text.std(0), *(view - view.mean(0) for view in views.values())]
    shares = (0.2, 0.3, 0.5)
    scaled = [part * np.sqrt(share / np.square(part).sum(1).mean()) for share, part in zip(shares, parts, strict=True)]
    values = np.linalg.svd(np.column_stack(scaled), compute_uv=False)[:6] ** 2
    np.testing.assert_allclose(np.linalg.svd(fused, compute_uv=False) ** 2, values, rtol=1e-3, atol=1e-3)
    # as principal components the weakest dimension would have little, and a quantiser that standardises would blow it up
    assert fused.var(0).min() > 0.2 * fused.var(0).mean() > values.min() / len(text)


def test_a_saved_fusion_is_the_same_and_none_is_none(tmp_path):
    text, image, _ = _both()
    fusion = fit_fusion(text, {"image": image}, {"image": 0.5})
    assert load_fusion(tmp_path) is None
    save_fusion(fusion, tmp_path)
    np.testing.assert_array_equal(load_fusion(tmp_path)(text, {"image": image}), fusion(text, {"image": image}))


def test_a_fusion_of_an_earlier_version_says_what_to_do(tmp_path):
    save_file({"map": np.zeros((2, 2), np.float32)}, tmp_path / FUSION)
    with pytest.raises(ValueError, match=r"fusion\.safetensors: is of an earlier version; fit it again by `digr sids build"):
        load_fusion(tmp_path)


def test_images_with_weight_but_without_vectors_are_an_error():
    text, image, _ = _both(10)
    with pytest.raises(ValueError, match=r"sids\.image_weight: 0 of 10 items have a vector of this kind; set it to 0, or see"):
        fit_fusion(text, {"image": np.full_like(image, np.nan)}, {"image": 0.5})
