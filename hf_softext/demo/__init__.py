"""The demonstration behind `softext demo`: real data, real pretrained weights, one report."""
