"""Embed as much as there is: rows of a source, one after the other, into part files that are the job's own checkpoint.

Needs the extra `bulk`.
"""
