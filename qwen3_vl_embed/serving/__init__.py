"""Run the product without containers: find tritonserver, start it and the adapter, watch both, stop both.

Does not know tensors, HTTP bodies or torch: it starts what does.
"""
