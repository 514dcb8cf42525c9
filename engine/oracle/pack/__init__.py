"""Golden packs: files with inputs and expected outputs, by which a program in any language tests itself.

build       all items, written to a folder with a manifest
check       a program runs over the items and is judged in bits
"""
