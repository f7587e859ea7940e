"""Events for monitoring systems; each module needs an extra and is imported only by who wants it.

``prometheus``: counters and histograms (``pdcore[prometheus]``). ``otel``: a span per request on each
side (``pdcore[otel]``).
"""
