"""Looking at an answer: a request's `look`, and what it collects beside the fast kernels.

request.py    the field `look`: what is wanted, its limits and errors
collector.py  the tap of one sequence: attention, logit lens, sampler, values, changes
step.py       what it found at one position; the prompt
held.py       the keys and values of an answer, to look at any of its positions again
maps.py       attention maps of a held answer
file.py       a model file: tensors by bytes, one block in numbers
timeline.py   the scheduler's last steps, also in Perfetto's form
"""
