"""The programs behind every number in docs/performance.md, one for each question (`make bench` runs them all):

    forward   what the embedder alone does, as a share of what this machine's matrix products do
    peers     the same checkpoint and inputs through transformers and sentence-transformers
    serve     what of it survives through Triton and the adapter, against the service that one would write instead
    growth    time and peak memory against batch, image size and text length
    table     docs/performance.md, made of the files that the others left in results/

Each says its ceiling first, and its last line on stdout is one JSON document, which is also the file in results/.
"""
