"""What makes and measures: benchmarks, training, fuzzing. The product imports none of it."""
