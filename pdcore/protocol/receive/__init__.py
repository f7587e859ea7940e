"""Rooms that receive: ``receiving`` does all of one (``receive_room``), ``requests`` tells who sends.

``dialled`` has the ranks that send, lends them ``rings``, and what is yet to be said to who is dialled next;
``unpacking`` takes bytes out of slots.
"""
