"""From sequences to hidden states and vectors: packing, attention, the forward pass, pooling."""
