"""Connection tracking: deletes flows whose endpoint no longer exists."""
