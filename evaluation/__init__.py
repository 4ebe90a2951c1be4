"""Colour retrieval: how well names and swatches find each other. Knows colours and vectors; no model, no server."""
