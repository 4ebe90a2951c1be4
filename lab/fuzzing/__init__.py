"""Programs that look for inputs without a documented outcome, and keep what they find:

    text     texts, options and prompts through the renderer, in process
    http     the running server: its OpenAPI document through schemathesis, and odd texts among good inputs

Each takes a seed and gives the same inputs again. The last line on stdout is one JSON document; the exit status is 1
when anything was found. Not needed by `make test`; a few seconds of each run there (`tests/test_fuzzing.py`).
"""
