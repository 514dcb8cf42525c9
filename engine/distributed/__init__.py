"""More than one process or machine, by Ray (pip install 'numllama[ray]'; docs/scale.md).

cluster   the connection to a Ray cluster
"""
