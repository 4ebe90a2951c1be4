"""The programs behind every number in docs/performance.md and docs/reliability.md, one for each question:

    forward   what the embedder alone does, as a share of what this machine's matrix products do
    peers     the same checkpoint and inputs through transformers and sentence-transformers
    serve     what of it survives through Triton and the adapter, against the service that one would write instead
    growth    time and peak memory against batch, image size and text length
    overload  what becomes of callers when four times as many come as can be served
    soak      what grows over an hour of mixed load
    gpu_check everything that a new GPU must show, in one command (gpu_checks/)
    table     the tables in docs/ and README.md, made of the files that the others left in results/

`make bench` runs the first four, `make bench-load` the next two. Beside them: who sends (load, traffic, perf_analyzer),
what (inputs), and to whom (services, plan_service, contenders, subject, chat). Then on what (checkpoints, hardware,
gpu, flops), and what is made of it (results, targets, blocks).

Each says its ceiling first, and its last line on stdout is one JSON document, which is also the file in results/.
"""

import embedder  # noqa: F401  before torch, which reads once how its threads shall wait
