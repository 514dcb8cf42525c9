"""The oracle: which operation of another engine is wrong, and why.

judge     each value of another engine's dump against our operation on that engine's own inputs, in effective bits
causes    a table of usual mistakes; the one that explains a wrong value is its cause
score     perplexity of a text, and its divergence from a base model's, as llama-perplexity
compare   two models, or servers, on the same text
dumps     the files in which other engines save their values
"""
