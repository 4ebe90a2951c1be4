"""The command line `qwen3-vl-embed`: embeds, validates and inspects through a running adapter.

Knows HTTP, files and terminals; not Triton, not torch. `commands.py` is the way in.
"""
