"""What runs a decoder: tokens, the frozen prefix, the suffix with its captures, the head on chosen rows, greedy text.

tokenization   requests to sequences, sequences to batches      row_positions   where a turn's rows are
decoder        any Hugging Face decoder as prefix, suffix, head modules         patterns to names of linears
prefix         hidden states below the lowest edited layer      capture         keys and value gradients of rows
beginnings     what many sequences begin with, run once        past            keys and values of what precedes
continuation   what follows a subject, with the keys and values of what precedes it
token_keys     keys of all tokens of a text                     generation      greedy text
residency      which layers are in memory                       hidden_store    hidden states for later, in memory or on disk
matmul         float32 products at the CPU's full speed
"""
