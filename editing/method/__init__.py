"""The paper and nothing else: tensors in, tensors out; no model, no file, no device move.

rows        what capture gives: keys K and value gradients G of a turn's rows
moments     lifelong mean and scale of [K | G]        second_moments   lifelong sums of z z'
lifelong    all statistics of the edits so far        features         products over features that are sliced over shards
whitening   g^ by a full second moment                preserve         the ridge that knows the keys of other tokens
shift       targets, the ridge regression, the shift  solver           all of it together: one turn's shifts
"""
