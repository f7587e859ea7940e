"""Rooms that receive: ``receiving`` does all of one (``receive_room``), ``requests`` tells who sends."""
