"""Who may speak on the control connections, and why somebody was not let in."""
