"""Machine unlearning of image classifiers in JAX, measured against retrained models."""
