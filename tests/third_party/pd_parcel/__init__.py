"""A backend of pdcore by somebody else: pages in parcels over TCP."""
