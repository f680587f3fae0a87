"""The training of a text classifier, also by another one."""
