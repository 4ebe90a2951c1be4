"""What makes and measures: benchmarks, training, fuzzing, the code itself. The product imports none of it."""
