"""Bulk scoring on Ray: lost nodes and drivers, throughput, and growth with the number of rows."""
