"""FAVOR+: softmax attention through positive random features, in float32, with seeded projections.

The feature map is that of `performer-pytorch` (to which it is compared in the tests), computed in
float32 whatever the engine's dtype: exponentials overflow in half precision.

The projection matrices depend on (seed, redraw, layer) and on nothing else: no global generator,
no rank. They are computed in float64 from NumPy's Philox and rounded once, so that nodes with
other linear algebra libraries get the same matrices.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

EPSILON = 1e-4


def draw_projection(
    seed: tuple[int, ...], features: int, depth: int
) -> Float[Tensor, "feature depth"]:
    """Rows that are orthogonal in blocks of `depth`, with the lengths of Gaussian vectors."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    blocks = [_orthogonal(generator, depth) for _ in range(-(-features // depth))]
    lengths = np.linalg.norm(generator.standard_normal((features, depth)), axis=1)
    rows = np.concatenate(blocks)[:features] * lengths[:, None]
    return torch.from_numpy(rows.astype(np.float32))


def key_features(
    keys: Float[Tensor, "*batch token depth"], projection: Float[Tensor, "feature depth"]
) -> Float[Tensor, "*batch token feature"]:
    """exp(P k − |k|² / 2 − c), c the largest of P k over tokens and features; `EPSILON` not added.

    The caller adds `EPSILON` where it sums: an addition here would keep a second copy of what is
    the largest tensor of the model.
    """
    scaled = keys * keys.shape[-1] ** -0.25
    scores = scaled @ projection.T
    largest = scores.detach().amax((-1, -2), keepdim=True)
    features: Tensor = scores.sub_(scaled.square().sum(-1, keepdim=True) / 2 + largest).exp_()
    return features


def query_features(
    queries: Float[Tensor, "*batch token depth"], projection: Float[Tensor, "feature depth"]
) -> Float[Tensor, "*batch token feature"]:
    """As for keys, each token's own largest score subtracted and `EPSILON` added."""
    scaled = queries * queries.shape[-1] ** -0.25
    scores = scaled @ projection.T
    largest = scores.detach().amax(-1, keepdim=True)
    features: Tensor = (scores - scaled.square().sum(-1, keepdim=True) / 2 - largest).exp()
    return features + EPSILON


def favor_attention(
    queries: Float[Tensor, "case head query depth"],
    keys: Float[Tensor, "case head token depth"],
    values: Float[Tensor, "case head token depth"],
    projection: Float[Tensor, "feature depth"],
) -> Float[Tensor, "case head query depth"]:
    """What softmax attention would give in expectation, at a cost linear in tokens."""
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys, values = queries.float(), keys.float(), values.float()
        projection = projection.float()
        of_queries = query_features(queries, projection)
        of_keys = key_features(keys, projection)
        if queries.shape[2] == 1:  # one reader: a weight per token, no [feature, depth] sums
            weights = of_queries @ of_keys.transpose(-1, -2)
            weights = weights + EPSILON * of_queries.sum(-1, keepdim=True)
            return weights @ values / weights.sum(-1, keepdim=True)
        context = of_keys.transpose(-1, -2) @ values + EPSILON * values.sum(2, keepdim=True)
        total = of_keys.sum(2) + EPSILON * keys.shape[2]
        return of_queries @ context / (of_queries @ total[..., None])


def _orthogonal(generator: np.random.Generator, size: int) -> Float[np.ndarray, "size size"]:
    """A random rotation; signs fixed, as libraries differ in them."""
    q, r = np.linalg.qr(generator.standard_normal((size, size)))
    return np.asarray((q * np.sign(np.diag(r))).T)
