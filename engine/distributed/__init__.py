"""More than one process or machine, by Ray (pip install 'numllama[ray]'; docs/scale.md).

cluster   the connection to a Ray cluster
replicas  equal processes behind Ray Serve
affinity  which of them knows the beginning of a prompt
router    Ray Serve's router, by that
pipeline  a model cut by layers into stages
ring      hidden states from stage to stage
spread    independent work on all nodes
"""
