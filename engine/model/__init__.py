"""Models: from a GGUF to something that can be run.

model       what is loaded, and how
architecture  what a family says
families    what differs between architectures, as values
hparams     sizes, from the key-values
weights     tensors under their GGUF names
lora        what adapters add to them
linear      products with a weight, adapters included
batch       what one forward pass works on
cache       keys and values of positions that were read
trace       looking at any value on its way
decoder     forward(): tokens in, logits out
whole       its layers as one call each, for decoding
moe         the feed-forward block as a mixture of experts
encoder     hidden(): a whole text in, a vector for each token out
affine      products with a bias and layer norms, as vision/ has them
"""
