"""The predictor: a process that holds each root's weights once and answers with any version over it.

app      HTTP: one request to questions, one answer or one error back
batcher  who waits, what is answered next, and with whom
shelf    the verified overlays kept in memory
engine   torch: the roots, and a version's tensors laid over one of them for one batch
answers  what a model says to a batch of questions
"""
