"""Which model classes of the installed transformers run an attention method."""
