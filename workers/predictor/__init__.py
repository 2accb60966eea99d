"""The predictor: a process that holds each root's weights once and answers with any version over it.

app      HTTP: one request to questions, one answer or one error back
batcher  who waits, what goes on next, and with whom
asks     a question on its way, and a version's questions that are under way
shelf    the verified overlays kept in memory
engine   torch: the roots, and a version's tensors laid over one of them for one turn
session  a version's questions under way, decoded token by token together
answers  what a model says to a batch of questions
"""
