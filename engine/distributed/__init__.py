"""More than one process or machine, by Ray (pip install 'numllama[ray]'; docs/scale.md).

cluster   the connection to a Ray cluster
pipeline  a model cut by layers into stages
ring      hidden states from stage to stage
"""
