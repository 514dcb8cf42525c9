"""Models: from a GGUF file to a forward pass.

model            a loaded model
load             loading one from its files
architecture     the description of an architecture
families         the architectures, as values
hparams          sizes, from the key-values
weights          a decoder's tensors under their GGUF names
encoder_weights  an encoder's
lora             adapters
linear           products with a weight, adapters included
batch            the input of one forward pass
cache            keys and values of earlier positions
trace            access to any intermediate value
decoder          forward(): tokens in, logits out
whole            its layers as one call each, for decoding
moe              the feed-forward block as a mixture of experts
encoder          encoder_states(): a whole text in, a vector for each token out
affine           products with a bias and layer norms, for vision/
"""
