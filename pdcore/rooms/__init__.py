"""What a room is on either side: its state, its handle, and its pages until no byte can land in them."""

from pdcore.rooms.containment import contained, room_fails
from pdcore.rooms.handle import RoomHandle
from pdcore.rooms.unsafe import Unsafe

__all__ = ["RoomHandle", "Unsafe", "contained", "room_fails"]
