"""More than one process or machine, by Ray (pip install 'numllama[ray]'; docs/scale.md).

workers   applications on a cluster, for batches
parquet   batches as tables
"""
