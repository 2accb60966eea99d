"""The predictor: a process that holds each root's weights once and answers with any version over it.

app      HTTP: one request to questions, one answer or one error back
batcher  who waits, what goes on next, and with whom
room     how much may wait
asks     a question on its way, and a version's questions that are under way
shelf    the verified overlays kept in memory
engine   torch: the roots, and a version's tensors laid over one of them for one turn
session  a version's questions under way, and which of their answers are whole
free     free text, decoded token by token together
besides  ranked candidates and likely next tokens, read a slice a turn
checks   what a model can't be asked
"""
