"""Calibrated probabilities: one temperature, fitted on validation (Guo et al. 2017).

    p_k(T) ∝ p_k^(1/T)

The temperature is the one with the least mean negative log-likelihood over the validation
predictions of all models of a study. The order of the cases, and so the AUC of two classes, stays.
"""

import numpy as np
from jaxtyping import Float, Float64, Int
from scipy.optimize import minimize_scalar

LOG_RANGE = 3.0  # e^-3 … e^3: beyond it validation says nothing about the temperature
_SMALLEST = 1e-12


def fit_temperature(
    scores: Float[np.ndarray, "sample class"], labels: Int[np.ndarray, " sample"]
) -> float:
    """The temperature; 1 where fewer than two classes are there to fit it on."""
    if len(np.unique(labels)) < 2:
        return 1.0
    logs = np.log(np.maximum(scores.astype(np.float64), _SMALLEST))

    def loss(log_temperature: float) -> float:
        scaled = logs / np.exp(log_temperature)
        peak = scaled.max(axis=1, keepdims=True)
        normaliser = peak[:, 0] + np.log(np.exp(scaled - peak).sum(axis=1))
        return float((normaliser - scaled[np.arange(len(labels)), labels]).mean())

    found = minimize_scalar(loss, bounds=(-LOG_RANGE, LOG_RANGE), method="bounded")
    return float(np.exp(found.x))


def calibrated(
    scores: Float[np.ndarray, "sample class"], temperature: float
) -> Float64[np.ndarray, "sample class"]:
    """Probabilities at a temperature."""
    logs = np.log(np.maximum(scores.astype(np.float64), _SMALLEST)) / temperature
    wide = np.exp(logs - logs.max(axis=1, keepdims=True))
    result: Float64[np.ndarray, "sample class"] = wide / wide.sum(axis=1, keepdims=True)
    return result
