"""Why a trained model says so: scores of patches, as tiles, pictures and pages."""
