"""Rooms that send.

``sending`` does what the scheduler says and ends rooms (``send_room``); ``meeting`` brings them together with
what ranks that receive say. ``lives`` tells which life of a room that is about, ``early`` keeps what comes
before its room, and ``answers`` tells them. ``strangers`` are those that are not paired.
"""
