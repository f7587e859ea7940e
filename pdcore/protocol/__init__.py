"""The protocol of one side as a pure machine: stimuli in, actions out.

Nothing here starts a thread, takes a lock, reads a clock, opens a socket or calls an engine. ``stimuli`` is
what may happen, ``actions`` what shall be done about it; ``machine`` hands each stimulus to who knows.
``peers`` pairs with the ranks of the other side (``peer``, ``groups``). Rooms that send are in ``send``,
those that receive in ``receive``; ``room`` is what both are, ``awaited`` says what one waits for, and
``words`` why it ends. ``history`` keeps what happened, and lets it happen again.
"""
