"""A Ray cluster on this machine, by the Python that has Ray: tells its address, and kills a node when it is told.

python tests/ray_cluster.py
"""

import sys

from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 10**8})
nodes = [cluster.add_node(num_cpus=2, object_store_memory=10**8) for _ in range(2)]
print(cluster.address, flush=True)
for line in sys.stdin:
    if line == "kill\n":
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        print("killed", flush=True)
cluster.shutdown()
