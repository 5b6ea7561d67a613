"""``resrank serve --tune``: how many engines, threads and rows in a call serve best on this machine."""
