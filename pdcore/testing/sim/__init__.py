"""Simulation: machines of both sides in a world of one seed, whose memory is looked at after every step.

``world`` is the clock and who lives in it, ``node`` one side, ``network`` what carries messages, ``engine``
what copies pages, ``router`` who asks for rooms, ``memory`` the pages and what must never happen to them.
``python -m pdcore.testing.sim --rooms N --seed S`` prints figures and exits 1 on a violation.
"""
