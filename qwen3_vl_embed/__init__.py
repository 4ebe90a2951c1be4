"""What `pip install` brings: the command line, the evaluation, and what serves a checkout."""
