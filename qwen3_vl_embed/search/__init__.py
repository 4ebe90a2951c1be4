"""Find things among vectors: an index on disk, queries of words, pictures and colours, a page.

Knows vectors, files and the client; not terminals. Needs the extra `search`.
"""
