"""Events for monitoring systems; what needs an extra is imported only by who wants it.

``prometheus``: counters and histograms (``pdcore[prometheus]``). ``otel``: a span per request on each
side (``pdcore[otel]``). ``endpoint``: a manager's own HTTP endpoint for Prometheus.
"""
