"""The fit of an SDM head, measured and reported."""
