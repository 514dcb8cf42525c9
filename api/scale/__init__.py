"""More than one process or machine, by Ray (pip install 'numllama[ray]'; docs/scale.md).

workers   applications on a cluster, for batches
parquet   batches as tables
door      a server whose answers are computed by replicas
replica   one of these
merge     lists and metrics of all replicas, as one answer
"""
