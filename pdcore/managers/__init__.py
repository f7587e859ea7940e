"""What the managers of both roles have in common: their parts, their peers' liveness, and an orderly end."""
