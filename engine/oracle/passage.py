"""The text that `numllama compare` takes by default: prose, speech, numbers; about 400 tokens of a large vocabulary."""

PASSAGE = """\
The river rises in the hills behind the village, where three small springs meet under an old stone bridge. In winter
it is loud and brown and carries branches; in August children cross it without wetting their knees. It is not known
who built the mill, but its wheel turned until 1931, and the miller's daughter, who is ninety-four now, can still tell
you the price of flour in every year before the war.

"If you want to know how a machine works," her father used to say, "first learn what it does when nothing is wrong."
He kept a notebook with two columns. On the left he wrote what he expected: the level of the water, the speed of the
stones, the weight of a sack. On the right he wrote what he measured. Most days the columns agreed, and he closed the
book. When they did not, he looked for the first line that differed, because everything below it was a consequence.

In 2019 a group of students restored the wheel. They measured 1.2 metres of head and a flow of 85 litres per second,
which gives 85 * 9.81 * 1.2 = 1000.6 watts at best, and about 600 after losses. That is enough for the lamps in the
street and for one kettle, but not for both at 6 o'clock in the evening. So the village decided to have light, and to
drink its tea at five.
"""
