"""The quantization of a model, measured and reported."""
