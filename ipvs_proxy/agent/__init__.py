"""Everything that depends on time: loops, retries, audits, drains, and the HTTP servers that show them."""
