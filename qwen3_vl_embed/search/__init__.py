"""Find things among vectors: an index on disk, queries of words, pictures and colours, a page.

Needs the extra `search`.
"""
