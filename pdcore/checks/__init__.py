"""Single values and fields as callers hand them in, made plain or refused by name."""
