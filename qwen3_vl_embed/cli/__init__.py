"""The command line `qwen3-vl-embed`: embeds, validates and inspects through a running adapter.

`commands.py` is the way in; `offline.py` holds the commands that load a checkpoint themselves, and only these need
torch.
"""
