"""What a simulator is told at the machine's trace ports of when an instruction does what."""

import enum


class Mark(enum.IntEnum):
    """Bits of ``trace_marks``. Every unit works in program order, so the n-th mark is of its n-th instruction."""

    FETCH = 0  #: dispatch takes an instruction
    DISPATCH = 1  #: … and hands it to its unit's queue (END is not)
    STREAM_TAKE = 2  #: the streamer begins with a STREAM
    STREAM_SKIP = 3  #: … and brings nothing of it, for its queue is empty
    STREAM_WORD = 4  #: a word was written to one of the rings
    LOAD_TAKE = 5  #: the loader takes a LINEAR or ATTENTION
    LOAD_FIRST = 6  #: … reads its first word (not of an empty queue)
    LOAD_LAST = 7  #: … has filled its last tile
    MAC_FIRST = 8  #: the array's first step of an instruction
    MAC_LAST = 9
    POST_FIRST = 10  #: the first row of accumulators of an instruction
    POST_LAST = 11
    POST_DONE = 12  #: its results are all written
    DMA_TAKE = 13
    DMA_FIRST = 14  #: a copy may begin
    DMA_DONE = 15
    RETIRE = 16  #: an instruction retires, in program order
