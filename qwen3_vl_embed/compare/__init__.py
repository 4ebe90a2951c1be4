"""Two ways to the same vectors: do they agree, and if not, why not?

`inputs.py` is what both are asked for, `sides.py` who is asked over HTTP, `local.py` who is asked in this process.
`variants.py` makes every vector that our own code can make of an input, and knows which of them another one is.
`verdict.py` puts it together.
"""
